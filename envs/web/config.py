"""The choice of a page, and what may be done there."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..base import EnvConfig, as_named
from .tasks import origin_of, require_allowed, tasks_of

OBSERVES = ("elements", "pixels", "both")
RELOADS = ("auto", "always")
LARGEST = 2000  # pixels of a side of the screen


@dataclass
class WebConfig(EnvConfig):
    """One page, and how it is seen.

    Raises:
        ValueError: an unknown choice, a number out of range, or a task that is refused.
    """

    kind: str = "web"
    # a page of MiniWoB++ or one of ours; several for one policy: [shop,click-link], or the set screen-25. Empty:
    # click-test-2, or the name of env.page
    task: Any = ""
    page: str = ""  # path of an HTML page of yours (docs/add_a_page.md), or its address, whose origin must be allowed
    observes: str = "elements"  # elements | pixels (and the instruction's words) | both
    reload: str = "auto"  # before an episode: auto (left out where episodes are proven the same) | always
    max_steps: int = 40  # actions of an episode
    tick_ms: float = 250.0  # by which the page's clock advances with each action, ms
    width: int = 160  # of the screen, pixels
    height: int = 210  # of the screen, pixels
    zoom: int = 2  # pixels of the video for one of the screen, each way
    timeout_s: float = 10.0  # longest wait for the page, s
    allow_origins: list[str] = field(default_factory=list)  # that the page may reach, e.g. http://localhost:8000
    never: list[str] = field(default_factory=list)  # selectors of what is never touched, beside [data-flowhand-never]
    actions_per_minute: int = 0  # at most, by waiting; 0: as many as come
    dry_run: bool = False  # actions are drawn into the picture and not done

    def __post_init__(self) -> None:
        self.task = self.task or (Path(self.page).stem if self.page else "click-test-2")
        tasks = tasks_of(self.task)
        if self.page and len(tasks) > 1:
            raise ValueError(f"env.page is {self.page}, which is one task, and env.task names {len(tasks)}")
        self.task = as_named(self.task, tasks)
        for task in [] if self.page else tasks:
            require_allowed(task)
        for name, known in (("observes", OBSERVES), ("reload", RELOADS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {' or '.join(known)}")
        for name in ("max_steps", "zoom"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        for name in ("width", "height"):
            if not 16 <= getattr(self, name) <= LARGEST:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 16 to {LARGEST} pixels")
        for name in ("tick_ms", "timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a positive number")
        if self.actions_per_minute < 0:
            raise ValueError(f"actions_per_minute is {self.actions_per_minute}, expected 0 or more")
        self.allow_origins = [origin_of(each) for each in self.allow_origins]
        if self.page.startswith(("http://", "https://")) and origin_of(self.page) not in self.allow_origins:
            raise ValueError(f"the page's origin {origin_of(self.page)} is not one of env.allow_origins")

    def each(self) -> list[WebConfig]:
        """See `EnvConfig`."""
        return [replace(self, task=name) for name in tasks_of(self.task)]
