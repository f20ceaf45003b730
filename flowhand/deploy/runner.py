"""Runs an exported policy with numpy and ONNX Runtime alone: what `load(path)` gives is a policy to a `Controller`.

No torch is imported here or by anything that is imported here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from flowhand.contracts.export.artifact import Manifest, read
from flowhand.contracts.export.exported_policy import Exported

from .onnx_file import require_self_contained

TYPES = {"float32": "tensor(float)", "uint8": "tensor(uint8)", "uint16": "tensor(uint16)"}


class Runner(Exported):
    """An exported policy on the CPU; a `Planner` (flowhand/control/controller.py).

    Choose it on a robot, where torch is unwelcome or too slow. Its chunks do not continue earlier ones: real-time
    chunking takes the checkpoint.
    """

    def __init__(self, manifest: Manifest, model: bytes, threads: int = 1):
        if not 1 <= threads <= 1024:
            raise ValueError(f"threads={threads} must lie in 1..1024")
        require_self_contained(model)
        super().__init__(manifest)
        self._session = _session(model, threads)
        self._require_fit()

    def outputs(self, observation: Mapping[str, np.ndarray], noise: np.ndarray) -> dict[str, np.ndarray]:
        """Chunks "action" (B, T, A) and, of an export with a monitor, its "scores" (B, D).

        Raises:
            ValueError: an input that is missing or unknown, or of the wrong shape or dtype; a model that fails.
        """
        names = self.manifest.outputs
        inputs = self.manifest.inputs(observation, noise)
        # int8 rounds activations by the largest of all rows: a row that shares a call would depend on its neighbours.
        size = 1 if self.manifest.precision == "int8" else len(noise)
        starts = range(0, len(noise), size) if size else [0]
        with _explained("the model fails"):
            parts = [self._session.run(names, {n: v[at : at + size] for n, v in inputs.items()}) for at in starts]
        return {name: np.concatenate(values) for name, *values in zip(names, *parts, strict=True)}

    def _require_fit(self) -> None:
        """Raises `ValueError` unless the graph has the inputs and the outputs that the manifest states."""
        shapes, dtypes = self.manifest.shapes(1), self.manifest.dtypes()
        expected = {name: (TYPES[dtypes[name]], list(shape[1:])) for name, shape in shapes.items()}
        nodes = [*self._session.get_inputs(), *self._session.get_outputs()]
        found = {node.name: (node.type, list(node.shape[1:])) for node in nodes}
        if found != expected:
            raise ValueError(f"the model has inputs and outputs {found}, its manifest says {expected}")
        for node in nodes:
            if isinstance(node.shape[0], int):
                raise ValueError(f"the model takes exactly {node.shape[0]} rows of {node.name!r}, expected any number")


def load(path: Path | str, threads: int = 1) -> Runner:
    """The exported policy in a directory that `flowhand export format=onnx` wrote.

    Args:
        path: the directory.
        threads: CPU threads of a decision.

    Raises:
        ValueError: naming what is missing, unknown, damaged, of the wrong shape, or no longer gives the stored action.
        ImportError: onnxruntime is not installed.
    """
    manifest, model, golden = read(path)
    if manifest.format != "onnx":
        raise ValueError(
            f"{path} is an export with format={manifest.format}, which needs torch: policies.export.runner_torch.load"
        )
    try:
        runner = Runner(manifest, model, threads)
        runner.require_golden(golden)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return runner


def _session(model: bytes, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("an exported policy needs onnxruntime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # fatal errors only: the others are raised
    options.add_session_config_entry("session.load_model_format", "ONNX")  # nothing else has been looked through
    # Where weights outside the model would lie: in no folder.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    with _explained("the model cannot be run"):  # the fallback it could take is the same again, told on stdout
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns an error of the runtime into a `ValueError` of one line; its exceptions share no base."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {(str(error) or repr(error)).splitlines()[0]}") from error
