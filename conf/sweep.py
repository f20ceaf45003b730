"""The results of the runs of a sweep, and the table that it ends with."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

HEAD = ("success", "rate", "95 % interval", "expert", "folder")

results: list[tuple[dict[str, str], tuple[str, ...]]] = []  # of each run that was evaluated: its settings, and a row


def command_line() -> str:
    """The command that this run is, as it could be typed again; empty outside of a verb."""
    if not HydraConfig.initialized():
        return ""
    words = [word for word in HydraConfig.get().overrides.task if word]
    return shlex.join(["flowhand", str(HydraConfig.get().job.config_name), *words])


def note(metrics: dict[str, Any], out: Path) -> None:
    """Keeps what an evaluation came to, where it is part of a sweep."""
    if not (HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN):
        return
    settings = dict(word.lstrip("+").split("=", 1) for word in HydraConfig.get().overrides.task if "=" in word)
    expert = "" if metrics["expert_rate"] is None else f"{metrics['expert_rate']:.1%}"
    interval = f"{metrics['wilson_low']:.1%} to {metrics['wilson_high']:.1%}"
    row = (f"{metrics['successes']}/{metrics['n']}", f"{metrics['rate']:.1%}", interval, expert, str(out))
    results.append((settings, row))


def table() -> list[str]:
    """A line for each run: the settings in which the runs differ, and what they came to; none for a single run."""
    if len(results) < 2:
        return []
    from flowhand.pages.comparison import aligned

    names = list(dict.fromkeys(name for settings, _ in results for name in settings))
    names = [name for name in names if len({settings.get(name) for settings, _ in results}) > 1]
    rows = [(*(settings.get(name, "") for name in names), *row) for settings, row in results]
    return aligned([(*names, *HEAD), *rows])
