"""What the server keeps of one connection's episode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.toy_server import ToyPolicy
from flowhand.contracts.features import Feature
from flowhand.contracts.noise import noise
from flowhand.contracts.planner import Planner
from flowhand.control.controller import Controller
from flowhand.deploy.server.config import ServerConfig
from flowhand.deploy.server.session import Session


def joints(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def request(value: float, **more: Any) -> dict[str, Any]:
    return {"joints": joints(value, 0, 0), "camera": np.full((8, 8, 3), value, np.uint8), **more}


def seen(histories: dict[str, np.ndarray]) -> list[float]:
    """The first joint at every step of the history."""
    np.testing.assert_array_equal(histories["camera"][:, 0, 0, 0], histories["joints"][:, 0])
    return histories["joints"][:, 0].tolist()


def test_the_toy_policy_is_what_a_server_takes():
    assert isinstance(ToyPolicy(), Planner)


def test_single_observations_become_a_history_that_starts_with_copies_of_the_first():
    session = Session(ToyPolicy(history=3))
    histories = [seen(session.read(request(value))) for value in (1, 2, 3, 4)]
    assert histories == [[1, 1, 1], [1, 1, 2], [1, 2, 3], [2, 3, 4]]


def test_histories_replace_what_was_kept():
    session = Session(ToyPolicy(history=3))
    session.read(request(9))
    camera = np.zeros((3, 8, 8, 3), np.uint8) + np.array([1, 2, 3], np.uint8)[:, None, None, None]
    given = {"joints": np.array([[1, 0, 0], [2, 0, 0], [3, 0, 0]], np.float32), "camera": camera}
    assert seen(session.read(given)) == [1, 2, 3]
    assert seen(session.read(request(4))) == [2, 3, 4]


def test_reset_starts_an_episode_with_its_seed():
    session = Session(ToyPolicy())
    session.read(request(1))
    session.decision = 5
    assert (session.seed, seen(session.read(request(2)))) == (0, [1, 2])
    assert seen(session.read(request(3, reset=7))) == [3, 3]
    assert (session.seed, session.decision) == (7, 0)
    session.read(request(4, reset=8, decision=6))
    assert (session.seed, session.decision) == (8, 6)


def test_values_keep_no_memory_of_the_message_and_are_of_the_policy_s_dtype():
    session = Session(ToyPolicy())
    message = request(1) | {"joints": np.array([1, 2, 3])}  # int64
    histories = session.read(message)
    assert histories["joints"].dtype == np.float32
    assert not any(np.shares_memory(histories[name], message[name]) for name in histories)


@pytest.mark.parametrize("prompt", ["pick up the block", "", "é\n" * 512])
def test_the_prompt_of_an_openpi_client_is_ignored(prompt):
    session, plain = Session(ToyPolicy()), Session(ToyPolicy())
    for value in (1, 2):
        told, expected = session.read(request(value, prompt=prompt)), plain.read(request(value))
        assert told.keys() == expected.keys()
        assert seen(told) == seen(expected)


def test_a_policy_may_observe_a_feature_called_prompt():
    policy = ToyPolicy()
    policy.spec.observation["prompt"] = Feature((2,), "float32", "")
    histories = Session(policy).read(request(1, prompt=np.array([3.0, 4.0])))
    assert histories["prompt"].tolist() == [[3, 4], [3, 4]]
    with pytest.raises(ValueError, match="observation 'prompt' has type str"):
        Session(policy).read(request(1, prompt="pick up the block"))


WRONG = [
    ([1, 2], "the request is a list"),
    ({"joints": joints(1, 2, 3)}, "the observation has 'joints', expected 'joints', 'camera'"),
    (request(1, extra=3), "the observation has 'joints', 'camera', 'extra', expected"),
    (request(1) | {"joints": [1, 2, 3]}, "'joints' has type list"),
    (request(1) | {"joints": joints(1, 2)}, r"'joints' has shape \(2,\), expected an array \(3,\) or \(2, 3\)"),
    (request(1) | {"joints": np.zeros((3, 3))}, r"'joints' has shape \(3, 3\)"),
    (request(1) | {"joints": np.zeros((2, 3))}, "some are histories"),
    (request(1) | {"joints": joints(1, np.nan, 3)}, "'joints' has NaN"),
    (request(1) | {"joints": np.array([1, 1e39, 3])}, "'joints' has NaN or infinity"),
    (request(1) | {"camera": np.zeros((8, 8, 3), np.float32)}, "'camera' is float32, expected uint8"),
    (request(1) | {"camera": np.zeros((8, 8, 3), np.uint16)}, "'camera' is uint16"),
    (request(1, reset=-1), "reset must be an integer"),
    (request(1, reset=2**32), "reset must be an integer"),
    (request(1, reset=True), "reset must be an integer"),
    (request(1, decision=1.0), "decision must be an integer"),
    (request(1, prompt="x" * 1025), "prompt must be a string of at most 1024 characters"),
    (request(1, prompt=b"pick up"), "prompt must be a string"),
    (request(1, prompt=joints(1, 2, 3)), "prompt must be a string"),
    (request(1, prompt=None), "prompt must be a string"),
]


@pytest.mark.parametrize(("message", "match"), WRONG)
def test_a_wrong_request_says_what_is_wrong_and_changes_nothing(message, match):
    session = Session(ToyPolicy())
    session.read(request(1, reset=3))
    with pytest.raises(ValueError, match=match):
        session.read(message)
    assert (session.seed, session.decision, seen(session.read(request(2)))) == (3, 0, [1, 2])


@pytest.mark.parametrize("kind", [np.uint8, np.uint32, np.int64, np.uint64])
def test_a_noise_seed_of_numpy_is_the_number_that_it_is(kind):
    expected = noise(7, 5, 2, (4, 2))
    assert not np.array_equal(noise(0, 5, 2, (4, 2)), expected)
    given: Any = kind(7)
    np.testing.assert_array_equal(noise(given, kind(5), 2, (4, 2)), expected)
    config = ServerConfig(noise_seed=given, inference_batch=kind(3))
    assert (config.noise_seed, type(config.noise_seed), type(config.inference_batch)) == (7, int, int)


@pytest.mark.parametrize("value", [True, np.True_, 1.0, "1", None])
def test_a_count_that_is_no_integer_is_refused(value):
    with pytest.raises(ValueError, match=r"inference_batch is .*, expected an integer"):
        ServerConfig(inference_batch=value)


def test_noise_is_that_of_the_local_controller():
    drawn: list[np.ndarray] = []

    class Recorder(ToyPolicy):
        def plan(self, observation, noise, prefix=None):
            drawn.append(noise[0].copy())
            return super().plan(observation, noise)

    policy = Recorder()
    controller = Controller(policy, noise_seed=5)
    controller.reset(seed=6)
    for _ in range(5):  # two steps per decision: 0, 2, 4
        controller.step(request(1))
    assert [d.tobytes() for d in drawn] == [noise(5, 6, n, (8, 2)).tobytes() for n in range(3)]
    assert noise(5, 6, 0, (8, 2)).tobytes() not in {noise(6, 5, 0, (8, 2)).tobytes(), noise(5, 6, 1, (8, 2)).tobytes()}
