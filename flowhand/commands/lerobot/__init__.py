"""Policies that lerobot trained, judged here: they decide in lerobot's own Python."""
