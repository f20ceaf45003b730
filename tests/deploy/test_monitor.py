"""The monitor at work: alarms reach the runtime's safe action; scores depend on the seeds alone; calibration."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import pytest
import torch

from envs import DetourConfig, make
from flowhand.commands.calibrate import default_scores
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.export.band import Band
from flowhand.contracts.features import ChunkConfig, Feature, Spec
from flowhand.control.alarm import Monitor, Trace, WatchedAgent, write_traces
from flowhand.control.inference_thread import InferenceThread
from flowhand.control.journal import read
from flowhand.control.limits.config import SafetyConfig
from flowhand.control.replay import open_journal
from flowhand.control.runtime import REASONS, Runtime
from flowhand.control.runtime_config import RuntimeConfig
from flowhand.control.safety import Safety
from flowhand.control.sensors import SensorThread
from flowhand.evaluation.rollout import rollout
from policies import Policy, PolicyConfig
from policies.encoders import ENCODERS
from policies.heads import HEADS
from policies.monitor.calibrated import CalibratedMonitor, Calibration, MonitorConfig
from policies.monitor.scores import mmd2
from policies.monitor.watched_policy import WatchedPolicy
from policies.nets import NETS

SPEC = Spec(
    {"state": Feature((4,), "float32", ""), "goal": Feature((2,), "float32", "")},
    Feature((2,), "float32", "m/s", (-0.5,) * 2, (0.5,) * 2),
    0.05,
)


def policy_of(head: str = "flow", **options) -> Policy:
    config = PolicyConfig(
        ChunkConfig(1, 4, 2),
        encoder=ENCODERS["state"][0](width=8),
        net=NETS["mlp"][0](width=16, blocks=1),
        head=HEADS[head][0](**options),
    )
    policy = Policy(config, SPEC)
    with torch.no_grad():
        for p in policy.parameters():
            p.copy_(torch.randn(p.shape) / p.shape[-1] ** 0.5)
    policy.fit_normalizers({"state": torch.randn(50, 4), "goal": torch.randn(50, 2)}, torch.randn(50, 2) * 0.1)
    return policy.eval()


def calibrated(limit: float, scores=("acceleration", "stac")) -> CalibratedMonitor:
    """A band around 0 with spread 1."""
    zero = np.zeros((3, len(scores)))
    about = Calibration(MonitorConfig(list(scores), 0.05, 0.9, 4), "receding_horizon", 2, {}, 3_000_000, 1, 1)
    return CalibratedMonitor(about, Band(zero, zero + 1, limit, 0.05, 0.9, 20), None)


class Robot:
    """Stands still until a reading, from which on it is where no policy has been."""

    def __init__(self, strange_from: int):
        self.readings, self.strange_from, self.told = 0, strange_from, []

    def read(self):
        self.readings += 1
        factor = 1e3 if self.readings >= self.strange_from else 0.0
        return {"state": np.full(4, factor, np.float32), "goal": np.ones(2, np.float32)}

    def write(self, action):
        self.told.append(action.tolist())


@pytest.fixture
def patient(monkeypatch):
    """Waits for every answer however busy this machine is."""
    ask = SensorThread.ask
    monkeypatch.setattr(
        SensorThread, "ask", lambda self, request, _, late: ask(self, request, time.monotonic_ns() + 10**10, late)
    )


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("on_alarm", ["hold", "stop", "log"])
def test_an_alarm_reaches_the_safe_action(tmp_path, on_alarm):
    policy, execution, dt = policy_of(), ExecutionConfig(), 0.002
    quiet = WatchedPolicy(policy, ["acceleration"])
    for reading in range(2):  # of a decision where nothing is strange, and of one where all is
        robot = Robot(1 if reading else 99)
        batch = {name: value[None, None] for name, value in robot.read().items()}
        quiet.plan(batch, np.zeros((1, *policy.noise_shape), np.float32))
    (common,), (strange,) = quiet.scores_ND
    assert strange > 1.5 * common
    limit = (common * strange) ** 0.5

    monitor = Monitor(calibrated(limit, ["acceleration"]), policy, execution)
    safety = Safety.for_spec(SPEC, SafetyConfig(safe_action="vector", safe_vector=[0.01, -0.02]), dt)
    robot, journal = Robot(strange_from=6), open_journal(tmp_path / "journal", SPEC, {})
    inference_thread = InferenceThread(monitor.policy, execution, asynchronous=False)
    options = RuntimeConfig(on_overrun="catch_up", on_alarm=on_alarm, stop_s=0.002)
    runtime = Runtime(robot, inference_thread, safety, SPEC.observation, dt, options, monitor, journal)
    ended = runtime.run(15 * dt, seed=4)
    runtime.close()
    record = read(tmp_path / "journal").records
    told = [REASONS[step["refused"]] for step in record]
    first = 6  # readings count from 1 and decisions are made at steps 0, 2, 4, 6
    assert "alarm" not in told[:first]
    assert any("acceleration" in text and "above" in text and "decision 3" in text for text in runtime.report.alarms)
    if on_alarm == "hold":
        assert ended == "time"
        assert told[first:15] == ["alarm"] * 9  # it stands until the episode ends
        assert robot.told[first:15] == [[0.01, -0.02]] * 9
    elif on_alarm == "stop":
        assert ended == "alarm"
        assert robot.told[-1] == [0.01, -0.02]
        assert len(told) < 12
    else:
        assert "alarm" not in told
        assert ended == "time"


def test_an_alarm_stands_until_the_episode_ends():
    policy = policy_of()
    monitor = Monitor(calibrated(1e9), policy)
    observation = {"state": np.zeros((1, 1, 4), np.float32), "goal": np.zeros((1, 1, 2), np.float32)}
    noise = np.ones((1, *policy.noise_shape), np.float32)
    monitor.reset(0)
    assert monitor.observe({}, np.zeros(2)) == []
    monitor.policy.plan(observation, noise)
    assert monitor.observe({}, np.zeros(2)) == []
    monitor.policy.scores_ND.append([2e9, float("nan")])  # both are out
    alarms = monitor.observe({}, np.zeros(2))
    assert alarms == ["acceleration 2e+09 above 1e+09 at decision 1", "stac nan above 1e+09 at decision 1"]
    monitor.policy.scores_ND.append([0.0, 0.0])
    assert monitor.observe({}, np.zeros(2)) == alarms
    monitor.reset(0, again=True)  # after a hang; nothing is known to be well again
    assert monitor.observe({}, np.zeros(2)) == alarms
    monitor.reset(1)
    assert monitor.observe({}, np.zeros(2)) == []


def test_outcomes_and_scores_do_not_depend_on_what_runs_beside():
    policy, execution = policy_of(), ExecutionConfig(delay=1)
    watch = partial(WatchedPolicy, policy, ["acceleration", "entropy", "stac"], execution, 4)
    world = partial(make, DetourConfig(max_steps=9))
    told = []
    for seeds, n_envs, noise_seed in (([5, 6, 7], 1, 0), ([7, 6, 5], 3, 0), ([5, 6, 7], 2, 1)):
        agent = WatchedAgent(watch, execution, noise_seed)
        records = rollout(world, agent, seeds, n_envs=n_envs)
        told.append({r.seed: (r.steps, r.return_, agent.traces[r.seed].scores) for r in records})
        assert all(agent.traces[r.seed].steps == list(range(0, r.steps, 2)) for r in records)
    assert told[0] == told[1]
    assert told[0] != told[2]


def test_stac_knows_when_a_robots_decisions_were_made(monkeypatch):
    policy, execution, sampled = policy_of(), ExecutionConfig("temporal_ensembling"), []
    watched = WatchedPolicy(policy, ["stac"], execution, 4)
    sample = watched._sample
    monkeypatch.setattr(watched, "_sample", lambda *given: sampled.append(sample(*given)) or sampled[-1])
    inference_thread = InferenceThread(
        watched, execution, replaying=True
    )  # which hands a decision over when it is told to
    inference_thread.reset(seed=2)
    for step in range(10):  # decides at 0 for step 1, at 2, when that is there, and so on
        inference_thread.arrived = step in (1, 5, 9)
        inference_thread.step({"state": np.full(4, step, np.float32), "goal": np.ones(2, np.float32)})
    inference_thread.close()
    expected = [0.0]
    for n, apart in ((1, 1), (2, 3)):
        expected.append(float(mmd2(sampled[n][:, : 4 - apart].flatten(1), sampled[n - 1][:, apart:].flatten(1))))
    assert watched.scores_ND == [[score] for score in [*expected, 0.0]]  # the last is as late as a chunk is long
    assert min(expected[1:]) > 0


def test_an_alarms_control_step_is_that_of_its_decision(tmp_path):
    trace = Trace(3, ["acceleration"], [0, 2, 5], [[0.0], [1.0], [9.0]])
    band = calibrated(5.0, ["acceleration"]).band
    assert trace.alarm_step(band) == 5
    assert Trace(3, ["acceleration"], [0], [[0.0]]).alarm_step(band) is None
    write_traces(tmp_path / "traces.jsonl", [trace, trace])
    lines = (tmp_path / "traces.jsonl").read_text().splitlines()
    assert lines == ['{"seed": 3, "names": ["acceleration"], "steps": [0, 2, 5], "scores": [[0.0], [1.0], [9.0]]}'] * 2


def test_the_default_scores_cost_little():
    assert default_scores(policy_of(), ExecutionConfig()) == ["acceleration"]
    assert default_scores(policy_of("regression"), ExecutionConfig()) == ["logpzo"]
