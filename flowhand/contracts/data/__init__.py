"""Recorded data: an episode, a data set of them, and their statistics."""
