"""A benchmark's result file: what was measured, on what, with what."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import torch

from flowhand.commands import eval as evaluation
from flowhand.contracts.provenance import revision

FOLDER = Path(__file__).parent / "results"


def processor(hardware: str) -> str:
    """What computed, as a reader calls it, of a result file's `hardware`: `Intel Xeon`, `AMD EPYC`."""
    return " ".join(re.sub(r"\(\w+\)|Processor", "", hardware.partition(",")[0]).split())


def write(
    name: str,
    content: dict[str, Any],
    path: Path | None = None,
    *,
    device: torch.device | str,
    threads: int | str,
) -> Path:
    """Writes `results/<name>_<cpu or cuda>_<date>.json`, or `path`, with hardware, versions and commit; returns it.

    Args:
        name: of the benchmark.
        content: what was measured.
        path: of the file, if not the usual one.
        device: what computed. This process may have another one, and may only summarize what others measured.
        threads: torch's CPU threads of each process that computed; in words where they differ between parts.
    """
    device = torch.device(device)
    today = date.today().isoformat()
    path = path or FOLDER / f"{name}_{device.type}_{today}.json"
    about = {
        "date": today,
        "hardware": evaluation.hardware(device, threads),
        "device": device.type,
        "threads": threads,
        "versions": evaluation.versions(),
        "git_sha": revision(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"benchmark": name, **about, **content}, indent=1) + "\n")
    return path
