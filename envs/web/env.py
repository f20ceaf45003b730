"""Pages in a real browser: MiniWoB++ (Liu et al. 2018, Farama's miniwob 1.1.0), our own, and a user's.

Data sheet
    action       as `flowhand.contracts.screen.fields` has it: at elements, or at places with observes=pixels. One at a
                 time; the page's clock advances by `tick_ms` with each. An action that cannot be done, such as one
                 at a row without an element, does nothing, and `info["problem"]` says why.
    observation  "element_strings", "elements" and "words" of the contract; observes=pixels: "words" and the "screen"
                 (height, width, 3) uint8; observes=both: all. A place is the middle of what is seen of an element. An
                 element is enabled if it is neither disabled nor wholly covered.
    reward       the page's raw reward, of the step in which the episode ends; a page of one's own: its increase.
    success      a raw reward of 1. The episode ends (terminated) when the page says so, whatever it came to; it is
                 truncated at `max_steps`.
    seeds        a page starts from a seed; dates, timers, animations and Math.random are functions of it.
    info         "expert_observation": all that is on the screen, strings whole (`Env` documents it). "left_out": how
                 many elements and words have no row. "blocked": addresses that the page was kept from loading.

Every environment has a tab of its own, in a browser that those of one process share.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from typing import Any

import numpy as np

from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.screen.fields import (
    ELEMENTS,
    FIELDS,
    WORDS,
    action_feature,
    observation_features,
    pixel_action_feature,
)
from flowhand.contracts.strict import whole
from flowhand.contracts.world import Observation, WorldError, check_action

from ..base import Env
from .chromium import BrowserError
from .config import WebConfig
from .devtools import acquire, release
from .drawing import drawn
from .experts import expert_of, look_of
from .hands import Act, Screen, at_elements, at_pixels, do
from .rows import Rows, element_arrays, strings, word_array
from .tab import Tab
from .tasks import page_of, repeating, tasks_of
from .words import split

logger = logging.getLogger(__name__)


class WebEnv(Env):
    """A page as a world.

    `info["expert_observation"]` is a dictionary: `instruction`, `words` (each with `text`, `start`, `end`), `fields` of
    the instruction, `address`, and `elements`, in their order on the page: each with its `row`, `acted`, the strings
    `tag`, `kind` (type or role), `text`, `value`, `label`, `name`, the box `left`, `top`, `width`, `height` in pixels,
    `enabled`, `checked`, `focused`, `scrollable`, `away` (out of view in a part that scrolls), `never`, `active`,
    `color`, `aim` (where it is clicked), and all its `attributes`; `hidden` is what its expert asked the page for.

    Raises:
        ImportError: miniwob is not installed.
        FileNotFoundError: there is no browser, or no such page.
        ValueError: there is no such task.
    """

    rest = (0.0,) * len(FIELDS)  # "stop" does nothing

    def __init__(self, config: WebConfig):
        self.config = config
        (self.task,) = tasks_of(config.task)
        self._page = page_of(self.task, config.page)
        self.task_text = f"do what the page {self.task} asks for"
        self.features = _features(config)
        self._browser = acquire(self._hosts())
        self.version = ", ".join(each for each in (self._browser.version, self._page.version) if each)
        self._tab: Tab | None = None
        self._fresh = False  # whether the tab has the page as it is loaded
        self._screen = Screen([], "", [], (config.width, config.height))
        self._act: Act | None = None
        self._acted: set[int] = set()
        self._times: deque[float] = deque()  # of the actions of the last minute, s
        self._seed, self._steps, self._done, self._reward = 0, 0, False, 0.0
        self._warned, self._closed = False, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """Start the episode that belongs to the seed; without one, draw a seed.

        Raises:
            BrowserError: the browser has died, or the page does not answer; the message names the seed and the task.
            WorldError: the page's script failed, or does not keep to its contract.
        """
        seed = None if seed is None else whole("seed", seed)
        super().reset(seed=seed, options=options)
        self._seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self._steps, self._done, self._reward, self._act = 0, False, 0.0, None
        self._rows, self._acted = Rows(), set()
        self.expert = expert_of(self.task, self.config.width, self.config.observes == "pixels")
        return self._told(self._begin)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        """Act, and let the page's clock advance.

        Raises:
            ValueError: the action has another shape, or is not finite.
            BrowserError: as `reset`.
        """
        action = check_action(action, self.features, where=f"{self.task}, step {self._steps}")
        read = at_pixels if self.config.observes == "pixels" else at_elements
        act = self._act = read(action, self._screen)
        before = self._reward
        if self._tab is None:
            raise WorldError(f"{self.task}: no episode is going on; reset begins one")
        self._steps += 1
        observation, info = self._told(lambda: self._acting(act))
        ended = self._steps >= self.config.max_steps
        info["success"] = self._done and self._reward >= 1
        if self._done or ended:
            info["failure"] = info.pop("failure", "") or ("wrong" if self._done else "not finished")
        return observation, self._reward - before, self._done, ended, info

    def render(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the screen with the mouse and the last action drawn, uint8 (height * zoom, width * zoom, 3)."""
        tab, zoom = self._opened(), self.config.zoom
        picture = tab.picture().repeat(zoom, 0).repeat(zoom, 1)
        return drawn(picture, self._act, tab.mouse, zoom)

    def close(self) -> None:
        """Close the tab, and the browser with the last one."""
        if not self._closed:
            self._closed = True
            self._drop()
            release(self._browser)

    def _told(self, what: Any) -> tuple[Observation, dict]:
        """What an action or a beginning leads to; an error names the episode, and the tab is given up."""
        try:
            return what()
        except (BrowserError, ValueError) as error:
            self._drop()
            where = f"web task {self.task}, seed {self._seed}, step {self._steps}"
            kind = type(error) if isinstance(error, BrowserError) else WorldError
            raise kind(f"{where}: {error}") from error

    def _begin(self) -> tuple[Observation, dict]:
        if self._stained():
            self._drop()
        tab = self._opened()
        if not (self._fresh and self.config.reload == "auto" and self._kept()):
            tab.load(self._page.address)
            self._fresh = True
        tab.move(0, 0)
        script = self._page.begin.replace("SEED", str(self._seed)).replace("TICK", str(self.config.tick_ms))
        given = tab.ask(script)
        if not isinstance(given, dict) or not isinstance(given.get("instruction"), str):
            raise ValueError(f"flowhand.reset returned {given!r}, expected an object with the string `instruction`")
        instruction = self.task_text = given["instruction"]
        self._fields = given.get("fields") or self._page.fields(instruction)
        self._screen = Screen([], instruction, split(instruction), self._screen.size)
        return self._look("0")

    def _stained(self) -> bool:
        """Whether the last episode left something that a reload does not take away, or a browser that is gone."""
        if self._tab is None or not self._fresh:
            return False
        if not self._browser.running:
            return True
        left = "sessionStorage.length + localStorage.length + document.cookie.length"
        return self._page.address.startswith("http") or bool(self._tab.ask(left))

    def _kept(self) -> bool:
        """Whether this page needs no reload: its episodes are proven the same without."""
        return not self.config.page and self.task in repeating()

    def _acting(self, act: Act) -> tuple[Observation, dict]:
        tab, problem = self._opened(), act.problem
        if not (self._done or self.config.dry_run):
            if act.kind != "stop":
                self._wait()
            problem = do(act, tab)
        elif self._done:
            problem = "the episode is over"
        if act.element is not None and not problem:
            self._acted.add(act.element["row"])
        observation, info = self._look(str(self.config.tick_ms))
        if problem:
            info["problem"] = problem
        return observation, info

    def _look(self, tick: str) -> tuple[Observation, dict]:
        """Lets the clock advance and sees what is there."""
        tab = self._opened()
        outcome = self._page.outcome
        look = f"({{...__flowhand.observe(), outcome: {outcome}, hidden: {look_of(self.task)}}})"
        seen = tab.ask(f"(async () => {{ await __flowhand.advance({tick}); return {look}; }})()")
        while tab.settle() or tab.loading:
            seen = tab.ask(f"(async () => {{ await __flowhand.frame(); return {look}; }})()")
        self._judge(seen["outcome"])
        elements, left_out = self._rows.place(seen["page"], seen["elements"])
        rows = {each["row"] for each in elements}
        self._acted &= rows
        screen = self._screen = Screen(elements, self._screen.instruction, self._screen.words, self._screen.size)
        info: dict[str, Any] = {"expert_observation": self._all(seen["address"], seen["hidden"]), "success": False}
        missing = {"elements": left_out, "words": max(0, len(screen.words) - WORDS)}
        if any(missing.values()):
            info["left_out"] = missing
            self._warn(missing)
        if seen["refused"]:
            info["refused"] = seen["refused"]
        if tab.blocked:
            info["blocked"], tab.blocked = tab.blocked, []
        if isinstance(seen["outcome"], dict) and isinstance(seen["outcome"].get("failure"), str):
            info["failure"] = seen["outcome"]["failure"]
        return self._observation(), info

    def _judge(self, outcome: Any) -> None:
        """Takes in the page's reward and whether the episode is over."""
        reward = outcome.get("reward") if isinstance(outcome, dict) else None
        done = outcome.get("done") if isinstance(outcome, dict) else None
        if not isinstance(reward, int | float) or not math.isfinite(reward) or not isinstance(done, bool):
            raise ValueError(f"flowhand.reward returned {outcome!r}, expected an object with `reward` and `done`")
        self._reward, self._done = float(reward), done

    def _observation(self) -> Observation:
        seen, observes = {"words": word_array(self._screen.words)}, self.config.observes
        if observes != "pixels":
            seen |= element_arrays(self._screen.elements, self._acted, self.config.width)
        if observes != "elements":
            seen["screen"] = self._opened().picture()
        return {name: seen[name] for name in self.features.observation}

    def _all(self, address: str, hidden: Any) -> dict[str, Any]:
        """What an expert may see."""
        elements = [{**each, **strings(each), "tag": each["tag"]} for each in self._screen.elements]
        for each in elements:
            each["acted"] = each["row"] in self._acted
        words = [word._asdict() for word in self._screen.words]
        screen = {"instruction": self._screen.instruction, "words": words, "fields": dict(self._fields)}
        return {**screen, "address": address, "elements": elements, "hidden": hidden}

    def _warn(self, missing: dict[str, int]) -> None:
        if not self._warned:
            self._warned = True
            text = "web task %s, seed %d: %d elements and %d words have no row among %d and %d (info['left_out'])"
            given = (self.task, self._seed, missing["elements"], missing["words"], ELEMENTS, WORDS)
            logger.warning(text, *given)

    def _wait(self) -> None:
        """Waits until another action is allowed in this minute."""
        most, times = self.config.actions_per_minute, self._times
        if not most:
            return
        while len(times) >= most:
            time.sleep(max(0.0, times.popleft() + 60 - time.monotonic()))
        times.append(time.monotonic())

    def _hosts(self) -> list[str]:
        return sorted({each.split("//")[1].split(":")[0] for each in self.config.allow_origins})

    def _opened(self) -> Tab:
        """The tab; opened, in a new browser if the last one has died."""
        if self._tab is None:
            if not self._browser.running:
                release(self._browser)
                self._browser = acquire(self._hosts())
            config = self.config
            size, roots = (config.width, config.height), [self._page.root, *(f"{o}/" for o in config.allow_origins)]
            settings = {"never": list(config.never), "ignore": self._page.ignore}
            self._tab = Tab(self._browser, size, self._page.window or size, roots, settings, config.timeout_s)
        return self._tab

    def _drop(self) -> None:
        """Closes the tab, whatever state it is in."""
        tab, self._tab, self._fresh = self._tab, None, False
        if tab is not None:
            try:
                tab.close()
            except BrowserError as error:
                logger.debug("the tab of %s: %s", self.task, error)


def _features(config: WebConfig) -> Spec:
    seen = observation_features()
    screen = Feature((config.height, config.width, 3), "uint8", "", camera="screen")
    if config.observes == "pixels":
        return Spec({"words": seen["words"], "screen": screen}, pixel_action_feature(), None)
    return Spec(seen | ({"screen": screen} if config.observes == "both" else {}), action_feature(), None)
