"""An export of any format where a checkpoint could stand: opening it, and what an evaluation asks of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from policies.checkpoint import Provenance
from policies.config import build

from . import runner, runner_torch
from .artifact import MANIFEST, MODELS, Manifest, read
from .runner import Runner
from .runner_torch import TorchRunner

TRUSTED = {"pt2": "a program of torch", "aoti": "native code"}  # what a format holds that runs as it is


def is_export(path: Path | str) -> bool:
    """Whether the directory is an export and no checkpoint."""
    return (Path(path) / MANIFEST).is_file()


def load(path: Path | str, trust: bool = False, threads: int = 1) -> Runner | TorchRunner:
    """The exported policy, a `Planner` with its `manifest`.

    Args:
        path: the directory.
        trust: run formats that are a program; ONNX files are looked through first and need no trust.
        threads: CPU threads of a decision, for ONNX; the others take torch's.

    Raises:
        ValueError: what is wrong with it, or a format that needs trust.
    """
    kind = read(path)[0].format
    if kind in TRUSTED and not trust:
        raise ValueError(
            f"{path} is an export with format={kind}, which holds {TRUSTED[kind]}: to load it is to run it. "
            "If you made it, say trust=true; format=onnx needs no trust"
        )
    return runner.load(path, threads) if kind == "onnx" else runner_torch.load(path)


def provenance(manifest: Manifest) -> Provenance:
    """Where the policy comes from, as its checkpoint said.

    Raises:
        ValueError: the export does not say, or not in this form.
    """
    if "provenance" not in manifest.source:
        raise ValueError(f"the export does not say what it was trained on; its source is {sorted(manifest.source)}")
    return build(Provenance, manifest.source["provenance"], "source.provenance")


def identity(manifest: Manifest) -> dict[str, Any]:
    """What tells this export from others."""
    return {
        "format": manifest.format,
        "precision": manifest.precision,
        "sha256": manifest.files[MODELS[manifest.format]]["sha256"],
        "max_error": manifest.parity.max_error,
    }
