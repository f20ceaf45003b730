"""Runs a policy exported with format=pt2 or aoti: `load(path)` gives what a `Controller` takes as its policy.

Both formats are read by torch, which trusts them: a program of torch can be made to harm, and native code is code. So
load only what you exported, or what you would also run.
"""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from flowhand.contracts.export.artifact import Manifest, read
from flowhand.contracts.export.exported_policy import Exported

from .tracing import this_cpu

Found = torch.Tensor | Sequence[torch.Tensor]  # the chunks alone, or with a monitor's scores
Decide = Callable[[torch.Tensor, dict[str, torch.Tensor]], Found]


class TorchRunner(Exported):
    """A program of torch.export, or native code of AOTInductor, on the CPU; a `Planner`.

    Choose pt2 to hand the decision to something that compiles such programs, and aoti where torch is on the machine
    and decisions shall be fast. ONNX Runtime is about as fast, and its file runs on other machines too.
    """

    def __init__(self, manifest: Manifest, decide: Decide):
        super().__init__(manifest)
        self._decide = decide

    def outputs(self, observation: Mapping[str, np.ndarray], noise: np.ndarray) -> dict[str, np.ndarray]:
        """Chunks "action" (B, T, A) and, of an export with a monitor, its "scores" (B, D).

        Raises:
            ValueError: an input that is missing or unknown, or of the wrong shape or dtype.
        """
        self.manifest.inputs(observation, noise)
        # Native code takes the memory as it lies, so it has to lie in order.
        tensors = {name: torch.from_numpy(np.ascontiguousarray(observation[name])) for name in self.spec.observation}
        with torch.no_grad():
            found = self._decide(torch.from_numpy(np.ascontiguousarray(noise)), tensors)
        found = [found] if isinstance(found, torch.Tensor) else found
        return dict(zip(self.manifest.outputs, (value.numpy() for value in found), strict=True))


def decision(manifest: Manifest, model: bytes) -> Decide:
    """The decision as a function of noise and histories.

    Raises:
        ValueError: native code for another CPU or another torch, or a file that torch cannot load.
    """
    if manifest.format == "aoti":
        here = {"torch": importlib.metadata.version("torch"), "cpu": this_cpu()}
        made = {name: manifest.versions.get(name) for name in here}
        if made != here:
            raise ValueError(f"it was compiled for {made}, and this is {here}; export the checkpoint again, here")
    try:
        if manifest.format == "aoti":
            return torch._inductor.aoti_load_package(io.BytesIO(model))
        return torch.export.load(io.BytesIO(model)).module()
    except Exception as error:  # damaged files fail in many ways
        raise ValueError(f"the program cannot be loaded: {(str(error) or repr(error)).splitlines()[0]}") from error


def load(path: Path | str) -> TorchRunner:
    """The exported policy in a directory that `flowhand export format=pt2` or `format=aoti` wrote.

    It runs what lies there: load only what you exported, or what you would also run.

    Raises:
        ValueError: naming what is missing, unknown, damaged, of the wrong shape, or no longer gives the stored action;
            native code that was compiled for another CPU or torch.
    """
    manifest, model, golden = read(path)
    if manifest.format not in ("pt2", "aoti"):
        raise ValueError(f"{path} is an export with format={manifest.format}: flowhand.deploy.runner.load")
    try:
        runner = TorchRunner(manifest, decision(manifest, model))
        runner.require_golden(golden)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return runner
