"""A policy that lerobot trained, as a planner: it decides in lerobot's own Python, which is another process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import weakref
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from conf.verbs.eval import EvalRoot
from flowhand.contracts.features import ChunkConfig, Feature, Spec
from flowhand.contracts.planner import FORMS, NOTHING, PrefixArrays
from flowhand.contracts.provenance import Provenance

from .side import receive, send

VARIABLE = "FLOWHAND_LEROBOT"
PREFIXES = ("observation.images.", "observation.")
FILES = ("config.json", "model.safetensors")  # of a policy of lerobot


def _end(side: subprocess.Popen[bytes]) -> None:
    """Ends lerobot's process, which ends when its pipe does."""
    for pipe in (side.stdin, side.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
    side.wait()


def is_lerobot(folder: Path) -> bool:
    """Whether a policy of lerobot lies there: its configuration names a type, and no format of ours."""
    try:
        config = json.loads((folder / FILES[0]).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "type" in config and "format_version" not in config


class LeRobotPlanner:
    """Decides as lerobot's `predict_action_chunk` does, with lerobot's own processors before and after.

    Each row of a decision is decided alone, and all its randomness comes from a seed. So the noise of a decision is one
    number, whose 32 bits are that seed: records depend on no batch.

    Args:
        folder: of the policy: pretrained_model, as lerobot writes it.
        world: what is known of the world that it is to act in: names and units of dimensions, and the period, which a
            policy of lerobot does not say.
        python: of lerobot's environment; empty: what FLOWHAND_LEROBOT says.

    Attributes:
        close: ends lerobot's process.

    Raises:
        ValueError: no Python is named, or lerobot cannot load the policy there.
    """

    continues = NOTHING
    noise_shape = (1,)
    device_name = "cpu"

    def __init__(self, folder: Path, world: Spec, python: str = ""):
        self.folder, python = folder, python or os.environ.get(VARIABLE, "")
        if not python:
            raise ValueError(
                f"{folder} is a policy of lerobot, which decides in lerobot's own Python: name it by lerobot=PYTHON or "
                f"in {VARIABLE}"
            )
        words = [python, str(Path(__file__).with_name("side.py")), str(folder.resolve())]
        try:
            self._side = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise ValueError(f"lerobot={python} cannot be started ({error.strerror}); give a Python") from error
        self.close = weakref.finalize(self, _end, self._side)  # at the end of the program, unless it is called before
        try:
            self.about, _ = self._answer()
        except ValueError:
            self.close()
            raise
        self._names = {_short(name): name for name in self.about["seen"]}
        self.spec = self._spec(world)
        self.chunk = ChunkConfig(self.about["history"], self.about["predicted"], self.about["executed"])

    @property
    def words(self) -> str:
        """What it is, in words."""
        return f"{self.about['type']} of lerobot {self.about['version']}"

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from other policies."""
        return {"lerobot": self.about["type"], "version": self.about["version"], "sha256": self._digest()}

    @property
    def changed_head(self) -> dict[str, Any]:
        """Nothing: it samples as lerobot does."""
        return {}

    @property
    def provenance(self) -> Provenance:
        """That nothing is known of where it comes from, its demonstrations' seeds included."""
        return Provenance({"kind": "none"}, "", "", "", [], {}, "", 0)

    @property
    def observation_spread(self) -> Mapping[str, list[float]]:
        """Not known here."""
        raise ValueError(f"{self.folder} does not tell the spread of its observations; perturb in absolute units")

    def settled(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """All that its chunks depend on beside their inputs."""
        return {"lerobot": self.about, "sha256": self._digest()}, {}

    def plan(
        self, observation: Mapping[str, np.ndarray], noise: np.ndarray, prefix: PrefixArrays | None = None
    ) -> np.ndarray:
        """Chunks (B, T, A) for histories, each (B, O, *shape), and noise (B, 1).

        Raises:
            ValueError: a prefix, or what lerobot says against the observation.
        """
        if prefix is not None:
            raise ValueError("a policy of lerobot takes no prefix here; execute it with mode=receding_horizon")
        seeds = np.ascontiguousarray(noise, np.float32).view(np.uint32)[:, 0]
        arrays = {self._names[name]: values for name, values in observation.items()}
        assert self._side.stdin is not None
        try:
            send(self._side.stdin, {"seeds": [int(seed) for seed in seeds]}, arrays)
        except BrokenPipeError as error:
            raise ValueError(
                f"lerobot's process has ended (status {self._side.poll()}); see its lines above"
            ) from error
        return self._answer()[1]["chunks"].astype(np.float32)

    def _answer(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        assert self._side.stdout is not None
        message = receive(self._side.stdout)
        if message is None:
            raise ValueError(f"lerobot's process has ended (status {self._side.wait()}); see its lines above")
        if "error" in message[0]:
            raise ValueError(f"lerobot says of {self.folder}: {message[0]['error']}")
        return message

    def _spec(self, world: Spec) -> Spec:
        seen = {_short(name): shape for name, shape in self.about["seen"].items()}
        features = {name: _feature(name, shape, world) for name, shape in seen.items()}
        shape, known = tuple(self.about["action"]), world.action
        same = {"low": known.low, "high": known.high, "names": known.names} if shape == known.shape else {}
        return Spec(features, Feature(shape, "float32", known.unit, **same), world.control_dt_s)

    def _digest(self) -> str:
        found = hashlib.sha256()
        for name in FILES:
            found.update((self.folder / name).read_bytes())
        return found.hexdigest()


def open_lerobot(config: EvalRoot) -> LeRobotPlanner:
    """The policy of lerobot; `ValueError` where the evaluation asks for something that it cannot do."""
    if config.env is None:
        raise ValueError(f"{config.checkpoint} is a policy of lerobot, which names no world; give env=...")
    if config.head.changes or config.compile != "no" or config.execution.mode in FORMS or config.data.path:
        raise ValueError(
            f"{config.checkpoint} is a policy of lerobot and decides as lerobot does: head.*, compile, data.path and "
            "modes that continue chunks cannot be set"
        )
    import envs

    with closing(envs.make(config.env)) as world:
        return LeRobotPlanner(Path(config.checkpoint), world.features, config.lerobot)


def _short(name: str) -> str:
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix).replace(".", "_")
    return name.replace(".", "_")


def _feature(name: str, shape: list[int], world: Spec) -> Feature:
    """A picture, which lerobot has channels first, or a vector."""
    if len(shape) == 3:
        channels, height, width = shape
        return Feature((height, width, channels), "uint8", "")
    known = world.observation.get(name)
    return Feature(tuple(shape), "float32", known.unit if known else "")
