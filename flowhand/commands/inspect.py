"""Says what recorded demonstrations are and what is wrong with them: `flowhand inspect data/demos/mine`."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from conf import cli
from conf.verbs.inspect import InspectRoot
from flowhand.contracts.argument import argument
from flowhand.contracts.data.tasks import SOURCE
from flowhand.demos.config import SetConfig
from flowhand.demos.formats import open_dataset
from flowhand.demos.health.examine import examine
from flowhand.demos.health.finding import Finding, Health
from flowhand.demos.health.stored import difference
from flowhand.demos.mixture import Member, Mixture
from flowhand.demos.native import Store
from flowhand.demos.reader import Reader
from flowhand.demos.states import StateEpisodes

MOST_TASKS, MOST_NAMES = 10, 6  # that are printed


def opened(config: InspectRoot) -> Store | Reader:
    """The data set.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    given = {name: getattr(config, name) for name in ("failed", "filter_key", "rate_hz")}
    return _open(config.where, {name: value for name, value in given.items() if value})


def described(data: Store | Reader, config: InspectRoot) -> Iterator[str]:
    """What is said of the data set, line by line."""
    lengths, tasks, dt_s = data.lengths, data.tasks, data.spec.control_dt_s
    yield f"{config.where}: {data.format if isinstance(data, Reader) else 'store of flowhand'}"
    about = [("revision", getattr(data, "revision", "")), ("robot", getattr(getattr(data, "meta", None), "robot", ""))]
    about += [("world", getattr(data, "env_name", "")), ("lists", ", ".join(getattr(data, "filter_keys", [])))]
    yield from (f"{name:10s} {value}" for name, value in about if value)
    yield f"episodes   {len(lengths)}, of {min(lengths, default=0)} to {max(lengths, default=0)} steps"
    if failed := getattr(data, "failed", []):
        yield f"failed     {len(failed)} episodes, by what the file says"
    yield f"steps      {sum(lengths)}"
    rate = (
        f"{1 / dt_s:g} Hz; {sum(lengths) * dt_s / 60:.1f} minutes in all" if dt_s else "each action waits for an event"
    )
    yield f"rate       {rate}"
    yield f"size       {_size(data) / 1e6:.1f} MB"
    yield from _features(data)
    yield from _tasks(tasks)
    if isinstance(data, Reader):
        yield from _remarks(data)
        if config.statistics:
            yield from _statistics(data)


def mixed(config: InspectRoot, data: Store | Reader) -> Iterator[str]:
    """How the sets of a mixture are mapped onto the first one, line by line.

    Raises:
        ValueError: they cannot be.
    """
    sets = {config.where: data, **{where: open_dataset(where) for where in config.mixture}}
    members = [Member(SetConfig(where).known_as, StateEpisodes(each, images=True)) for where, each in sets.items()]
    yield from Mixture(members).lines()


def looked_at(data: Store | Reader, config: InspectRoot) -> Health:
    """What is wrong with the data set; read as thoroughly as the configuration says.

    Raises:
        ValueError: the checkpoint cannot be read, or is of other features.
    """
    health = examine(data, "all" if config.check else "some")
    if config.checkpoint:
        health.add(*of_checkpoint(Path(config.checkpoint), health))
    return health


def of_checkpoint(path: Path, health: Health) -> Iterator[Finding]:
    """Where a policy was trained with other statistics than these rows have.

    Raises:
        ValueError: there is no such checkpoint.
    """
    import policies

    policy, measured = policies.load(path), health.measured()
    advice = "The policy was trained on other rows; train on these, or start from it and choose what is kept."
    if policy.sources:
        names = ", ".join(policy.spec.observation[SOURCE].names or ())
        yield Finding("note", "checkpoint", f"{path} has statistics of each of {names}; none is compared", advice)
        return
    for name, normalizer in policy.normalizers():
        mode = policy.config.normalizer.action if name == "action" else policy.config.normalizer.observation
        shift, scale = (values.double().numpy() for values in (normalizer.shift, normalizer.scale))
        if name not in measured:
            yield Finding(
                "warning", "checkpoint", f"{path} needs it, and these data do not have it", advice, dimension=name
            )
        elif mode in ("mean_std", "min_max"):
            of_rows = measured[name]
            if shift.shape == of_rows["std"].shape:  # a dimension that does not change is only shifted
                scale = np.where(of_rows["std"] > 0, scale, of_rows["std"])
            ends = {"min": shift - scale, "max": shift + scale}
            if text := difference({"mean": shift, "std": scale} if mode == "mean_std" else ends, of_rows):
                yield Finding(
                    "warning", "checkpoint", f"{path} was not trained on these rows: {text}", advice, dimension=name
                )


def reported(health: Health) -> Iterator[str]:
    """The findings, line by line, each with what to do about it."""
    for found in health.findings:
        yield found.line()
        if found.severity != "note":
            yield f"         {found.advice}"
    yield f"health     {health.line()}"


def _open(where: str, options: dict[str, Any]) -> Store | Reader:
    try:
        return open_dataset(where, **options)
    except ValueError as error:
        if "failed=keep" not in str(error):
            raise
        return open_dataset(where, **{**options, "failed": "keep"})  # nothing but failed episodes: they are looked at


def _size(data: Store | Reader) -> int:
    files = data._files() if isinstance(data, Reader) else data.path.glob("**/*.*")
    return sum(os.stat(file).st_size for file in files if Path(file).is_file())


def _features(data: Store | Reader) -> Iterator[str]:
    columns = data.columns if isinstance(data, Reader) else {}
    features = {**data.spec.observation, "action": data.spec.action}
    width = max(map(len, features))
    for name, feature in features.items():
        source, stored = (columns[name].source, columns[name].stored) if columns else (name, feature.dtype)
        names = feature.names or ()
        listed = ", ".join(names[:MOST_NAMES]) + (f", ... {len(names)} in all" if len(names) > MOST_NAMES else "")
        listed = f"  [{listed}]" if listed else ""
        cast = f" (stored as {stored})" if stored != feature.dtype else ""
        origin = f"  from {source!r}" if source != name else ""
        yield f"  {name:{width}s}  {feature.kind:6s} {feature.dtype} {feature.shape}{cast}{origin}{listed}"


def _tasks(tasks: Sequence[str]) -> Iterator[str]:
    counts = Counter(tasks)
    yield f"tasks      {sum(1 for text in counts if text)}"
    for text, count in counts.most_common(MOST_TASKS):
        yield f"  {count:6d} x {text!r}" if text else f"  {count:6d} without text"
    if len(counts) > MOST_TASKS:
        yield f"         and {len(counts) - MOST_TASKS} more"


def _remarks(data: Reader) -> Iterator[str]:
    yield from (f"left out   {source}: {reason}" for source, reason in data.left_out.items())
    yield from (f"warning    {line}" for line in data.warnings)


def _statistics(data: Reader) -> Iterator[str]:
    yield f"  {'':24s} {'mean':>10s} {'std':>10s} {'min':>10s} {'q01':>10s} {'q99':>10s} {'max':>10s}"
    for name, found in data.statistics().items():
        names = data.columns[name].names
        rows = [found.mean, found.std, found.low, found.quantiles[0], found.quantiles[-1], found.high]
        for i, values in enumerate(zip(*rows, strict=True)):
            label = f"{name}.{names[i] if names else i}"[:24]
            yield f"  {label:24s} " + " ".join(f"{value:10.4g}" for value in values)


def run(cfg: DictConfig) -> None:
    """Prints what the configuration asks for, and ends with exit status 1 if something is wrong."""
    cli.require_given(cfg, "where")
    config: InspectRoot = cli.typed(cfg)
    logging.getLogger("flowhand").addHandler(logging.NullHandler())
    logging.getLogger("flowhand").propagate = False  # what is unusual stands in the listing
    data = opened(config)
    for line in described(data, config):
        print(line)
    if config.mixture:
        for line in mixed(config, data):
            print(line)
    if not (config.health or config.check or config.page or config.checkpoint):
        return
    said = len(data.warnings) if isinstance(data, Reader) else 0
    health = looked_at(data, config)
    for line in data.warnings[said:] if isinstance(data, Reader) else ():
        print(f"warning    {line}")
    for line in reported(health):
        print(line)
    if config.page:
        from flowhand.pages.data import write_data_page

        write_data_page(data, health, config.where, Path(config.page))
        print(f"page       {config.page}")
    if health.count("error") or (config.strict and health.count("warning")):
        sys.exit(1)


def main() -> None:
    """Entry point; a word that is no setting is the path."""
    for place, word in enumerate(sys.argv[1:], 1):
        if not word.startswith("-") and "=" not in word:
            sys.argv[place] = shlex.split(argument("where", word))[0]
    cli.program("inspect", run)
