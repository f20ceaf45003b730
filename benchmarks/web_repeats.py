"""Which pages of MiniWoB++ need no reload before an episode: those whose episodes are the same with and without.

    python -m benchmarks.web_repeats tasks=[click-button,enter-text]

Episodes of 20 seeds: clicks at what can be clicked, typing into fields, and drags. Those after a reload
run from the first seed to the last, those without from the last to the first, so that each follows another. The tasks
with equal observations, rewards and ends go into envs/web/repeating.json, whose other entries stay as they are.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from tqdm import tqdm

from envs.web import WebConfig, WebEnv
from envs.web.tasks import MINIWOB_FIRST, REPEATING
from flowhand.contracts.durable import write_whole
from flowhand.contracts.screen.fields import ACTIONS, FIELDS

SEEDS = range(1000, 1020)
STEPS = 4


class Kept(WebEnv):
    """Never reloads the page."""

    def _kept(self) -> bool:
        return True


def action(screen: dict[str, Any], seed: int, k: int) -> np.ndarray:
    """At each third step a drag from one element to another, else typing a word into a field or a click."""
    elements, words = screen["elements"], len(screen["words"])
    active = [each for each in elements if each["active"]] or elements
    values = np.zeros(len(FIELDS), np.float32)
    if k % 3 == 1:
        pair = elements[seed % len(elements)]["row"], elements[(seed + 1 + k) % len(elements)]["row"]
        values[:3] = ACTIONS.index("drag"), *pair
        return values
    element = active[(seed + 3 * k) % len(active)]
    types = element["tag"] in ("input", "textarea") and element["kind"] in ("", "text", "password") and words
    values[:2] = ACTIONS.index("type" if types else "click"), element["row"]
    values[3] = values[4] = (seed + k) % words if types else 0
    return values


def episode(env: WebEnv, seed: int) -> str:
    """All that the world says in an episode, whose actions depend on the seed and on what it says."""
    _, info = env.reset(seed=seed)
    said = [info]
    for k in range(STEPS):
        screen = said[-1]["expert_observation"]
        if not screen["elements"]:
            break
        step = env.step(action(screen, seed, k))
        said.append(step[4] | {"reward": step[1], "ends": step[2:4]})
        if step[2]:
            break
    return json.dumps(said)


def repeats(task: str) -> bool:
    """Whether all the episodes are the same."""
    fresh, kept = WebEnv(WebConfig(task=task, reload="always")), Kept(WebConfig(task=task))
    try:
        reloaded = {seed: episode(fresh, seed) for seed in SEEDS}
        return all(episode(kept, seed) == reloaded[seed] for seed in reversed(SEEDS))
    finally:
        fresh.close()
        kept.close()


def main() -> None:
    """Entry point."""
    given = [each.removeprefix("tasks=[").removesuffix("]") for each in sys.argv[1:]]
    tasks = given[0].split(",") if given else MINIWOB_FIRST
    known: dict[str, Any] = json.loads(REPEATING.read_text()) if REPEATING.exists() else {"tasks": [], "others": []}
    for task in (bar := tqdm(tasks)):
        bar.set_description(task)
        one, other = ("tasks", "others") if repeats(task) else ("others", "tasks")
        known[one] = sorted({*known[one], task})
        known[other] = sorted({*known[other]} - {task})
        env = WebEnv(WebConfig(task=task))
        known |= {"seeds": len(SEEDS), "version": env.version}
        env.close()
        write_whole(REPEATING, (json.dumps(known, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
