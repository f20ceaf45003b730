"""`flowhand record data.path=data/monday env=metaworld`: the command line."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

from omegaconf import DictConfig

from conf import cli
from conf.verbs.record import RecordRoot
from flowhand.control.background import divert_logging
from flowhand.demos.formats import open_dataset
from flowhand.demos.health.examine import examine

from .session import Recorded, record


def closing_line(config: RecordRoot, result: Recorded) -> str:
    """What came of it."""
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(result.dropped.items()))
    parts = [f"{len(result.kept)} episodes, {result.steps} steps"]
    parts += [f"{result.interventions} of them taken over"] if result.interventions else []
    parts += [f"{result.filled} of them filled"] if result.filled else []
    parts += [f"dropped: {dropped}"] if dropped else []
    parts += [f"ended by {result.ended}"] if result.ended else []
    return f"{config.data.path}: {'; '.join(parts)}"


def _say_health(path: str) -> None:
    """What is unusual in the whole set, as `flowhand inspect` says it."""
    logging.getLogger("flowhand").propagate = False  # what is unusual stands in the listing
    health = examine(open_dataset(path), "some")
    for found in health.findings:
        print(found.line())
    print(f"health     {health.line()}")


def write_page(config: RecordRoot, result: Recorded) -> None:
    """Writes the page of the shadow that watched."""
    from flowhand.pages.shadow import write_shadow_page

    assert result.shadow is not None
    path = Path(config.page or f"{config.data.path.rstrip('/')}.shadow.html")
    shadow = result.shadow
    columns = (shadow.steps, shadow.policy, shadow.person, shadow.chunks)
    write_shadow_page(path, config.shadow, shadow.names, *columns, shadow.whole(), shadow.flipped, shadow.control_dt_s)
    print(f"page       {path}")


def run(cfg: DictConfig) -> int:
    """Records as the configuration says; returns the number of the signal that ended it, or 0."""
    config: RecordRoot = cli.typed(cfg)
    divert_logging()  # no line, of whichever library, may hold up the control
    result = record(config)
    for line in result.lines:
        print(line)
    if result.shadow is not None:
        write_page(config, result)
    if config.health and result.kept:
        _say_health(config.data.path)
    print(closing_line(config, result))
    return signal.Signals[result.ended] if result.ended in ("SIGINT", "SIGTERM") else 0


def main() -> None:
    """Entry point."""
    cli.program("record", run)
