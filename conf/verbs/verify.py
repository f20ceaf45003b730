"""What can be set of `flowhand verify`."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class VerifyRoot:
    """What `flowhand verify` reads."""

    journal: str = MISSING  # file that `flowhand control` wrote
    checkpoint: str = ""  # where the checkpoint or export that decided is now; empty: where it was then


ROOT = VerifyRoot
CHOICES = {}
ABOUT = "Journal -> every decision made again and compared to the last bit."
EXAMPLES = ["flowhand verify journal=outputs/deploy/2026-01-01_12-00-00.journal"]
MATTER = ("journal", "checkpoint")
