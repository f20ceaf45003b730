"""What computed: processor, packages, and the commit of this package."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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


def revision(root: Path | None = None) -> str:
    """The commit checked out in the clone that this package lies in, "" where it lies in none; needs no git program."""
    git = (root or Path(__file__).parents[2]) / ".git"
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


def usable_cores() -> int:
    """CPU cores that this process may use, by its affinity and, in a container, by its quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")  # "<microseconds> <period>" or "max <period>"
    allowed, _, period = quota.read_text().partition(" ") if quota.is_file() else ("max", "", "")
    return cores if allowed == "max" else max(1, min(cores, int(allowed) // int(period)))


@dataclass
class Provenance:
    """Where a policy comes from: what evaluation needs to know and a reader wants to know."""

    env: dict[str, Any]  # the environment's configuration, kind included
    env_version: str  # versions of the simulator packages
    task: str  # instruction in words
    demonstrations: str  # content hash of the demonstrations
    demonstration_seeds: list[int]  # start-state seeds of the demonstrations; evaluation must not use them
    versions: dict[str, str]  # packages at the time of training
    git_sha: str  # commit of the working tree, "" if there was none
    train_steps: int  # optimizer steps behind these weights
    # Packages that were imported for the world; a person must name them again, since nothing here is ever imported.
    modules: list[str] = field(default_factory=list, metadata={"before": []})
    # Recorded sets: format, name, revision, fingerprint, and the numbers of the episodes trained on and held out.
    recorded: list[dict[str, Any]] = field(default_factory=list, metadata={"before": []})
    # Checkpoints that the training started from, the oldest first: the SHA-256 of its weights, its steps and its data.
    started_from: list[dict[str, Any]] = field(default_factory=list, metadata={"before": []})
    # Name, SHA-256 and licence of the file of weights that the training started from; empty: from random ones.
    pretrained: dict[str, str] = field(default_factory=dict, metadata={"before": {}})
