"""`flowhand replay`: a recorded episode's actions again, open loop. Journals are decided again by `flowhand verify`."""

from .program import main, run
from .session import Replayed, replay

__all__ = ["Replayed", "main", "replay", "run"]
