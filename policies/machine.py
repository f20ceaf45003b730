"""What computed: processor, packages, and the commit of this package."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from pathlib import Path

import torch

from .device import usable_cores


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    names = ("torch", "numpy", "onnxruntime", "gymnasium", "mujoco", "metaworld", "hydra-core", "flowhand")
    installed = {}
    for name in names:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # an extra that is not installed, or a clone without install
            continue
    return {"python": platform.python_version(), **installed}


def hardware(device: torch.device, threads: int | str | None = None) -> str:
    """The processor that computed, in words, with torch's CPU threads: this process's now, unless others are told."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    return f"{cpu}, {usable_cores()} cores, {threads or torch.get_num_threads()} torch threads"


def revision(root: Path | None = None) -> str:
    """The commit checked out in the clone that this package lies in, "" where it lies in none; needs no git program."""
    git = (root or Path(__file__).parents[1]) / ".git"
    try:
        if git.is_file():  # of a worktree: it says where
            git = git.parent / git.read_text().removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return _commit(head)
        name = head.removeprefix("ref:").strip()
        shared = git / "commondir"
        for place in (git, git / shared.read_text().strip() if shared.is_file() else git):
            if (place / name).is_file():
                return _commit((place / name).read_text().strip())
            packed = place / "packed-refs"
            lines = packed.read_text().splitlines() if packed.is_file() else []
            for commit, _, ref in (line.partition(" ") for line in lines):
                if ref == name:
                    return _commit(commit)
    except (OSError, UnicodeDecodeError):  # no clone, or none that this user may read
        return ""
    return ""


def _commit(text: str) -> str:
    return text if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) else ""
