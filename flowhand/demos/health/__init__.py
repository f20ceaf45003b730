"""What is wrong with recorded demonstrations, where, and what to do about it."""
