"""Which demonstrations a training or a collection is about."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from flowhand.contracts.data.episode import SEED_LIMIT
from flowhand.contracts.strict import whole

NOISE = 0.1  # where data.noise is null
COLLECTED = 50  # episodes of an expert, where data.episodes does not say how many
SEEDS_PER_COLLECTION = 10_000  # collections with different `seed` share no episode seed


@dataclass
class DataConfig:
    """Which demonstrations to record, and where they are kept."""

    path: str = ""  # store to use, or to write if there is none; empty: a folder in cache_dir named after the recipe
    # folder for what can be made again; empty: data/demos for what an expert collects, and the user's cache folder
    # (~/.cache/flowhand) for what is decoded of recorded sets
    cache_dir: str = ""
    episodes: int = 0  # to have, the first ones; 0: all of a recorded set, 50 where an expert collects them
    seed: int = 0  # episode seeds count up from seed * 10_000; in [0, 100)
    # standard deviation of the noise added to the executed action, action units; the label is clean. null: 0.1, and 0
    # where an action is a choice of what to do, as on a screen
    noise: float | None = None
    after_success: int = 0  # control steps recorded after the first success
    max_attempts_factor: int = 4  # give up when fewer than one in this many attempts succeed
    workers: int = 1  # processes; the episodes do not depend on it

    def __post_init__(self) -> None:
        limits = {
            "episodes": (0, math.inf),
            "seed": (0, SEED_LIMIT // SEEDS_PER_COLLECTION - 1),
            "noise": (0, math.inf),
            "after_success": (0, math.inf),
            "max_attempts_factor": (1, math.inf),
            "workers": (1, math.inf),
        }
        for name, (low, high) in limits.items():
            if name == "noise" and self.noise is None:
                continue
            value = getattr(self, name) if name == "noise" else whole(f"data.{name}", getattr(self, name))
            setattr(self, name, value)
            if not low <= value <= high or not math.isfinite(value):
                raise ValueError(f"data.{name} is {value}: expected a number in [{low}, {high}]")

    @property
    def first_seed(self) -> int:
        """From which on the seeds of the episodes count."""
        return self.seed * SEEDS_PER_COLLECTION

    @property
    def collected_dir(self) -> Path:
        """Where stores of an expert's demonstrations lie."""
        return Path(self.cache_dir or "data/demos")

    @property
    def decoded_dir(self) -> Path:
        """Where decoded frames and rows lie; not beside the user's data, which may be read-only."""
        user = os.environ.get("XDG_CACHE_HOME", "")
        base = Path(user) if os.path.isabs(user) else Path.home() / ".cache"
        return (Path(self.cache_dir) if self.cache_dir else base / "flowhand") / "decoded"


@dataclass
class SetConfig:
    """A recorded set of a mixture."""

    path: str = ""  # of the set, as data.path
    weight: float = 1.0  # its share in what is drawn; the shares need not add up to one
    name: str = ""  # by which a policy is told whose statistics to take; empty: the last part of the path
    episodes: int = 0  # to train on, the first ones that are not held out; 0: all

    def __post_init__(self) -> None:
        if not self.path or not 0 < self.weight < math.inf or self.episodes < 0:
            raise ValueError(
                f"data.mixture has the set {self.path!r} with weight={self.weight} and episodes={self.episodes}, "
                "expected a path, a positive number and 0 or more"
            )

    @property
    def known_as(self) -> str:
        """Its name."""
        return self.name or Path(self.path.partition("@")[0]).name


@dataclass
class TrainingDataConfig(DataConfig):
    """What a training takes of the demonstrations, and how."""

    # several recorded sets in place of data.path, such as [{path:A,weight:2},{path:B}]; docs/data.md says how
    # their features are matched
    mixture: list[SetConfig] = field(default_factory=list, metadata={"before": []})
    # of many tasks or a mixture: all (one set of statistics) | each (of each task or set, which a policy must be told)
    statistics: str = field(default="all", metadata={"before": "all"})

    # features of a recorded set that the policy observes; empty: all that it can
    observation: list[str] = field(default_factory=list, metadata={"before": []})
    # the action of the step before is observed too, as the feature previous_action: zeros at the first step
    previous_action: bool = field(default=False, metadata={"before": False})
    # episodes of a recorded set that are kept from the training, which they judge: below 1 their share, from 1 on their
    # number; -1: a tenth, at most 50. Where there is a world they are 0: it judges on seeds of its own
    held_out: float = field(default=-1, metadata={"before": 0})
    # times that a step at which somebody had taken over from a policy is drawn as often as another one
    intervention_weight: float = field(default=1.0, metadata={"before": 1.0})
    # of the draw of the episodes that are held out
    held_out_seed: int = field(default=0, metadata={"before": 0})
    # learn each recorded demonstration also as in a mirror, where the world's task is symmetric
    mirror: bool = field(default=False, metadata={"before": False})
    # what the demonstrations may take on the training device, GB; more is read from the disk batch by batch
    memory_gb: float = field(default=4.0, metadata={"before": 4.0})
    # what decoded frames and rows may take below cache_dir, GB; what has no room is decoded again for each batch
    cache_gb: float = field(default=50.0, metadata={"before": 50.0})
    prefetch: int = field(default=2, metadata={"before": 2})  # batches read ahead by a thread; 0: none, without one

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.statistics not in ("all", "each"):
            raise ValueError(f"data.statistics={self.statistics!r} is unknown; choices: all, each")
        if self.mixture and (self.path or self.episodes):
            raise ValueError(
                "data.mixture names its sets and their episodes itself; leave out data.path and data.episodes"
            )
        self.prefetch = whole("data.prefetch", self.prefetch)
        for name in ("memory_gb", "cache_gb", "prefetch"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"data.{name} is {getattr(self, name)}: expected a number, 0 or more")
        if not 0 <= self.intervention_weight < math.inf:
            raise ValueError(f"data.intervention_weight is {self.intervention_weight}: expected a number, 0 or more")
        self.held_out_seed = whole("data.held_out_seed", self.held_out_seed)
        if self.held_out_seed < 0:
            raise ValueError(f"data.held_out_seed is {self.held_out_seed}: expected a number in [0, inf]")
        wanted = self.held_out
        if wanted != -1 and not (0 <= wanted < 1 or (math.isfinite(wanted) and wanted >= 1 and wanted == int(wanted))):
            raise ValueError(
                f"data.held_out is {wanted:g}: expected a share below 1, a whole number of episodes, or -1 for a tenth"
            )
