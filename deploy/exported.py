"""An export of any format where a checkpoint could stand: opening it, and what an evaluation asks of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policies.checkpoint import Provenance
from policies.config import build, mapping
from policies.folder import opened

from . import runner, runner_torch
from .artifact import MANIFEST, MODELS, Manifest, read
from .runner import Runner
from .runner_torch import TorchRunner

TRUSTED = {"pt2": "a program of torch", "aoti": "native code"}  # what a format holds that runs as it is


def is_export(path: Path | str) -> bool:
    """Whether the directory is an export and no checkpoint."""
    try:
        with opened(path, (MANIFEST,)) as files:
            return MANIFEST in files
    except FileNotFoundError:
        return False


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


def require_own_sampler(path: Path | str, head: Mapping[str, Any]) -> None:
    """Raises `ValueError` if fields of the head are asked for: the sampler of an export is part of its graph."""
    if head:
        asked = " ".join(f"head.{name}={value}" for name, value in head.items())
        raise ValueError(f"{path} is an export, which has its sampler in it; give {asked} to python -m deploy.export")


def changed_head(manifest: Manifest) -> dict[str, Any]:
    """Fields of the head with which it samples otherwise than the checkpoint it was made from, and their values.

    Raises:
        ValueError: what the export says about it is no mapping.
    """
    return dict(mapping(manifest.source.get("head", {}), "source.head"))


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
