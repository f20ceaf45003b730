"""`flowhand check`: a robot is measured before a policy runs."""

from .measure import main

__all__ = ["main"]
