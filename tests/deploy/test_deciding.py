"""Deciding beside the control: nothing waits, what happened is noted, and can be repeated to the last bit."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest

from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.features import ChunkConfig, Feature, Spec
from flowhand.contracts.planner import NOTHING
from flowhand.control.inference_thread import WARM_UP, InferenceThread
from flowhand.control.journal import read
from flowhand.control.limits.config import SafetyConfig
from flowhand.control.replay import open_journal, replay
from flowhand.control.runtime import REASONS, Runtime
from flowhand.control.runtime_config import RuntimeConfig
from flowhand.control.safety import Safety

SPEC = Spec({"step": Feature((1,), "float32", "")}, Feature((1,), "float32", ""), control_dt_s=0.02)


def see(step: float) -> dict[str, np.ndarray]:
    return {"step": np.array([step], np.float32)}


class Planner:
    """Answers the decision made at observation j with the actions 100 j + k, plus a little of the noise."""

    continues = NOTHING

    def __init__(self, T: int = 8, s: int = 4, noise: float = 0.0):
        self.spec, self.chunk, self.noise_shape, self.noise = SPEC, ChunkConfig(1, T, s), (T, 1), noise
        self.asked = 0
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def plan(self, observation, noise, prefix=None):
        self.asked += 1
        assert self.gate.wait(10)
        if self.error:
            raise self.error
        steps = np.arange(self.chunk.prediction_horizon, dtype=np.float32)[:, None]
        return 100 * observation["step"][:, -1:] + steps + np.float32(self.noise) * noise


def settle(inference_thread: InferenceThread) -> None:
    """Waits until the thread has computed what it was asked for."""
    assert inference_thread._worker is not None
    inference_thread._worker._thread.submit(int).result(10)


def test_within_the_control_step():
    inference_thread = InferenceThread(Planner(), asynchronous=False)
    inference_thread.reset(seed=0)
    seen = []
    for i in range(9):
        action = inference_thread.step(see(i))
        seen.append((action.item(), inference_thread.chunk_start, inference_thread.arrived))  # pyright: ignore[reportOptionalMemberAccess]
        time.sleep(0.001)
    assert [action for action, _, _ in seen] == [0, 1, 2, 3, 400, 401, 402, 403, 800]
    assert [start for _, start, _ in seen] == [i % 4 == 0 for i in range(9)]
    assert [arrived for _, _, arrived in seen] == [start for _, start, _ in seen]


def test_beside_the_control():
    """A decision is begun every 4 steps and there one step later: its first action is past by then."""
    inference_thread = InferenceThread(Planner())
    inference_thread.reset(seed=0)
    seen = []
    for i in range(11):
        action = inference_thread.step(see(i))
        seen.append((None if action is None else action.item(), inference_thread.arrived, inference_thread.chunk_start))
        settle(inference_thread)
    assert [action for action, _, _ in seen] == [None, 0, 1, 2, 3, 4, 501, 502, 503, 504, 901]
    assert [i for i, (_, arrived, _) in enumerate(seen) if arrived] == [1, 6, 10]
    assert [i for i, (_, _, start) in enumerate(seen) if start] == [1, 6, 10]
    inference_thread.close()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_time_goes_on_where_it_was_not_asked(asynchronous):
    """What the chunk has for the skipped steps is left out, and the next decision is due as if they had been taken."""
    inference_thread, seen = InferenceThread(Planner(), asynchronous=asynchronous), {}
    inference_thread.reset(seed=0)
    for i in (0, 1, 2, 5, 6, 7, 20, 21):
        inference_thread.skip(i - max(seen, default=i - 1) - 1)
        action = inference_thread.step(see(i))
        seen[i] = None if action is None else action.item()
        if asynchronous:
            settle(inference_thread)
    if asynchronous:  # each decision is there one step after it was begun; that of step 20 comes to an empty chunk
        assert seen == {0: None, 1: 0, 2: 1, 5: 4, 6: 501, 7: 502, 20: None, 21: 2001}
    else:
        assert seen == {0: 0, 1: 1, 2: 2, 5: 500, 6: 501, 7: 502, 20: 2000, 21: 2001}
    inference_thread.close()


def test_the_age_of_a_chunk_is_that_of_its_observation():
    for asynchronous in (False, True):
        inference_thread = InferenceThread(Planner(T=8, s=4), asynchronous=asynchronous)
        inference_thread.reset(seed=0)
        begun, ages = [], []
        for i in range(8):
            begun.append(time.monotonic())
            inference_thread.step(see(i))
            ages.append(inference_thread.chunk_age_s)
            time.sleep(0.01)
            if asynchronous:
                settle(inference_thread)
        decided_at = [0, 0, 0, 0, 4, 4, 4, 4] if not asynchronous else [0, 0, 0, 0, 0, 0, 5, 5]
        for i in range(1, 8):
            assert ages[i] == pytest.approx(begun[i] - begun[decided_at[i]], abs=0.008)


def test_no_step_waits_for_a_decision():
    planner = Planner()
    inference_thread = InferenceThread(planner)
    inference_thread.reset(seed=0)
    planner.gate.clear()  # from now on a decision takes for ever
    for i in range(5):
        assert inference_thread.step(see(i)) is None
    planner.gate.set()
    settle(inference_thread)
    assert planner.asked == WARM_UP + 1
    assert inference_thread.step(see(5)).item() == 0  # pyright: ignore[reportOptionalMemberAccess]
    inference_thread.close()


def test_what_the_planner_raises_is_raised_once_and_it_is_asked_again():
    planner = Planner()
    inference_thread = InferenceThread(planner)
    inference_thread.reset(seed=0)
    planner.error = ConnectionError("nobody there")
    inference_thread.step(see(0))
    settle(inference_thread)
    with pytest.raises(ConnectionError, match="nobody there"):
        inference_thread.step(see(1))
    planner.error = None
    inference_thread.reset(seed=0)
    inference_thread.step(see(2))
    settle(inference_thread)
    assert inference_thread.step(see(3)).item() == 200  # pyright: ignore[reportOptionalMemberAccess]
    inference_thread.close()


def test_simulated_delay_has_no_place_here():
    with pytest.raises(ValueError, match=r"execution\.delay and latencies are for simulation"):
        InferenceThread(Planner(), ExecutionConfig(delay=1))


class Robot:
    def __init__(self, events):
        self.events = events  # reading -> what to do then
        self.readings = 0
        self.told: list[tuple[float, float]] = []

    def read(self):
        self.readings += 1
        self.events.get(self.readings, int)()
        return see(self.readings)

    def write(self, action):
        self.told.append((time.monotonic(), action[0]))


def run(planner, path, seconds, asynchronous=True, config=None, events=None) -> tuple[Robot, np.ndarray]:
    robot, dt = Robot(events or {}), 0.02
    safety = Safety.for_spec(SPEC, config or SafetyConfig(max_observation_age_s=None), dt)
    inference_thread, journal = (
        InferenceThread(planner, asynchronous=asynchronous, noise_seed=3),
        open_journal(path, SPEC, {}),
    )
    runtime = Runtime(robot, inference_thread, safety, SPEC.observation, dt, RuntimeConfig(), journal=journal)
    runtime.run(seconds, seed=11)
    runtime.close()
    inference_thread.close()
    return robot, read(path).records


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_run_in_real_time_is_replayed_to_the_last_bit(tmp_path, asynchronous):
    """Whatever the timing was: with noise, an inference of random length, and a hang that restarts the policy."""

    class Slow(Planner):
        def plan(self, observation, noise, prefix=None):
            time.sleep(np.random.default_rng(self.asked).uniform(0, 0.03) + (0.4 if self.asked == WARM_UP + 6 else 0))
            return super().plan(observation, noise)

    _, records = run(Slow(noise=0.5), tmp_path / "journal", 1.5, asynchronous)
    done = replay(
        read(tmp_path / "journal"),
        InferenceThread(Planner(noise=0.5), asynchronous=asynchronous, noise_seed=3, replaying=True),
        Safety.for_spec(SPEC, SafetyConfig(max_observation_age_s=None), 0.02),
    )
    assert done.steps == (records["late"] == 0).sum() > 20
    assert done.actions == records["acted"].sum() > 10
    with pytest.raises(ValueError, match="the action was"):
        replay(
            read(tmp_path / "journal"),
            InferenceThread(Planner(noise=0.5), asynchronous=asynchronous, noise_seed=4, replaying=True),
            Safety.for_spec(SPEC, SafetyConfig(max_observation_age_s=None), 0.02),
        )


CHILD = """
import struct, sys
while data := sys.stdin.buffer.read(4):
    (step,) = struct.unpack("<f", data)
    sys.stdout.buffer.write(struct.pack("<8f", *(100 * step + k for k in range(8))))
    sys.stdout.buffer.flush()
"""


class InProcess(Planner):
    """Inference in a process of its own, which can be frozen and killed; a dead one is replaced."""

    child: subprocess.Popen | None = None

    def plan(self, observation, noise, prefix=None):
        self.child = self.child or subprocess.Popen([sys.executable, "-S", "-c", CHILD], bufsize=0, stdin=-1, stdout=-1)
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        with suppress(BrokenPipeError):
            self.child.stdin.write(observation["step"][0, -1].astype("<f4").tobytes())
        answer = self.child.stdout.read(32)
        if not answer:
            self.end()
            raise ConnectionError("the process is gone")
        return np.frombuffer(answer, "<f4").reshape(1, 8, 1)

    def end(self):
        child, self.child = self.child, None
        if child is not None:
            child.kill()
            child.communicate()


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_inference_that_is_killed_or_frozen(tmp_path, fault, asynchronous):
    """Every period has its command; the robot is held when the chunk has run out, and control recovers."""
    planner, struck = InProcess(), 15  # control step
    config = SafetyConfig(safe_action="vector", safe_vector=[-7.0], max_observation_age_s=None)

    def strike():
        process = planner.child
        assert process is not None
        process.send_signal(fault)
        if fault == signal.SIGSTOP:
            threading.Timer(0.5, process.send_signal, [signal.SIGCONT]).start()

    robot, records = run(planner, tmp_path / "journal", 2.0, asynchronous, config, {struck + 1: strike})
    planner.end()
    steps = records[(records["late"] == 0) & (records["step"] >= struck)]
    told = np.array([REASONS[i] for i in steps["refused"]])
    refused = (told != "") & (told != "stopped")
    assert (steps["safe"][refused] == -7.0).all()
    if fault == signal.SIGKILL:
        assert b"ConnectionError: the process is gone" in records["message"]
    else:
        since_s = (steps["due_ns"] - steps["due_ns"][0]) / 1e9
        frozen = (since_s > 9 * 0.02) & (since_s < 0.45)  # a chunk of 8 has run out
        assert frozen.sum() > 3
        # Where this machine is busy the reading of the robot may be late as well.
        assert set(told[frozen]) - {"late observation"} == {"no action" if asynchronous else "late inference"}
    assert (told[-30:-2] == "").sum() > 5  # it has recovered, as far as this machine keeps up
    gaps = np.diff([moment for moment, _ in robot.told])
    assert np.median(gaps) == pytest.approx(0.02, abs=0.01)
    done = replay(
        read(tmp_path / "journal"),
        InferenceThread(Planner(), asynchronous=asynchronous, noise_seed=3, replaying=True),
        Safety.for_spec(SPEC, config, 0.02),
    )
    assert done.steps == (records["late"] == 0).sum()


def test_a_stale_chunk_is_refused_before_it_has_run_out(tmp_path):
    class Hanging(Planner):
        def plan(self, observation, noise, prefix=None):
            if self.asked == WARM_UP + 1:
                time.sleep(0.3)
            return super().plan(observation, noise)

    config = SafetyConfig(max_chunk_age_s=0.12, max_observation_age_s=None)
    _, records = run(Hanging(T=40, s=4), tmp_path / "journal", 0.6, config=config)
    reasons = np.array([REASONS[record["refused"]] for record in records])
    assert "stale chunk" in reasons
    assert (records["chunk_age_s"][(reasons == "") & (records["late"] == 0)] <= 0.12).all()
    assert (records["chunk_age_s"][reasons == "stale chunk"] > 0.12).all()
