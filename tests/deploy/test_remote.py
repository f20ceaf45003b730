"""The robot's side: the right action at every step, and a clear sign in time whatever happens to the server."""

from __future__ import annotations

import base64
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
from websockets.sync.server import ServerConnection, serve

from benchmarks.toy_server import ToyPolicy
from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.history import History, fitting
from flowhand.contracts.noise import noise
from flowhand.control.controller import Controller
from flowhand.control.limits.config import SafetyConfig
from flowhand.control.runtime import Runtime
from flowhand.control.runtime_config import RuntimeConfig
from flowhand.control.safety import Safety
from flowhand.deploy.client import Client, RemoteController, pack
from flowhand.deploy.server.config import ServerConfig
from flowhand.deploy.server.server import metadata

PERIOD_S = 0.05  # of the toy policy
LATENESS_S = 0.4  # a busy test machine may keep a thread from running for so long


def observed(step: int) -> dict[str, np.ndarray]:
    return {"joints": np.full(3, step, np.float32), "camera": np.full((8, 8, 3), step % 200, np.uint8)}


def expected_from(step: int) -> np.ndarray:
    """The first action of an episode with seed 0 whose first observation is that of this step."""
    stacked = {name: np.stack([value, value])[None] for name, value in observed(step).items()}
    return ToyPolicy().plan(stacked, noise(0, 0, 0, (8, 2))[None])[0, 0]


@cache
def chunk_of(step: int, seed: int, decision: int) -> np.ndarray:
    """The chunk that the policy decides on at a step of an episode of `observed`."""
    history = [observed(max(0, step - 1)), observed(step)]
    stacked = {name: np.stack([each[name] for each in history])[None] for name in history[0]}
    return ToyPolicy().plan(stacked, noise(0, seed, decision, (8, 2))[None])[0]


def drive(robot: RemoteController, steps: range, period_s: float = PERIOD_S) -> list[np.ndarray | None]:
    """The actions of these control steps in real time; no step may take long."""
    actions = []
    for step in steps:
        start = time.monotonic()
        actions.append(robot.step(observed(step)))
        assert time.monotonic() - start < robot.wait_s + LATENESS_S
        time.sleep(max(0.0, period_s - (time.monotonic() - start)))
    return actions


def drive_until(
    robot: RemoteController, done: Callable[[np.ndarray | None], bool], start: int
) -> tuple[int, np.ndarray | None]:
    """Drives on until an action is as wanted; its step, and the action."""
    for step in range(start, start + 200):
        action = drive(robot, range(step, step + 1))[0]
        if done(action):
            return step, action
    raise AssertionError(f"not within 200 steps; the fault is {robot.fault!r}")


def missing(action: np.ndarray | None) -> bool:
    return action is None


def present(action: np.ndarray | None) -> bool:
    return action is not None


@contextmanager
def remote(uri: str, timeout_s: float = 1.0, **options) -> Iterator[RemoteController]:
    options = {"wait_s": 2.0, **options}
    robot = RemoteController(Client(uri, timeout_s=timeout_s), **options)
    try:
        yield robot
    finally:
        robot.close()


def test_a_seed_of_numpy_is_answered_as_the_number_that_it_is(serving):
    actions = []
    kinds: list[Any] = [int, np.uint32, np.int64]
    for kind in kinds:
        with remote(serving().uri, ahead=kind(0)) as robot:
            robot.reset(kind(7))
            actions.append(drive(robot, range(3)))
            assert not robot.fault
    np.testing.assert_array_equal(actions[1:], [actions[0]] * 2)


def test_without_lead_it_acts_as_the_local_controller_to_the_bit(serving):
    running = serving()
    local = Controller(ToyPolicy(), inference_batch=4)
    with remote(running.uri, ahead=0) as robot:
        for seed in (3, 4):
            robot.reset(seed)
            local.reset(seed=seed)
            for step in range(9):
                action = robot.step(observed(step))
                assert action is not None
                assert action.tobytes() == local.step(observed(step)).tobytes()
            assert robot.fault == ""


def test_with_lead_every_action_is_that_of_its_step(serving):
    running = serving()
    with remote(running.uri, ahead=1) as robot:
        robot.reset(5)
        actions = drive(robot, range(9))
    # Decided at steps 0, 2, 4 ...; the chunk of step 2 is in charge from step 3 on.
    for step, action in enumerate(actions):
        decision = max(0, (step - 1) // 2)
        np.testing.assert_array_equal(action, chunk_of(2 * decision, 5, decision)[step - 2 * decision])


def test_a_slow_network_is_bridged_with_the_chunk_at_hand(serving):
    running = serving()
    with relay(running.port) as link, remote(link.uri, ahead=1, execution_horizon=1) as robot:
        robot.reset(6)
        drive(robot, range(4))
        link.delay_s = 0.12  # more than two control periods
        actions = drive(robot, range(4, 24))
        assert robot.fault == ""
    ages = []
    for step, action in enumerate(actions, 4):
        starts = [start for number in range(24) for start in fits(action, step, seed=6, decision=number)]
        ages.append(step - starts[0])
    assert 3 <= max(ages) < 8  # old chunks were used, each at the step that it was made for


def fits(action: np.ndarray | None, step: int, seed: int, decision: int) -> list[int]:
    """The steps whose chunk, of this decision, has this action for this step."""
    assert action is not None
    starts = range(max(0, step - 7), step + 1)
    return [start for start in starts if chunk_of(start, seed, decision)[step - start].tobytes() == action.tobytes()]


class Relay:
    """A TCP relay in front of a server, which can hold back or swallow what passes."""

    def __init__(self, port: int):
        self.target = port
        self.delay_s = 0.0
        self.swallow = False
        self.door = socket.create_server(("127.0.0.1", 0))
        self.uri = f"ws://127.0.0.1:{self.door.getsockname()[1]}"
        self.sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.door.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            self.sockets += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(2**16):
                time.sleep(self.delay_s / 2)
                if not self.swallow:
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        self.door.shutdown(socket.SHUT_RDWR)
        for each in [self.door, *self.sockets]:
            each.close()


@contextmanager
def relay(port: int) -> Iterator[Relay]:
    with closing(Relay(port)) as link:
        yield link


def test_a_killed_server_is_noticed_in_time_and_its_successor_goes_on(process):
    server = process()
    with remote(server.uri, usable=5) as robot:
        robot.reset(7)
        drive(robot, range(3))
        server.end()
        stale, _ = drive_until(robot, missing, 3)
        assert stale <= 2 + 5 + 1  # the last chunk was decided at step 2 at the latest, or 3 if it got through
        assert "ConnectionError" in robot.fault
        process(port=server.port)
        back, _ = drive_until(robot, present, stale + 1)
        drive(robot, range(back + 1, back + 4))
        assert robot.fault == ""


def test_the_successor_answers_as_the_first_would_have(process):
    server = process()
    with remote(server.uri, ahead=0, execution_horizon=6) as robot:
        robot.reset(8)
        for step in range(6):
            robot.step(observed(step))
        server.end()
        action = robot.step(observed(6))  # of the old chunk, for there is no other
        assert fits(action, 6, seed=8, decision=0) == [0]
        process(port=server.port)
        step, _ = drive_until(robot, lambda _: robot.fault == "", 7)
        action = robot.step(observed(step + 1))
    assert fits(action, step + 1, seed=8, decision=1)  # the number of the decision that was not answered


def test_a_frozen_server_is_noticed_in_time_and_may_thaw(process):
    server = process()
    with remote(server.uri, timeout_s=0.3, usable=5, wait_s=0.01) as robot:
        drive_until(robot, present, 0)
        server.freeze()
        stale, _ = drive_until(robot, missing, 1)
        assert stale <= 12
        drive(robot, range(stale + 1, stale + 10))
        assert "TimeoutError" in robot.fault
        server.thaw()
        drive_until(robot, present, stale + 10)


def test_a_network_that_swallows_everything_is_noticed_and_may_come_back(serving):
    running = serving()
    with relay(running.port) as link, remote(link.uri, timeout_s=0.3, wait_s=0.01) as robot:
        drive_until(robot, present, 0)
        link.swallow = True
        stale, _ = drive_until(robot, missing, 1)
        drive(robot, range(stale + 1, stale + 10))
        assert "TimeoutError" in robot.fault
        link.swallow = False
        drive_until(robot, present, stale + 10)


@contextmanager
def impostor(answers: Callable[[], bytes | str | None]) -> Iterator[str]:
    """A server that greets like a good one and answers whatever it likes; None: closes the connection."""
    greeting = pack(metadata(ToyPolicy(), ServerConfig()))

    def handle(connection: ServerConnection) -> None:
        connection.send(greeting)
        for _ in connection:
            answer = answers()
            if answer is None:
                return
            connection.send(answer)

    with serve(handle, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


def actions(value: float = 0.5, shape: tuple[int, ...] = (8, 2), dtype: str = "<f4") -> bytes:
    return pack({"actions": np.full(shape, value, dtype)})


FAULTS = {
    "NaN": (actions(np.nan), "ValueError: the actions have NaN or infinity"),
    "infinity": (actions(np.inf), "ValueError: the actions have NaN or infinity"),
    "too few actions": (actions(shape=(7, 2)), r"ValueError: the actions have shape \[7, 2\]"),
    "another robot's": (actions(shape=(8, 3)), r"ValueError: the actions have shape \[8, 3\]"),
    "not a chunk": (actions(shape=(16,)), "ValueError: the answer has no actions"),
    "integers": (actions(1, dtype="<i4"), "ValueError: the answer has no actions"),
    "no actions": (pack({"other": 1}), "ValueError: the answer has no actions"),
    "no map": (pack([1]), "ValueError: the server sent a list"),
    "garbage": (b"\xc1\xff" * 50, "ValueError: invalid message"),
    "bomb": (b"\x91" * 90_000, "ValueError: invalid message"),
    "text": ("error: no", "RuntimeError: the server says: error: no"),
    "a book": ("x\n" * 5000, "RuntimeError: the server says: x x x"),
    "too large": (b"\0" * (2**24 + 1), "ConnectionError: no connection"),
    "a hang-up": (None, "ConnectionError: no connection"),
}


@pytest.mark.parametrize(("answer", "match"), FAULTS.values(), ids=FAULTS.keys())
def test_a_wrong_answer_is_a_fault_and_never_an_action(answer, match):
    good = [True]
    with impostor(lambda: actions() if good[0] else answer) as uri, remote(uri, usable=3) as robot:
        assert drive(robot, range(1))[0] is not None
        good[0] = False
        stale, _ = drive_until(robot, missing, 1)
        assert stale <= 8
        with pytest.raises(AssertionError, match=match):
            raise AssertionError(robot.fault)
        assert len(robot.fault) < 400
        assert "\n" not in robot.fault
        good[0] = True
        np.testing.assert_array_equal(drive_until(robot, present, stale + 1)[1], [0.5, 0.5])


def test_a_server_with_another_policy_is_refused(process, serving):
    running = serving()
    with relay(running.port) as link, remote(link.uri, timeout_s=0.5) as robot:
        drive_until(robot, present, 0)
        other = ToyPolicy()
        other.chunk.execution_horizon = 3
        link.target = serving(other).port
        running.stop()
        stale, _ = drive_until(robot, missing, 1)
        drive(robot, range(stale, stale + 10))
        assert "another policy" in robot.fault


def test_a_step_never_waits_longer_than_it_says():
    held = threading.Event()

    def answer() -> bytes:
        held.wait(5)
        return actions()

    with impostor(answer) as uri, remote(uri, timeout_s=3.0, wait_s=0.1) as robot:
        start = time.monotonic()
        assert robot.step(observed(0)) is None
        assert 0.09 < time.monotonic() - start < 0.1 + LATENESS_S
        assert robot.fault == "no chunk reaches step 0"
        held.set()


def test_an_answer_of_the_last_episode_is_not_used_in_the_next(serving):
    running = serving(ToyPolicy(sleep_s=0.15))
    with remote(running.uri, wait_s=0.0) as robot:
        robot.reset(1)
        assert robot.step(observed(50)) is None
        time.sleep(0.05)  # the request is out
        robot.reset(2)
        step, action = drive_until(robot, present, 0)
    assert len(fits(action, step, seed=2, decision=0)) == 1


def test_the_client_s_own_history_is_the_one_of_everybody_else(serving):
    """The client travels alone, so it has a history of its own."""
    features = ToyPolicy().spec.observation
    history = History(features, 2)
    with remote(serving().uri) as robot:
        for step in range(4):
            robot._observe(observed(step))
            history.see(fitting(observed(step), features))
            for name, values in history.arrays().items():
                np.testing.assert_array_equal(np.stack([seen[name] for seen in robot._history]), values)
        for wrong in ({"joints": np.zeros(3)}, {**observed(0), "more": 1}, {**observed(0), "joints": np.zeros(4)}):
            with pytest.raises(ValueError, match="observation") as own:
                robot._observe(wrong)
            with pytest.raises(ValueError, match="observation") as shared:
                fitting(wrong, features)
            assert str(own.value) == str(shared.value)


def test_a_server_clips_to_the_bounds_of_the_policy(serving):
    policy = ToyPolicy()
    action = Feature((2,), "float32", "rad/s", (-1.0, -np.inf), (1.0, np.inf))
    policy.spec = Spec(policy.spec.observation, action, policy.spec.control_dt_s)
    with remote(serving(policy).uri, ahead=0, wait_s=2.0) as robot:
        first = robot.step(observed(50))
        assert first is not None
        assert (first[0], first[1] > 1) == (1.0, True)


def test_an_observation_that_does_not_fit_is_an_error_of_the_caller(serving):
    with remote(serving().uri) as robot:
        with pytest.raises(ValueError, match=r"has \['joints'\], expected \['camera', 'joints'\]"):
            robot.step({"joints": np.zeros(3)})
        with pytest.raises(ValueError, match=r"'joints' has shape \(4,\)"):
            robot.step(observed(0) | {"joints": np.zeros(4)})
        action = robot.step(observed(2))  # the third step, and the first observation that could be used
        np.testing.assert_array_equal(action, expected_from(2))
        for wrong in (-1, 2**32, True):
            with pytest.raises(ValueError, match=rf"seed={wrong} must be an integer in \[0, 2\^32\)"):
                robot.reset(wrong)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ahead": -1}, "ahead=-1 must lie in 0..execution_horizon=2"),
        ({"ahead": 3}, "ahead=3 must lie in"),
        ({"wait_s": float("nan")}, "ahead=1 must lie in .*; wait_s=nan"),
        ({"execution_horizon": -1, "ahead": 0}, "execution_horizon=-1"),
        ({"execution_horizon": 8}, "usable=8 must lie in 9..8"),
        ({"usable": 2}, "usable=2 must lie in 3..8"),
        ({"usable": 9}, "usable=9 must lie in 3..8"),
    ],
)
def test_impossible_options_are_refused(serving, options, match):
    with pytest.raises(ValueError, match=match):
        RemoteController(Client(serving().uri), **options)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"history": 0}, "ValueError: a number is out of range"),
        ({"history": 10**9}, "ValueError: a number is out of range"),
        ({"control_dt_s": float("nan")}, "ValueError: a number is out of range"),
        ({"control_dt_s": "x"}, "TypeError"),
        ({"chunk_shape": [0, 2]}, "ValueError: a number is out of range"),
        ({"chunk_shape": None}, "TypeError"),
        ({"spec": {}}, "KeyError: 'observation'"),
        ({"spec": {"observation": [1]}}, "AttributeError"),
        ({"spec": {"observation": {"a": 1}}}, "TypeError"),
        ({"spec": {"observation": {}}}, "ValueError: a number is out of range"),
    ],
)
def test_metadata_of_no_use_are_refused(change, match):
    greeting = pack({**metadata(ToyPolicy(), ServerConfig()), **change})

    def greet(connection: ServerConnection) -> None:
        connection.send(greeting)
        connection.recv()

    with serve(greet, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        client = Client(f"ws://127.0.0.1:{server.socket.getsockname()[1]}")
        with pytest.raises(ValueError, match=f"does not describe a flowhand policy; {match}"):
            RemoteController(client)
        client.close()
        server.shutdown()
        thread.join()


def test_chunk_start_and_age_are_told(serving):
    with remote(serving().uri, ahead=0) as robot:
        robot.reset(1)
        starts, ages = [], []
        for step in range(6):
            robot.step(observed(step))
            starts.append(robot.chunk_start)
            ages.append(robot.chunk_age_s)
            time.sleep(0.03)
    assert starts == [True, False] * 3
    assert all(age < 0.01 for age in ages[::2])
    assert all(age >= 0.03 for age in ages[1::2])


class Plant:
    """A robot that notes what it is told."""

    def __init__(self):
        self.readings = 0
        self.told: list[np.ndarray] = []

    def read(self) -> dict[str, np.ndarray]:
        self.readings += 1
        return {"joints": np.zeros(3, np.float32), "camera": np.zeros((8, 8, 3), np.uint8)}

    def write(self, action: np.ndarray) -> None:
        self.told.append(action)


def test_on_the_runtime_a_dead_server_means_the_safe_action(process):
    server, plant, spec = process(), Plant(), ToyPolicy().spec
    safety = Safety.for_spec(spec, SafetyConfig(max_observation_age_s=None), PERIOD_S)
    with remote(server.uri, wait_s=0.02) as robot:
        runtime = Runtime(plant, robot, safety, spec.observation, PERIOD_S, RuntimeConfig(stop_s=0.0))
        killer = threading.Timer(0.5, server.end)
        killer.start()
        assert runtime.run(2.0, seed=1) == "time"
        killer.join()
        runtime.close()
    assert safety.counts["refusal: no action"] >= 2
    assert len(plant.told) >= 10  # commands to the end, whatever happened
    assert len({command.tobytes() for command in plant.told[-2:]}) == 1  # it holds
    assert len({command.tobytes() for command in plant.told}) > 2  # it moved before


def test_a_server_that_does_not_read_cannot_hold_the_client():
    def greet_and_stare(door: socket.socket) -> None:
        peer, _ = door.accept()
        lines = peer.recv(4096).decode().split("\r\n")
        key = next(line.split(": ")[1] for line in lines if line.lower().startswith("sec-websocket-key"))
        accept = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()
        head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        peer.sendall(f"{head}Sec-WebSocket-Accept: {accept}\r\n\r\n".encode() + b"\x82\x01\x80")  # an empty map
        over.wait(20)
        peer.close()

    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=greet_and_stare, args=(door,))
        thread.start()
        client = Client(f"ws://127.0.0.1:{door.getsockname()[1]}", timeout_s=0.3)
        assert client.connect() == {}
        start = time.monotonic()
        with pytest.raises((ConnectionError, TimeoutError)):
            client.infer({"camera": np.zeros(30_000_000, np.uint8)})  # more than the system buffers
        assert time.monotonic() - start < 5.0
        over.set()
        thread.join()
