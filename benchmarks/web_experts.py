"""The scripted experts of the screen's tasks: how often they succeed, in how many actions, and what a plan saw.

    python -m benchmarks.web_experts [--episodes N] [--tasks TASK ...]

Each task runs on held-out seeds (from 1,000,000 on), once at elements and, for the tasks of bar 3, once at places. A
share below 1 is a ceiling for whoever learns from the expert. The results of earlier runs of the same day are kept, so
that tasks can be run in pieces.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from datetime import date
from functools import partial
from typing import Any

import envs
from benchmarks.result import FOLDER, write
from envs.web import WebConfig
from envs.web.experts import EXPERTS
from flowhand.contracts.observers import EpisodeBegins, Observer, StepTaken
from flowhand.contracts.screen.fields import NUMBERS
from flowhand.evaluation.rollout import rollout
from flowhand.evaluation.statistics import summarize

AT_PLACES = ("click-test-2", "click-button", "click-dialog-2", "drag-box", "count-sides")
SEED = 1_000_000
FILE = FOLDER / f"web_experts_cpu_{date.today().isoformat()}.json"


class Sizes(Observer):
    """The most elements and words that were seen, and the lengths of the plans."""

    def __init__(self) -> None:
        self.elements, self.words, self.plans = 0, 0, Counter[int]()

    def episode_begins(self, event: EpisodeBegins) -> None:
        """Counts the words of the instruction."""
        assert event.observation is not None
        self.words = max(self.words, int(event.observation["words"].any(-1).sum()))

    def step(self, event: StepTaken) -> None:
        """Counts what is on the screen."""
        assert event.observation is not None
        assert event.advice is not None
        if "elements" in event.observation:
            present = event.observation["elements"][:, NUMBERS.index("present")]
            self.elements = max(self.elements, int(present.sum()))
        self.plans[int((event.advice[:, 0] > 0).sum())] += 1


def measure(task: str, observes: str, episodes: int) -> dict[str, Any]:
    """One task's expert on held-out seeds."""
    sizes, started = Sizes(), time.perf_counter()
    config = WebConfig(task=task, observes=observes)
    records = rollout(partial(envs.make, config), "expert", range(SEED, SEED + episodes), observers=[sizes])
    failures = Counter(record.failure for record in records if not record.success)
    row = {
        "task": task,
        "observes": observes,
        **vars(summarize(records)),
        "failures": dict(failures),
        "failed_seeds": [record.seed for record in records if not record.success],
        "steps_per_episode": sum(record.steps for record in records) / len(records),
        "most_elements": sizes.elements,
        "most_words": sizes.words,
        "longest_plan": max(sizes.plans, default=0),
        "seconds_per_episode": (time.perf_counter() - started) / episodes,
    }
    print(f"{task:28s} {observes:9s} {row['successes']}/{episodes} {dict(failures)}", flush=True)
    return row


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=50, help="of each task")
    parser.add_argument("--tasks", nargs="*", default=[], help="some of them; none: all")
    arguments = parser.parse_args()
    cases = [(task, "elements") for task in sorted(EXPERTS)] + [(task, "pixels") for task in AT_PLACES]
    for task, observes in cases:
        if arguments.tasks and task not in arguments.tasks:
            continue
        row = measure(task, observes, arguments.episodes)
        print(write("web_experts", {"cells": [*_others(row), row]}, FILE, device="cpu", threads=1))


def _others(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of other cases in today's result."""
    cells = json.loads(FILE.read_text())["cells"] if FILE.exists() else []
    return [each for each in cells if (each["task"], each["observes"]) != (row["task"], row["observes"])]


if __name__ == "__main__":
    main()
