"""One policy for many tasks or many data sets: gathering their demonstrations, and judging it task by task."""
