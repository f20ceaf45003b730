"""The memory: recorded demonstrations and their formats."""
