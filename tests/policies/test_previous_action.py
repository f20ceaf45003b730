"""The previous action as an observation: the same in training, in every controller, and from a server's client."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch

from flowhand.contracts.data.episode import Episode
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.features import PREVIOUS, ChunkConfig, Feature, Spec
from flowhand.control.async_controller import AsyncController
from flowhand.control.controller import Controller
from flowhand.deploy.client import RemoteController
from policies import Windows

SENSED = Spec(
    {"state": Feature((3,), "float32", "rad", names=("elbow", "wrist", "twice")), "more": Feature((1,), "float32", "")},
    Feature((3,), "float32", "rad", (-9.0,) * 3, (2.5, 9.0, 9.0), names=("wrist", "finger", "elbow")),
    control_dt_s=0.1,
)
SPEC = SENSED.with_previous_action()
FIRST = {"state": np.array([1, 2, 3], np.float32), "more": np.zeros(1, np.float32)}
BEFORE = [2.0, 0.0, 1.0]  # wrist and elbow as the state has them, no state is called finger


class Counting:
    """A planner whose chunk is [n, n, n] for its n-th decision, n = 1, 2, ...; it notes the previous actions it saw."""

    spec, chunk, noise_shape = SPEC, ChunkConfig(2, 4, 1), (1,)

    def __init__(self) -> None:
        self.continues: dict[str, int] = {}
        self.seen: list[list[list[float]]] = []

    def plan(self, observation, noise, prefix=None):
        self.seen.append(observation[PREVIOUS][0].tolist())
        return np.full((len(noise), 4, 3), len(self.seen), np.float32)


EXPECTED = [[BEFORE, BEFORE], [BEFORE, [1, 1, 1]], [[1, 1, 1], [2, 2, 2]], [[2, 2, 2], [2.5, 3, 3]]]  # clipped at 2.5


def test_a_controller_fills_it_in():
    planner = Counting()
    controller = Controller(planner)
    for _ in range(2):  # a new episode forgets the last one
        planner.seen.clear()
        controller.reset(seed=0)
        for _ in range(4):
            controller.step(FIRST)
        assert planner.seen == EXPECTED
    with pytest.raises(ValueError, match=r"has \['more', 'previous_action', 'state'\], expected \['more', 'state'\]"):
        controller.step({**FIRST, PREVIOUS: np.zeros(3, np.float32)})


def test_an_asynchronous_controller_fills_it_in():
    class AtOnce:
        def submit(self, work, *arguments):
            from concurrent.futures import Future

            future: Future[Any] = Future()
            future.set_result(work(*arguments))
            return future

    planner, worker = Counting(), AtOnce()
    controller: Any = AsyncController(planner, execution=ExecutionConfig(execution_horizon=1), worker=worker)  # pyright: ignore[reportArgumentType]
    controller.reset(seed=0)
    actions = [controller.step(FIRST) for _ in range(4)]
    assert actions[0] is None  # the first chunk arrives at the next step, and the next decision begins after it
    assert [action is not None and action[1] for action in actions] == [False, 1, 1, 2]
    assert planner.seen == [[BEFORE, BEFORE], [BEFORE, [1, 1, 1]], [[1, 1, 1], [1, 1, 1]]]


def test_a_client_of_a_server_fills_it_in():
    class Served:
        timeout_s, messages = 1.0, []

        def connect(self):
            spec = {"spec": SPEC.to_dict(), "chunk_shape": [4, 3], "history": 2, "execution_horizon": 1}
            return {**spec, "control_dt_s": 0.1}

        def infer(self, message):
            self.messages.append(message[PREVIOUS].tolist())
            return {"actions": np.full((4, 3), len(self.messages), np.float32)}

        def close(self):
            pass

    client: Any = Served()
    with closing(RemoteController(client, ahead=0, wait_s=2.0)) as robot:
        for _ in range(4):
            assert robot.step(FIRST) is not None
    unclipped = [*EXPECTED[:3], [[2, 2, 2], [3, 3, 3]]]  # limits are the robot's
    assert client.messages == unclipped


def test_windows_of_demonstrations_have_the_same():
    action = np.arange(12, dtype=np.float32).reshape(4, 3)
    observation = {name: np.repeat(value[None], 4, axis=0) for name, value in FIRST.items()}
    zeros = np.zeros(4, np.float32)
    episode = Episode(observation, action, zeros, zeros.astype(bool), "", 0, 0.1)
    seen = Windows([episode, episode], SPEC, 2, 2).gather(torch.tensor([0, 1, 3, 4])).observation[PREVIOUS]
    first, *rest = [BEFORE, *action.tolist()]
    expected = [[first, first], [first, rest[0]], [rest[1], rest[2]], [first, first]]
    np.testing.assert_array_equal(seen.numpy(), expected)


def test_the_specification_says_so():
    assert list(SPEC.sensed) == ["state", "more"]
    assert Spec.from_dict(SPEC.to_dict()) == SPEC
    with pytest.raises(ValueError, match="there is an observation 'previous_action' already"):
        SPEC.with_previous_action()
    wrong = Feature((2,), "float32", "", kind=PREVIOUS)
    with pytest.raises(ValueError, match=r"has shape \(2,\), the action \(3,\)"):
        Spec({"state": SPEC.observation["state"], "mine": wrong}, SPEC.action, 0.1)
