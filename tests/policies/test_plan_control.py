"""Control by plans that stop: when it is decided anew, told by a planner that plays a script."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.features import ChunkConfig, Feature, Spec
from flowhand.contracts.planner import NOTHING
from flowhand.contracts.screen.fields import ACTIONS, FIELDS, NUMBERS, STRINGS, action_feature, observation_features
from flowhand.control.async_controller import AsyncController
from flowhand.control.controller import Controller

STOP, CLICK, DRAG, KEY = (float(ACTIONS.index(name)) for name in ("stop", "click", "drag", "key"))
SPEC = Spec(observation_features(), action_feature(), None)


def action(kind: float, element: int = 0, target: int = 0) -> np.ndarray:
    made = np.zeros(len(FIELDS), np.float32)
    made[:3] = kind, element, target
    return made


class Script:
    """A planner that answers with one plan after the other, and notes how often it was asked."""

    spec, chunk, noise_shape, continues = SPEC, ChunkConfig(1, 4, 4), (1,), NOTHING

    def __init__(self, *plans: list[np.ndarray]):
        self.plans, self.asked = list(plans), 0

    def plan(self, observation, noise, prefix=None):
        plan = self.plans[min(self.asked, len(self.plans) - 1)]
        self.asked += 1
        return np.stack([np.stack(plan)] * len(noise))


def screen(*texts: str, present: bool = True) -> dict[str, np.ndarray]:
    """Elements with these texts in rows 0, 1, ..."""
    seen = {name: np.zeros(f.shape, f.dtype) for name, f in SPEC.observation.items()}
    for row, text in enumerate(texts):
        seen["elements"][row, NUMBERS.index("present")] = present
        seen["element_strings"][row, STRINGS.index("text"), : len(text)] = list(text.encode())
    return seen


def played(script: Script, screens: list[dict[str, np.ndarray]]) -> list[tuple[float, int]]:
    """Kind of each action, and how often it had been decided by then."""
    controller, found = Controller(script), []
    controller.reset(0, 0)
    for seen in screens:
        kind = float(controller.step(seen)[0])
        found.append((kind, script.asked))
    return found


FOUR = [action(CLICK, 0), action(CLICK, 1), action(KEY, 0), action(CLICK, 0)]


def test_a_plan_is_followed_to_its_end_and_then_made_anew():
    assert played(Script(FOUR), [screen("a", "b")] * 6) == [
        (CLICK, 1),
        (CLICK, 1),
        (KEY, 1),
        (CLICK, 1),
        *[(CLICK, 2)] * 2,
    ]


def test_it_is_decided_where_the_next_action_stops():
    stops = [action(CLICK, 0), action(STOP), action(KEY, 0), action(KEY, 0)]
    assert played(Script(stops), [screen("a")] * 3) == [(CLICK, 1), (CLICK, 2), (CLICK, 3)]


def test_a_new_plan_that_begins_with_a_stop_waits_one_step_and_what_follows_is_not_done():
    waits = [action(STOP), action(KEY, 0), action(KEY, 0), action(KEY, 0)]
    assert played(Script(waits, FOUR), [screen("a", "b")] * 3) == [(STOP, 1), (CLICK, 2), (CLICK, 2)]
    assert played(Script(waits), [screen("a", "b")] * 3) == [(STOP, 1), (STOP, 2), (STOP, 3)]


@pytest.mark.parametrize(
    ("now", "again"),
    [
        (screen("a", "b"), False),
        (screen("a", "other"), True),
        (screen("other", "b"), False),  # the next action does not point at it
        (screen("a"), True),
    ],
)
def test_it_is_decided_where_the_next_action_points_at_what_is_gone(now, again):
    found = played(Script(FOUR), [screen("a", "b"), now])
    assert found[1][1] == 1 + again


def test_what_an_action_does_not_use_may_be_gone_and_a_second_element_may_not():
    drag = [action(CLICK, 0), action(DRAG, 0, 1), *FOUR[2:]]
    click = [action(CLICK, 0), action(CLICK, 0, 1), *FOUR[2:]]
    for plan, asked in ((drag, 2), (click, 1)):
        assert played(Script(plan), [screen("a", "b"), screen("a")])[1][1] == asked


def test_lanes_decide_for_themselves():
    stops = [action(CLICK, 0), action(CLICK, 1), action(STOP), action(STOP)]
    controller = Controller(Script(stops), inference_batch=2)
    alone = [played(Script(stops), [screen("a", each) for each in texts]) for texts in ("bbb", "bcc")]
    for lane in (0, 1):
        controller.reset(lane, lane)
    kinds = []
    for step in range(3):
        acted = controller.act({lane: screen("a", texts[step]) for lane, texts in ((0, "bbb"), (1, "bcc"))})
        kinds.append([float(acted[lane][1]) for lane in (0, 1)])
    assert kinds == [[0, 0], [1, 0], [0, 1]]
    assert [asked for _, asked in alone[0]] == [1, 1, 2]
    assert [asked for _, asked in alone[1]] == [1, 2, 2]


def clicks(acted: np.ndarray | None) -> bool:
    return acted is not None and acted[0] == CLICK


def test_a_thread_that_decides_gives_no_action_until_the_new_plan_is_there():
    class Later(Executor):
        """Runs what it is given when it is told."""

        def submit(self, fn, /, *args, **kwargs):
            self.run = lambda: self.future.set_result(fn(*args, **kwargs))
            self.future: Future = Future()
            return self.future

        def shutdown(self, wait=True, *, cancel_futures=False):
            pass

    later, stops = Later(), [action(CLICK, 0), action(STOP), action(KEY), action(KEY)]
    with AsyncController(Script(stops), worker=later) as controller:
        controller.reset(seed=0)
        assert controller.step(screen("a")) is None
        later.run()
        assert clicks(controller.step(screen("a")))
        assert controller.step(screen("a")) is None  # in place of the stop
        assert controller.step(screen("a")) is None
        later.run()
        assert clicks(controller.step(screen("a")))


def test_plans_that_stop_are_neither_averaged_nor_delayed():
    refused: list[dict[str, Any]] = [{"mode": "temporal_ensembling"}, {"delay": 1, "execution_horizon": 2}]
    for options in refused:
        with pytest.raises(ValueError, match="is not possible with plans that stop: the world waits"):
            Controller(Script(FOUR), execution=ExecutionConfig(**options))


def test_where_no_action_stops_all_is_as_before():
    script = Script(FOUR)
    script.spec = replace(SPEC, action=Feature((8,), "float32", ""))
    stop = [action(STOP)] * 4
    script.plans = [stop]
    assert played(script, [screen("a")] * 5) == [(STOP, 1)] * 4 + [(STOP, 2)]
