"""The command line: composing a configuration, and telling errors in one line with exit status 1."""

from __future__ import annotations

import difflib
import errno
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowhand.contracts.modules import import_modules
from flowhand.contracts.strict import nearest

from . import groups, help, sweep

ROOM, PLACE = "make room, or choose another place with out= or demos.cache_dir=", "choose a folder that can be written"
OUTSIDE = {  # what the system says that is no defect of the program, and what to do
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: ROOM,
    errno.EROFS: PLACE,
    errno.EACCES: PLACE,
    errno.EPERM: PLACE,
    errno.ENOTDIR: "a part of the path is a file; choose another path",
    errno.EEXIST: "a file lies where a folder is needed; choose another path",
    errno.EISDIR: "a folder lies where a file is needed; choose another path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EIO: "look at the disk",
    errno.EMFILE: "allow more open files (ulimit -n)",
}


ROUNDS = 5  # of a sweep whose workers are lost
# What launchers raise when a worker has died, of joblib, submitit and Ray.
LOST = ("TerminatedWorkerError", "BrokenProcessPool", "UncompletedJobError", "WorkerCrashedError")


def program(verb: str, body: Callable[[DictConfig], int | None]) -> None:
    """Composes the verb's configuration from the command line, and runs the body with it.

    What the body returns is the number of a signal that ended it: the program then ends with the shell's exit status
    for that signal.
    """
    with one_line_errors(of_one_run=False):
        words = sys.argv[1:]
        import_named(named_modules(words))
        groups.register(verb)
        if asked := help.wanted(words):
            print(help.page(verb, asked == help.ALL, words))  # noqa: T201
            return
        require_settings(verb, words)

    @hydra.main(version_base="1.3", config_path="pkg://conf", config_name=verb)
    def main(cfg: DictConfig) -> None:
        ended = None
        with one_line_errors(verb=verb), sweep.turn() as is_mine:
            ended = body(cfg) if is_mine else None
            if is_mine and not ended:
                sweep.end()
        if ended:
            sys.exit(128 + ended)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints and exits itself, and hides where other errors come from
    failed.clear()
    sweep.results.clear()
    planned = None
    with one_line_errors(of_one_run=False, verb=verb):
        if planned := sweep.planned(verb, words):
            sys.argv = [*sys.argv, *planned[1]]
        run_cells(main, planned is not None)
    lines = sweep.table(planned[0] if planned else None)
    print(*lines, sep="\n", end="\n" if lines else "")  # noqa: T201
    if planned and (left := sweep.missing(planned[0])):
        names = ", ".join(cell.folder for cell in left[:5]) + (", ..." if len(left) > 5 else "")
        sys.exit(f"error: {len(left)} cells of the sweep have no result ({names}); the same command runs them")
    if failed:
        sys.exit(f"error: {len(failed)} runs of the sweep failed; their lines are above")


def run_cells(main: Callable[[], object], again: bool) -> None:
    """Runs a sweep, or a single run; with `again`, once more for the cells of workers that were lost."""
    for rounds_left in reversed(range(ROUNDS if again else 1)):
        try:
            main()
        except Exception as error:
            if type(error).__name__ not in LOST or not again:
                raise
            told = f"a worker of the sweep was lost ({type(error).__name__})"
            if not rounds_left:
                raise ValueError(f"{told} in each of {ROUNDS} rounds; the same command goes on") from error
            print(f"{told}; what it left is run again", file=sys.stderr)  # noqa: T201
        else:
            return


def import_named(modules: Sequence[str]) -> None:
    """Imports the packages; where there is a simulator, its backend is chosen first, since they may import it."""
    if modules and importlib.util.find_spec("mujoco"):
        from envs.mujoco import choose_gl_backend

        choose_gl_backend()
    import_modules(modules)


def named_modules(words: Sequence[str]) -> list[str]:
    """The packages that the command line names in `modules`, which are imported before anything is composed."""
    given = [word.lstrip("+") for word in words if word.lstrip("+").startswith("modules=")]
    if not given:
        return []
    value = OverridesParser.create().parse_override(given[-1]).value()
    return [str(name) for name in value] if isinstance(value, list) else [str(value)]


def require_settings(verb: str, words: Sequence[str]) -> None:
    """Raises `ValueError` for words that are no settings, where Hydra would say less."""
    chosen = {word.partition("=")[0].lstrip("+") for word in words}
    for word in words:
        name = word.partition("=")[0]
        if word.startswith("--") and ("=" in word or "." in word) and not name.startswith("--config"):
            raise ValueError(f"{word!r} is no option; a setting is written {word.lstrip('-').partition('=')[0]}=VALUE")
        group = name.lstrip("+").partition(".")[0]
        if "." in name and groups.choices(verb).get(group, "") is None and group not in chosen:
            raise ValueError(f"{name} needs a choice of {group} before it; {group}=: {', '.join(groups.names(group))}")


def compose(overrides: Sequence[str], verb: str = "train") -> Any:
    """The configuration that `flowhand VERB OVERRIDES` would have."""
    groups.register(verb)
    with hydra.initialize_config_module("conf", version_base="1.3"):
        return typed(hydra.compose(verb, list(overrides)), overrides)


def typed(config: DictConfig, given: Sequence[str] | None = None) -> Any:
    """The configuration as an object of its root class; the packages that it names in `modules` are imported first.

    Args:
        config: as it was composed.
        given: what a person has said, in which `modules` must be; None: the program's command line.

    Raises:
        ValueError: a field that its class does not have, or one that was taken away: `+key=value` and `~key` get past
            the classes, and Hydra would drop the one and put the default in place of the other.
    """
    _require_own_fields(config, "")
    modules = list(config.get("modules") or ())
    if given is None:  # a worker of a sweep has another command line than the person's
        given = HydraConfig.get().overrides.task if HydraConfig.initialized() else sys.argv[1:]
    if modules and not any(word.lstrip("+").startswith("modules=") for word in given):
        raise ValueError(
            f"modules={modules} stands in a file, and only you may name code to run: repeat it as an argument"
        )
    import_named(modules)
    return OmegaConf.to_object(config)


def require_given(config: DictConfig, name: str) -> None:
    """Raises `ValueError` unless the setting has a value."""
    if OmegaConf.is_missing(config, name):
        raise ValueError(f"which {name}? Give {name}=PATH")


def _require_own_fields(node: Any, where: str) -> None:
    if not isinstance(node, DictConfig | ListConfig) or node._is_missing() or node._is_none():
        return
    kind = OmegaConf.get_type(node)
    if isinstance(node, DictConfig) and is_dataclass(kind):
        names = [field.name for field in fields(kind)]
        for key in node:
            if key not in names:
                raise ValueError(unknown(f"{where}{key}", str(key), names))
        for name in names:
            if name not in node:
                raise ValueError(f"{where}{name} was taken away; leave out ~{where}{name}, or give it another value")
    keys = range(len(node)) if isinstance(node, ListConfig) else list(node)
    for key in keys:
        _require_own_fields(node._get_node(key), f"{where}{key}.")


failed: list[str] = []  # of a sweep, what was said of the runs that failed


@contextmanager
def one_line_errors(of_one_run: bool = True, verb: str = "train") -> Iterator[None]:
    """Ends the program with one line where the user can mend the error; any other error keeps its traceback.

    A run of a sweep (`--multirun`) only says the line, and the sweep goes on.

    Args:
        of_one_run: the block is one run, perhaps of a sweep.
        verb: whose settings an unknown key is compared with.
    """

    def end(text: str) -> None:
        if not (of_one_run and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN):
            sys.exit(text)
        print(text, file=sys.stderr)  # noqa: T201
        failed.append(text)

    try:
        yield
    except (ValueError, ImportError, FileNotFoundError, HydraException, OmegaConfBaseException) as error:
        end(f"error: {one_line(error, verb)}")
    except OSError as error:
        if error.errno not in OUTSIDE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        end(f"error: {where}{os.strerror(error.errno)}; {OUTSIDE[error.errno]}")
    except Exception as error:
        if not _broke_in_composing(error):
            raise
        cause = f"{type(error).__name__}: {one_line(error)}".strip(": ")
        end(f"error: Hydra cannot compose a configuration from this command line ({cause})")


def _broke_in_composing(error: Exception) -> bool:
    """Whether Hydra itself broke, as it does over some command lines (`head=[1,2]`, `+=x`) that its grammar allows."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] in ("hydra", "omegaconf", "antlr4")


def one_line(error: BaseException, verb: str = "train") -> str:
    """The error's message without line breaks; for an unknown key or choice, with the nearest one that exists."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"unknown {group or 'configuration'} {name!r}; {nearest(name, error.options)}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = [*str(error).splitlines(), *(str(cause).splitlines()[:1] if cause is not error else [])]
    text = "; ".join(line.strip() for line in lines if line.strip())
    parent, key = getattr(cause, "parent_node", None), getattr(cause, "key", None)
    if parent is None or not isinstance(key, str) or not OmegaConf.is_dict(parent):
        return text
    names = [str(name) for name in parent]
    if key in names:
        return text
    where = getattr(cause, "full_key", None) or key
    return unknown(where, key, names, verb)


def unknown(where: str, key: str, names: list[str], verb: str = "train") -> str:
    """What is said of a key that does not exist, with the nearest ones that do."""
    leaves = {full: full.rpartition(".")[2] for full in help.keys(verb)}
    same = [full for full, leaf in leaves.items() if key in (leaf, "".join(word[:1] for word in leaf.split("_")))]
    near = difflib.get_close_matches(key, names, n=1)
    inside = where.rpartition(".")[0]
    same = [full for full in same if full.rpartition(".")[0] == inside] or same
    if near:
        hint = f"did you mean {near[0]!r}?"
    elif same:
        hint = f"did you mean {' or '.join(repr(full) for full in same[:3])}?"
    elif close := difflib.get_close_matches(key, sorted(set(leaves.values())), n=1):
        hint = f"did you mean {' or '.join(repr(full) for full, leaf in leaves.items() if leaf == close[0])}?"
    else:
        hint = f"choices: {', '.join(names)}"
    return f"unknown configuration key {where!r}; {hint}"
