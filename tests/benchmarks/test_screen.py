"""The benchmark of screens: what its cells are, and how two arms are compared."""

from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import cells, screen
from envs.web.tasks import SETS
from flowhand.contracts.screen.fields import WORDS


def plan(**options):
    asked = {"part": ["orders"], "arms": list(screen.ARMS), "episodes": 4, "steps": 0, "demonstrations": 200}
    return screen.plan(Namespace(**asked, first_seed=screen.FIRST_SEED, **options))


def test_a_cell_is_one_arm_on_one_task_with_one_seed_and_composes():
    asked = plan()
    assert len({cell.name for cell in asked}) == len(asked) == 5 * len(screen.PARTS["orders"].arms) * len(screen.ORDERS)
    config = cells.configure(asked[0].overrides, 4)
    assert [getattr(each, "task", "") for each in config.env.each()] == list(screen.ORDERS)
    assert (config.data.episodes, config.train.steps, config.head.kind) == (200, 1500, "flow")


def test_arms_of_one_head_share_a_policy():
    policies = {cell.arm: cell.policy for cell in plan()}
    assert policies["flow-1"] == policies["flow-4"] != policies["tokens"]


def test_the_blind_arm_alone_does_not_see_the_instruction():
    (cell,) = screen.plan(
        Namespace(part=["blind"], arms=["blind"], episodes=0, steps=0, demonstrations=9, first_seed=10**6)
    )
    arms = {each.arm: each for each in (cell, *plan())}
    seen = {arm: vars(cells.configure(each.overrides, 4).encoder)["words"] for arm, each in arms.items()}
    assert seen == {arm: arm != "blind" for arm in screen.ARMS}


def test_the_tasks_are_those_that_are_named_as_a_set():
    assert set(screen.TASKS) == set(SETS["screen-25"])
    assert WORDS == 40


def test_a_difference_is_that_of_the_same_episodes_with_its_interval():
    asked = [cell for cell in plan() if cell.arm in ("flow-1", "tokens") and cell.task in screen.LENGTHS]
    random = np.random.default_rng(1)
    finished = {}
    for cell in asked:
        share = 0.9 if cell.arm == "tokens" else 0.8
        bits = "".join("1" if each < share else "0" for each in random.random(150))
        finished[replace(cell, episodes=150)] = {"outcomes": bits}
    found = screen.compared(finished, "flow-1", "tokens")
    assert found is not None
    assert found["episodes"] == 5 * 4 * 150
    solved = {
        arm: [b == "1" for c, t in finished.items() if c.arm == arm for b in t["outcomes"]]
        for arm in ("flow-1", "tokens")
    }
    assert found["difference"] == pytest.approx(np.mean(solved["flow-1"]) - np.mean(solved["tokens"]))
    low, high = found["interval"]
    assert low < -0.1 < high
    assert not found["non_inferior"]
