"""What can be set of `flowhand push`."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class PushRoot:
    """What `flowhand push` reads."""

    where: str = MISSING  # folder of a checkpoint, of a training run, of an export, or of recorded demonstrations
    repo: str = MISSING  # OWNER/NAME on the hub; it is made where it is not there yet
    private: bool = True  # a repository that is made is for its owner alone
    message: str = ""  # of the commit; empty: what was pushed
    endpoint: str = ""  # address of the hub; empty: the public one, or what HF_ENDPOINT says


ROOT = PushRoot
CHOICES = {}
ABOUT = (
    "A checkpoint, an export or recorded demonstrations -> the Hugging Face hub; flowhand.load and training read it."
)
EXAMPLES = ["flowhand push where=outputs/demo repo=me/demo", "flowhand push where=data/lerobot/mine repo=me/mine"]
MATTER = ("where", "repo", "private", "message")
