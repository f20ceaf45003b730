"""`flowhand replay data/reach episode=3 env=metaworld env.task=reach-v3`: the command line."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator

import numpy as np
from omegaconf import DictConfig

from conf import cli
from conf.verbs.replay import ReplayRoot
from flowhand.contracts.argument import argument

from .session import Replayed, replay


def described(config: ReplayRoot, result: Replayed) -> Iterator[str]:
    """What came of it, line by line."""
    yield f"{config.where}: episode {config.episode}, {result.steps} control steps, ended: {result.ended}"
    for name, rows in result.errors.items():
        rms = np.sqrt(np.square(rows).mean(0))
        worst = int(rows.max(0).argmax())
        yield (
            f"  {name}: off by {rms.max():.3g} (root mean square of the worst dimension), at most {rows.max():.3g} in "
            f"dimension {worst}"
        )
    if not result.errors:
        yield "  no state is both recorded and observed: nothing was compared"
    if result.changed:
        counts = ", ".join(f"{what} {count}" for what, count in sorted(result.counts.items()))
        yield f"  safety changed {result.changed} actions: {counts}"
    if result.success is not None:
        yield f"  the world says: {'solved' if result.success else 'not solved'} at the end"
    if result.first is not None:
        step, name, size = result.first
        yield f"  the first that differs by more than {result.tolerance:g} is step {step}: {name} by {size:.3g}"
    elif result.tolerance:
        yield f"  no state differs by more than {result.tolerance:g}"


def run(cfg: DictConfig) -> None:
    """Replays as the configuration says; ends with exit status 1 where a state differs, or nothing can be compared."""
    cli.require_given(cfg, "where")
    config: ReplayRoot = cli.typed(cfg)
    logging.getLogger("flowhand.demos").addHandler(logging.NullHandler())
    result = replay(config)
    for line in described(config, result):
        print(line)
    if result.first is not None or not result.errors:
        sys.exit(1)


def main() -> None:
    """Entry point; a word that is no setting is the path."""
    for place, word in enumerate(sys.argv[1:], 1):
        if not word.startswith("-") and "=" not in word:
            sys.argv[place] = shlex.split(argument("where", word))[0]
    cli.program("replay", run)
