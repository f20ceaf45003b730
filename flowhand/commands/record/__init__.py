"""`flowhand record`: a person, a policy or an expert drives a robot or a world, and demonstrations are written."""

from .program import main, run
from .session import Recorded, record

__all__ = ["Recorded", "main", "record", "run"]
