"""Writes recorded demonstrations in another format: `flowhand convert data/lift.hdf5 data/lift`."""

from __future__ import annotations

import logging
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from conf import cli
from conf.verbs.convert import ConvertRoot
from flowhand.contracts.argument import argument
from flowhand.demos.conversion.convert import FORMATS, How, convert, pictured
from flowhand.demos.conversion.plan import Plan, Source, planned
from flowhand.demos.conversion.staging import require_free, unfinished
from flowhand.demos.formats import open_dataset
from flowhand.demos.reader import Reader

MOST_TASKS = 5  # that are printed
NEEDED = "convert needs a source and a target: flowhand convert SOURCE TARGET"


def opened(config: ConvertRoot) -> list[Source]:
    """The sources, of which nothing but the description has been read."""
    given = {name: getattr(config, name) for name in ("failed", "filter_key", "rate_hz")}
    options = {name: value for name, value in given.items() if value}
    return [Source(name, open_dataset(name, **options)) for name in config.sources]


def described(plan: Plan, how: How, config: ConvertRoot) -> Iterator[str]:
    """What is written, line by line."""
    begin = 0
    for source in plan.sources:
        count = len(source.data)
        kind = source.data.format if isinstance(source.data, Reader) else "store of flowhand"
        yield f"source     {source.name}: {kind}, episodes {begin} to {begin + count - 1}"
        begin += count
    yield f"target     {config.target}: {'LeRobot 3.0' if how.format == FORMATS[0] else 'store of flowhand'}"
    rate = f"{1 / plan.spec.control_dt_s:g} Hz" if plan.spec.control_dt_s else "at events"
    yield f"episodes   {len(plan.episodes)} of {begin}, {plan.steps} steps at {rate}"
    form = pictured(plan, how)
    for name, feature in {**plan.spec.observation, "action": plan.spec.action}.items():
        yield f"  {name}  {feature.dtype} {feature.shape}" + (f", {form[name]}" if name in form else "")
    if plan.judged:
        yield f"also       {', '.join(sorted(plan.judged))} of each step"
    texts = Counter(taken.task for taken in plan.episodes)
    for text, count in texts.most_common(MOST_TASKS):
        yield f"task       {count} x {text!r}" if text else f"task       {count} without text"
    yield from (f"note       {line}" for line in plan.lines)
    if how.format == FORMATS[0] and any(f.low or f.unit for f in (*plan.spec.observation.values(), plan.spec.action)):
        yield "note       LeRobot's format has no place for units and bounds; format=native keeps them"


def run(cfg: DictConfig) -> None:
    """Converts as the configuration says."""
    config: ConvertRoot = cli.typed(cfg)
    if not (config.sources and config.target):
        raise ValueError(NEEDED)
    logging.getLogger("flowhand").propagate = False  # what is unusual is said below
    logging.getLogger("flowhand").addHandler(logging.NullHandler())
    how = How(config.format, config.images, config.codec)
    sources, target = opened(config), Path(config.target)
    require_free(target, [source.data.path for source in sources])
    plan = planned(sources, config.episodes, config.drop, config.tasks)
    for line in described(plan, how, config):
        print(line)
    for source in sources:
        for line in source.data.warnings if isinstance(source.data, Reader) else ():
            print(f"warning    {source.name}: {line}")
    if config.dry_run:
        print("nothing was written (dry_run=true)")
        return
    with tqdm(total=plan.steps, unit="step", disable=None) as bar:
        convert(plan, target, how, bar.update)
    print(f"written    {target}")
    for folder in unfinished(target):
        print(f"note       {folder} is left of another conversion that was stopped; delete it if it is not wanted")


def as_settings(words: Sequence[str]) -> list[str]:
    """The command line with its plain words as settings: the last is the target, those before it the sources.

    Raises:
        ValueError: there is one plain word alone, which could be either.
    """
    plain = [word for word in words if not word.startswith("-") and "=" not in word]
    rest = [word for word in words if word not in plain]
    if not plain:
        return rest
    given = {word.partition("=")[0] for word in rest}
    named = [] if "target" in given else [shlex.split(argument("target", plain.pop()))[0]]
    if not plain and "sources" not in given:
        raise ValueError(NEEDED)
    values = ",".join(shlex.split(argument("", word))[0][1:] for word in plain)
    return [*rest, *([f"sources=[{values}]"] if plain else []), *named]


def main() -> None:
    """Entry point."""
    with cli.one_line_errors(of_one_run=False, verb="convert"):
        sys.argv[1:] = as_settings(sys.argv[1:])
    cli.program("convert", run)
