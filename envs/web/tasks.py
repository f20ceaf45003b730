"""The pages that are tasks: those of MiniWoB++, our own, and a user's; how an episode begins and what it comes to."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from flowhand.contracts.strict import nearest

OWN = Path(__file__).with_name("pages")
REPEATING = Path(__file__).with_name("repeating.json")  # written by benchmarks/web_repeats.py
REFUSED = MappingProxyType(
    {"order-food": "its episode is no function of the seed, even after a reload, so nothing of it could be repeated"}
)
# The pages of MiniWoB++ that are looked at first: their demonstrations need no pixels, but for the last.
MINIWOB_FIRST = (
    "click-test-2", "click-button", "click-link", "click-button-sequence", "click-dialog-2", "click-tab-2-hard",
    "click-collapsible-2-nodelay", "click-option", "click-checkboxes", "click-checkboxes-large",
    "click-checkboxes-transfer", "choose-list", "click-scroll-list", "enter-text", "enter-password", "login-user",
    "enter-date", "multi-orderings", "search-engine", "email-inbox-forward", "use-autocomplete-nodelay", "drag-box",
    "use-slider", "drag-sort-numbers", "book-flight-nodelay", "count-sides",
)  # fmt: skip
# Tasks that are one of our pages with something in its address.
VARIANTS = MappingProxyType({f"any-order-{count}": ("any-order", f"count={count}") for count in (1, 3, 6, 12)})
# Tasks that one policy learns together.
SETS = MappingProxyType(
    {
        "screen-25": (
            *("click-test-2", "click-button", "click-link", "click-button-sequence", "click-dialog-2"),
            *("click-tab-2-hard", "click-collapsible-2-nodelay", "click-option", "click-checkboxes"),
            *("click-checkboxes-large", "choose-list", "click-scroll-list", "enter-text", "enter-password"),
            *("login-user", "enter-date", "multi-orderings", "search-engine", "email-inbox-forward"),
            *("use-autocomplete-nodelay", "drag-box", "use-slider", "drag-sort-numbers", "book-flight-nodelay", "shop"),
        )
    }
)
# Parts of MiniWoB++'s pages that are no part of a task: the instruction, and what shows rewards and clicks.
MINIWOB_IGNORES = "#query,#reward-display,#sync-task-cover,#click-canvas"
# As in miniwob's own environment, the window is larger than the task.
MINIWOB_WINDOW = (500, 320)
# The task's own time limit is off: an episode ends by its step limit.
_MINIWOB_BEGIN = """(async () => {
  core.startEpisode = () => {}; // no cover over the page when the episode has ended
  core.endEpisode(0);
  if (document.activeElement) document.activeElement.blur(); // what the episode before has left
  Math.seedrandom(SEED);
  core.EPISODE_MAX_TIME = 1e9;
  core.startEpisodeReal();
  __flowhand.restart();
  await __flowhand.advance(TICK);
  for (let k = 0; k < 40 && !WOB_TASK_READY; k++) await __flowhand.advance(TICK);
  const said = core.getUtterance();
  return typeof said === "string" ? {instruction: said} : {instruction: said.utterance, fields: said.fields};
})()"""
_MINIWOB_OUTCOME = "{reward: WOB_DONE_GLOBAL ? WOB_RAW_REWARD_GLOBAL : 0, done: WOB_DONE_GLOBAL}"
_OWN_BEGIN = """(async () => {
  if (typeof flowhand === "undefined") throw new Error("the page has no flowhand.reset and flowhand.reward");
  __flowhand.seed(SEED);
  const given = await flowhand.reset(SEED);
  __flowhand.restart();
  await __flowhand.advance(TICK);
  return given;
})()"""
_OWN_OUTCOME = "(typeof flowhand === 'undefined' ? null : await flowhand.reward())"


@dataclass(frozen=True)
class Page:
    """A page that is a task.

    Attributes:
        task: its short name.
        address: of the page.
        root: the beginning of all addresses that it may load.
        begin: JavaScript that begins the episode of SEED and tells its instruction; TICK is the length of a step.
        outcome: JavaScript for the reward so far and whether the episode is over.
        ignore: a selector of what is no part of the screen, or empty.
        window: width and height of the page's window, pixels; None: those of the screen.
        fields: the parts of an instruction that matter, for experts.
        version: of the package that it comes from, or empty.
    """

    task: str
    address: str
    root: str
    begin: str
    outcome: str
    ignore: str
    window: tuple[int, int] | None
    fields: Callable[[str], Mapping[str, str]]
    version: str


def page_of(task: str, page: str) -> Page:
    """The page of a task by name, or a user's own page.

    Args:
        task: the name of one of our pages or of MiniWoB++'s.
        page: path or address of a user's page, which `task` only names; or empty.

    Raises:
        ImportError: miniwob is not installed.
        ValueError: there is no such task, or it is refused.
        FileNotFoundError: there is no such file.
    """
    if page:
        return _own(task, page)
    if task in own_tasks():
        name, query = VARIANTS.get(task, (task, ""))
        return _own(task, str(OWN / f"{name}.html"), query)
    require_allowed(task)
    folder = miniwob_folder()
    file = folder / "miniwob" / f"{task}.html"
    if not file.is_file():
        known = sorted({*own_tasks(), *(each.stem for each in file.parent.glob("*.html"))} - set(REFUSED))
        raise ValueError(f"unknown web task {task!r}: {nearest(task, known)}")
    version = f"miniwob {importlib.metadata.version('miniwob')}"
    begin, outcome, root = _MINIWOB_BEGIN, _MINIWOB_OUTCOME, f"{folder.as_uri()}/"
    fields = miniwob_fields(task)
    return Page(task, file.as_uri(), root, begin, outcome, MINIWOB_IGNORES, MINIWOB_WINDOW, fields, version)


def tasks_of(task: Any) -> list[str]:
    """The tasks that a configuration names: one, a list of them, or those of a set.

    Raises:
        ValueError: it is no name and no list of names that differ.
    """
    names = [task] if isinstance(task, str) else [*task] if isinstance(task, list | tuple) else []
    names = [name for each in names for name in (SETS.get(each, (each,)) if isinstance(each, str) else (each,))]
    if not names or len(set(map(str, names))) < len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"the web task is {task!r}, expected a name or a list of names that differ")
    return names


def require_allowed(task: str) -> None:
    """Raises `ValueError` if the task is one that is refused."""
    if task in REFUSED:
        raise ValueError(f"the web task {task!r} is refused: {REFUSED[task]}")


def own_tasks() -> list[str]:
    """The names of our own pages."""
    return sorted([*(each.stem for each in OWN.glob("*.html")), *VARIANTS])


def _own(task: str, page: str, query: str = "") -> Page:
    if page.startswith(("http://", "https://")):
        address, root = page, f"{origin_of(page)}/"
    else:
        file = Path(page.removeprefix("file://")).expanduser().resolve()
        if not file.is_file():
            raise FileNotFoundError(f"there is no page at {file}; env.page is the path of an HTML file, or an address")
        address, root = file.as_uri() + (query and f"?{query}"), f"{file.parent.as_uri()}/"
    return Page(task, address, root, _OWN_BEGIN, _OWN_OUTCOME, "[data-flowhand-ignore]", None, lambda _: {}, "")


def origin_of(address: str) -> str:
    """Scheme, host and port of an address; `ValueError` if it has none that a page can be loaded from."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{address!r} is no origin, expected one such as http://localhost:8000")
    return f"{parts.scheme}://{parts.netloc}"


@cache
def repeating() -> frozenset[str]:
    """The tasks whose episodes are the same with a reload before them and without, as was measured."""
    return frozenset(json.loads(REPEATING.read_text())["tasks"]) if REPEATING.exists() else frozenset()


@cache
def miniwob_folder() -> Path:
    """The folder of MiniWoB++'s pages; `ImportError` if it is not installed."""
    found = importlib.util.find_spec("miniwob")
    if found is None or not found.submodule_search_locations:
        raise ImportError("the tasks of MiniWoB++ need their extra: pip install 'flowhand[web]' (no module miniwob)")
    return Path(found.submodule_search_locations[0]) / "html"


def miniwob_fields(task: str) -> Callable[[str], Mapping[str, str]]:
    """Miniwob's own way to take an instruction of the task apart, without what importing the package brings."""

    def fields(instruction: str) -> Mapping[str, str]:
        extract = _extractors().get(task)
        try:
            return dict(extract(instruction)) if extract else {}
        except ValueError:  # an instruction that its pattern does not fit
            return {}

    return fields


@cache
def _extractors() -> Mapping[str, Callable[[str], list[tuple[str, str]]]]:
    name, file = "_flowhand_miniwob_fields", miniwob_folder().parent / "fields.py"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        return {}
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.FIELD_EXTRACTORS
