"""A benchmark's result file: what was measured, on what, with what."""

from __future__ import annotations

import json
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch

import eval as evaluation

FOLDER = Path(__file__).parent / "results"


def write(name: str, content: dict[str, Any], path: Path | None = None) -> Path:
    """Writes `results/<name>_<cpu or cuda>_<date>.json`, or `path`, with hardware, versions and commit; returns it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sha = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    today = date.today().isoformat()
    path = path or FOLDER / f"{name}_{device.type}_{today}.json"
    about = {
        "date": today,
        "hardware": evaluation.hardware(device),
        "versions": evaluation.versions(),
        "git_sha": sha,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"benchmark": name, **about, **content}, indent=1) + "\n")
    return path
