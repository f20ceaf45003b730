"""Runs a policy exported with format=pt2: `load(path)` gives what a `Controller` takes as its policy."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from policies.spec import ChunkConfig, Spec

from .artifact import Manifest, read, require_golden


class TorchRunner:
    """A program of torch.export on the CPU; a `Planner` (policies/controller.py).

    Choose it to hand the decision to something that compiles such programs. For a robot's CPU ONNX Runtime is faster.
    """

    def __init__(self, manifest: Manifest, program: torch.export.ExportedProgram):
        self.manifest = manifest
        self._decide: Callable[..., torch.Tensor] = program.module()

    @property
    def spec(self) -> Spec:
        """What it sees and commands."""
        return self.manifest.spec

    @property
    def chunk(self) -> ChunkConfig:
        """How much it sees, predicts and executes."""
        return self.manifest.chunk

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise of one decision."""
        return self.manifest.noise_shape

    def plan(self, observation: Mapping[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        """Chunks (B, T, A) in physical units from histories, each (B, O, *shape), and noise (B, *noise_shape).

        Raises:
            ValueError: an input that is missing or unknown, or of the wrong shape or dtype.
        """
        self.manifest.inputs(observation, noise)
        tensors = {name: torch.from_numpy(observation[name]) for name in self.spec.observation}
        with torch.no_grad():
            return self._decide(torch.from_numpy(noise), tensors).numpy()


def load(path: Path | str) -> TorchRunner:
    """The exported policy in a directory that `python -m deploy.export format=pt2` wrote.

    A program of torch is read by torch, which trusts it: load only what you exported, or what you would also run.

    Raises:
        ValueError: naming what is missing, unknown, damaged, of the wrong shape, or no longer gives the stored action.
    """
    manifest, model, golden = read(path)
    if manifest.format != "pt2":
        raise ValueError(f"{path} is an export with format={manifest.format}: deploy.runner.load")
    try:
        runner = TorchRunner(manifest, torch.export.load(io.BytesIO(model)))
    except Exception as error:  # damaged programs fail in many ways
        raise ValueError(
            f"{path}: the program cannot be loaded: {(str(error) or repr(error)).splitlines()[0]}"
        ) from error
    observation = {name: golden[f"observation.{name}"] for name in manifest.spec.observation}
    require_golden(manifest, golden, runner.plan(observation, golden["noise"]), path)
    return runner
