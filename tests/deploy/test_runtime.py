"""The runtime against robots, policies and monitors that fail in every way they can."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections import Counter

import numpy as np
import pytest

from flowhand.contracts.features import Feature, Spec
from flowhand.control.background import LINES
from flowhand.control.journal import read
from flowhand.control.limits.config import SafetyConfig
from flowhand.control.replay import open_journal, replay
from flowhand.control.runtime import REASONS, Runtime
from flowhand.control.runtime_config import RuntimeConfig
from flowhand.control.safety import Safety
from flowhand.control.sensors import SEED_STEP, SensorThread
from flowhand.control.timing import on_signals, real_time, wait_until

SPEC = Spec({"count": Feature((1,), "float32", "")}, Feature((2,), "float32", "", (-100.0,) * 2, (100.0,) * 2), 0.01)
DT = 0.02


class Robot:
    """Counts its readings; notes what it is told, and when."""

    command: np.ndarray | None = None
    over = False

    def __init__(self):
        self.readings = 0
        self.told: list[list[float]] = []
        self.times: list[float] = []
        self.events: dict[int, object] = {}  # reading -> what happens then
        self.refuses: set[int] = set()  # writings that raise
        self.writes = 0

    def read(self):
        self.readings += 1
        happens = self.events.get(self.readings)
        if isinstance(happens, tuple):
            time.sleep(happens[0])  # hangs, and then raises
            raise happens[1]
        if isinstance(happens, Exception):
            raise happens
        if isinstance(happens, float):
            time.sleep(happens)  # hangs
        if isinstance(happens, dict):
            return happens
        return {"count": np.array([self.readings], np.float32)}

    def write(self, action):
        self.writes += 1
        if self.writes in self.refuses:
            raise ConnectionError("the cable is out")
        self.told.append(action.tolist())
        self.times.append(time.monotonic())
        assert action.dtype == np.float64


class Policy:
    """Answers reading n with [n, steps since its reset], unless something else is to happen at it."""

    def __init__(self, events=None):
        self.events = events or {}
        self.seeds: list[int] = []

    def reset(self, *, seed):
        self.seeds.append(seed)
        self.steps = 0

    def step(self, observation):
        count = int(observation["count"][0])
        self.steps += 1
        happens = self.events.get(count)
        if isinstance(happens, tuple):
            time.sleep(happens[0])  # hangs, and then raises
            raise happens[1]
        if isinstance(happens, Exception):
            raise happens
        if isinstance(happens, float):
            time.sleep(happens)  # hangs
        if isinstance(happens, list):
            return np.array(happens, np.float32)
        return None if happens == "nothing" else np.array([count, self.steps], np.float32)


class Monitor:
    def __init__(self, alarms):
        self.alarms, self.seeds, self.again = alarms, [], []

    def reset(self, seed, again):
        self.seeds.append(seed)
        self.again.append(again)

    def observe(self, observation, action):
        happens = self.alarms.get(int(observation["count"][0]), [])
        if isinstance(happens, Exception):
            raise happens
        if isinstance(happens, float):
            time.sleep(happens)  # hangs
            return []
        return happens


@pytest.fixture
def patient(monkeypatch):
    """Waits for every answer however busy this machine is: for tests of what happens, not of when."""
    ask = SensorThread.ask

    def waiting(self, request, deadline_ns, late):
        return ask(self, request, time.monotonic_ns() + 10**10, late)

    monkeypatch.setattr(SensorThread, "ask", waiting)


def make(robot, policy, tmp_path=None, monitor=None, safety=None, dt=0.002, **options) -> Runtime:
    safety = Safety.for_spec(SPEC, safety or SafetyConfig(max_observation_age_s=None), dt)
    journal = open_journal(tmp_path / "journal", SPEC, {}) if tmp_path else None
    config = RuntimeConfig(**{"on_overrun": "catch_up", **options})
    return Runtime(robot, policy, safety, SPEC.observation, dt, config, monitor, journal)


def records(tmp_path):
    return read(tmp_path / "journal").records


def steps(tmp_path):
    """The control steps, without answers that came late on a busy machine."""
    journal = records(tmp_path)
    return journal[journal["late"] == 0]


def reasons(tmp_path) -> list[str]:
    return [REASONS[record["refused"]] for record in steps(tmp_path)]


@pytest.mark.usefixtures("patient")
def test_the_robot_is_told_what_the_policy_decides(tmp_path):
    robot, policy = Robot(), Policy()
    runtime = make(robot, policy, tmp_path)
    assert runtime.run(20 * 0.002, seed=7) == "time"
    runtime.close()
    assert robot.told == [*([n, n] for n in range(1, 21)), [20, 20]]  # at the end it is held
    assert policy.seeds == [7]
    report = runtime.report
    assert (report.steps, report.sent, report.skipped, report.ended) == (21, 21, 0, "time")
    assert report.counts == {"refusal: stopped": 1}
    journal = records(tmp_path)
    assert journal["step"].tolist() == list(range(21))
    assert (np.diff(journal["due_ns"]) == 2_000_000).all()  # on the grid, whatever a step took
    for earlier, later in (("due_ns", "woke_ns"), ("woke_ns", "observed_ns"), ("observed_ns", "decided_ns")):
        assert (journal[earlier] <= journal[later])[:20].all()
    assert (journal["decided_ns"] <= journal["sent_ns"]).all()
    assert journal["observation.count"][:20, 0].tolist() == list(range(1, 21))
    assert journal["action"][:20].tolist() == robot.told[:20]
    assert journal["safe"].tolist() == robot.told


def test_steps_begin_on_an_absolute_grid_and_never_early(tmp_path):
    robot = Robot()
    runtime = make(robot, Policy(), tmp_path, dt=DT)
    start = time.monotonic()
    runtime.run(25 * DT, seed=0)
    assert time.monotonic() - start >= 26 * DT  # one period before the first step, one stop at the end
    journal = steps(tmp_path)
    assert (journal["woke_ns"] >= journal["due_ns"]).all()
    assert (np.diff(journal["due_ns"]) == round(DT * 1e9)).all()
    late_ms = (journal["woke_ns"] - journal["due_ns"]) / 1e6
    summary = runtime.report.summary()
    assert summary["woke_ms"]["max"] == pytest.approx(late_ms.max())
    assert summary["woke_ms"]["p50"] == pytest.approx(np.median(late_ms))
    sent = journal["sent_ns"]
    assert summary["jitter_ms"]["max"] == pytest.approx(np.abs(np.diff(sent) / 1e6 - 1e3 * DT).max())
    assert summary["misses"] == (sent - journal["due_ns"] > DT * 1e9).sum()
    assert np.median(late_ms) < 1e3 * DT


def test_commands_can_be_sent_at_an_even_pace(tmp_path):
    """Not before their share of the period, however soon the policy has answered."""
    runtime = make(Robot(), Policy(), tmp_path, dt=DT, send_at=0.5)
    runtime.run(15 * DT, seed=0)
    journal = steps(tmp_path)
    assert (journal["sent_ns"] - journal["due_ns"] >= 0.5 * DT * 1e9).all()
    assert np.median(journal["decided_ns"] - journal["due_ns"]) < 0.5 * DT * 1e9


@pytest.mark.parametrize("where", ["read", "policy", "monitor"])
def test_a_hang_brings_the_safe_action_in_time_and_control_recovers(where, tmp_path):
    """For half a second nothing answers; the robot is told the safe action within the budget, and in every period."""
    dt = 0.05
    robot, policy, monitor = Robot(), Policy(), Monitor({})
    {"read": robot.events, "policy": policy.events, "monitor": monitor.alarms}[where][6] = 0.5
    config = SafetyConfig(safe_action="vector", safe_vector=[-1.0, -2.0], max_observation_age_s=None)
    runtime = make(robot, policy, tmp_path, monitor, config, dt, budget=0.6, on_overrun="skip")
    runtime.run(1.5, seed=3)
    journal, on_time = records(tmp_path), steps(tmp_path)
    dropped = journal[(journal["late"] == 1) & (journal["observation.count"][:, 0] == 6)]
    assert len(dropped) == 1  # the answer that came too late
    struck = on_time[on_time["step"] >= dropped["step"][0]]
    during = struck[struck["due_ns"] - struck["due_ns"][0] < 0.45e9]
    stage = {"read": "late observation", "policy": "late inference", "monitor": "late monitor"}[where]
    assert {REASONS[index] for index in during["refused"]} == {stage}
    assert (during["safe"] == [-1.0, -2.0]).all()
    waited_s = (struck["sent_ns"] - struck["due_ns"])[0] / 1e9
    assert 0.6 * dt <= waited_s < 0.6 * dt + 0.1  # the budget, and some time for a busy machine
    assert (struck["refused"][-10:] == 0).any()
    assert policy.seeds[:2] == [3, 3 + SEED_STEP]  # it begins anew: what it had planned is past


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("where", "happens", "reason", "restarts"),
    [
        ("policy", RuntimeError("no idea"), "inference error", 1),
        ("policy", [math.nan, 0.0], "not finite", 0),
        ("policy", [1.0, math.inf], "not finite", 0),
        ("policy", [1.0], "shape", 0),
        ("policy", "nothing", "no action", 0),
        ("read", OSError("camera lost"), "observation error", 0),
        ("read", {}, "observation error", 0),
        ("read", {"count": np.zeros(2)}, "observation error", 0),
        ("read", {"count": np.array(["a"])}, "observation error", 0),
        ("monitor", RuntimeError("no idea"), "monitor error", 0),
        ("monitor", ["far from home"], "alarm", 0),
    ],
)
def test_a_failure_is_one_safe_action_and_then_control_goes_on(where, happens, reason, restarts, tmp_path):
    robot, policy, monitor = Robot(), Policy(), Monitor({})
    {"read": robot.events, "policy": policy.events, "monitor": monitor.alarms}[where][6] = happens
    runtime = make(robot, policy, tmp_path, monitor)
    runtime.run(12 * 0.002, seed=2**32 - 1)
    assert reasons(tmp_path) == [*[""] * 5, reason, *[""] * 6, "stopped"]
    assert robot.told[5] == robot.told[4] == [5, 5]  # held
    assert robot.told[6][0] == 7
    assert policy.seeds == [2**32 - 1, (2**32 - 1 + SEED_STEP) % 2**32][: 1 + restarts]
    assert monitor.seeds == policy.seeds
    assert monitor.again == [False, True][: 1 + restarts]
    assert runtime.report.counts == {f"refusal: {reason}": 1, "refusal: stopped": 1}
    message = records(tmp_path)["message"][5].decode()
    assert str(happens) in message if isinstance(happens, Exception) else True
    assert "far from home" in message or where != "monitor" or reason != "alarm"
    safety = Safety.for_spec(SPEC, SafetyConfig(max_observation_age_s=None), 0.002)
    assert replay(read(tmp_path / "journal"), Policy(policy.events), safety).steps == 13


@pytest.mark.usefixtures("patient")
def test_a_command_that_the_robot_did_not_take_is_followed_by_the_safe_action(tmp_path, caplog):
    """Limits hold between the commands that it took."""
    robot = Robot()
    robot.refuses = {4, 5, 9}
    config = SafetyConfig(velocity=[500.0, math.inf], max_observation_age_s=None)  # at most 1 per step
    runtime = make(robot, Policy(), tmp_path, safety=config)
    runtime.run(14 * 0.002, seed=0)
    assert robot.told[:3] == [[1, 1], [2, 2], [3, 3]]
    assert robot.told[3] == [3, 3]  # after two that were not taken
    assert robot.told[4] == [4, 7]  # the policy goes on, one unit per step from where the robot is
    assert max(abs(np.diff([command[0] for command in robot.told]))) <= 1 + 1e-12
    assert reasons(tmp_path)[:10] == ["", "", "", "", "write error", "write error", "", "", "", "write error"]
    assert records(tmp_path)["sent"][:9].tolist() == [1, 1, 1, 0, 0, 1, 1, 1, 0]
    assert b"the cable is out" in records(tmp_path)["message"][3]
    assert LINES.drain(10)
    told = [
        r.getMessage() for r in caplog.records if r.name == "flowhand.control.runtime" and r.levelno >= logging.WARNING
    ]
    assert told == ["the command was not taken: ConnectionError: the cable is out"]  # however often
    replay(read(tmp_path / "journal"), Policy(), Safety.for_spec(SPEC, config, 0.002))


class Slow(Robot):
    def write(self, action):
        super().write(action)
        if self.writes == 5:
            time.sleep(5.5 * DT)


@pytest.mark.parametrize(("on_overrun", "ended"), [("skip", "time"), ("catch_up", "time"), ("stop", "overrun")])
def test_what_happens_to_steps_whose_time_has_passed(on_overrun, ended, tmp_path):
    robot = Slow()
    runtime = make(robot, Policy(), tmp_path, dt=DT, on_overrun=on_overrun, patience_s=10.0)
    assert runtime.run(25 * DT, seed=0) == ended
    report, journal = runtime.report, steps(tmp_path)
    taken = journal["step"]
    assert report.misses >= report.skipped
    assert report.steps == len(taken)
    if on_overrun == "catch_up":
        assert taken.tolist() == list(range(26))
        assert report.skipped == 0
        assert report.misses >= 4
    else:
        assert report.skipped >= 4
        assert report.skipped + len(taken) == taken[-1] + 1
        assert np.diff(taken).max() >= 5
    assert (journal["due_ns"] - journal["due_ns"][0] == taken * round(DT * 1e9)).all()


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("on_alarm", "ended", "told"), [("hold", "time", 5), ("log", "time", 6), ("stop", "alarm", 5)])
def test_what_an_alarm_does(on_alarm, ended, told, tmp_path):
    robot = Robot()
    runtime = make(robot, Policy(), tmp_path, Monitor({6: ["far", "farther"]}), on_alarm=on_alarm)
    assert runtime.run(12 * 0.002, seed=0) == ended
    assert robot.told[5][0] == told
    assert runtime.report.alarms == {"far": 1, "farther": 1}
    assert records(tmp_path)["message"][5] == b"far; farther"
    assert len(robot.told) == (7 if on_alarm == "stop" else 13)


@pytest.mark.parametrize("where", ["read", "policy"])
def test_what_fails_too_late_has_its_consequence_before_the_policy_is_asked_again(where, tmp_path):
    """In the first control steps of an episode: nothing of the one before is acted on, and the seeds are its own."""
    robot, policy = Robot(), Policy()
    runtime = make(robot, policy, tmp_path, dt=DT, patience_s=10.0, on_overrun="skip")
    assert runtime.run(3 * DT, seed=5) == "time"
    {"read": robot.events, "policy": policy.events}[where][robot.readings + 1] = (2.5 * DT, OSError("too late"))
    assert runtime.run(9 * DT, seed=90) == "time"
    runtime.close()
    journal = records(tmp_path)
    second = journal[journal["episode"] == 1]
    failed = np.flatnonzero([b"too late" in message for message in second["message"]])
    assert len(failed) == 1
    assert second["late"][failed[0]]
    asked = second[second["asked"] == 1]
    assert asked["restarted"].tolist() == [1, *[0] * (len(asked) - 1)]
    assert policy.seeds == ([5, 90] if where == "read" else [5, 90, 90 + SEED_STEP])
    safety = Safety.for_spec(SPEC, SafetyConfig(max_observation_age_s=None), DT)
    replay(read(tmp_path / "journal"), Policy(policy.events), safety)


class Counting(Policy):
    """Answers with the control step that it thinks it is at."""

    def reset(self, *, seed):
        super().reset(seed=seed)
        self.now = -1

    def skip(self, steps):
        self.now += steps

    def step(self, observation):
        super().step(observation)
        self.now += 1
        return np.array([self.now, 0], np.float32)


def test_a_policy_hears_of_control_steps_at_which_it_was_not_asked(tmp_path):
    robot, policy = Robot(), Counting()
    robot.events[6] = 4.5 * DT
    runtime = make(robot, policy, tmp_path, dt=DT, patience_s=10.0, on_overrun="skip")
    runtime.run(16 * DT, seed=0)
    runtime.close()
    journal = records(tmp_path)
    assert (journal["action"][:, 0] == journal["step"])[journal["asked"] == 1].all()
    assert (np.diff(journal["step"][journal["asked"] == 1]) > 3).any()
    safety = Safety.for_spec(SPEC, SafetyConfig(max_observation_age_s=None), DT)
    replay(read(tmp_path / "journal"), Counting(), safety)


@pytest.mark.usefixtures("patient")
def test_an_alarm_that_stands_is_counted_once_and_ends_one_episode_only():
    alarms = {reading: ["far"] for reading in range(6, 40)}
    runtime = make(Robot(), Policy(), monitor=Monitor(alarms))
    assert runtime.run(12 * 0.002, seed=0) == "time"
    assert runtime.report.alarms == {"far": 1}
    runtime = make(Robot(), Policy(), monitor=Monitor({6: ["far"]}), on_alarm="stop")
    assert [runtime.run(12 * 0.002, seed=0) for _ in range(2)] == ["alarm", "time"]
    assert runtime.report.alarms == {"far": 1}


@pytest.mark.parametrize("limit", ["chunk_jump", "max_chunk_age_s"])
def test_a_limit_of_chunks_needs_a_policy_that_tells_of_them(limit):
    value = {"chunk_jump": [1.0], "max_chunk_age_s": 1.0}[limit]
    with pytest.raises(ValueError, match=rf"safety\.{limit} needs a policy with chunk_\w+, such as InferenceThread"):
        make(Robot(), Policy(), safety=SafetyConfig(**{limit: value}))


@pytest.mark.usefixtures("patient")
def test_nothing_is_sent_before_there_is_something_to_send(tmp_path):
    robot = Robot()
    runtime = make(robot, Policy(dict.fromkeys(range(1, 4), "nothing")), tmp_path)
    runtime.run(6 * 0.002, seed=0)
    assert robot.told == [[4, 4], [5, 5], [6, 6], [6, 6]]
    assert records(tmp_path)["told"].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert runtime.report.sent == 4


@pytest.mark.usefixtures("patient")
def test_what_the_robot_held_before_is_where_it_starts(tmp_path):
    robot, config = Robot(), SafetyConfig(velocity=[500.0], max_observation_age_s=None)
    robot.command = np.array([8.0, 0.0])
    runtime = make(robot, Policy({1: "nothing"}), tmp_path, safety=config)
    runtime.run(4 * 0.002, seed=0)
    assert robot.told[:4] == [[8, 0], [7, 1], [6, 2], [5, 3]]
    replay(read(tmp_path / "journal"), Policy({1: "nothing"}), Safety.for_spec(SPEC, config, 0.002))


@pytest.mark.usefixtures("patient")
def test_at_the_end_the_robot_is_braked_to_rest():
    robot = Robot()
    config = SafetyConfig(acceleration=[0.1 / 0.002**2], max_observation_age_s=None)  # 0.1 per step and step
    runtime = make(robot, Policy(), safety=config)
    runtime.run(12 * 0.002, seed=0)
    path = np.array(robot.told)[:, 0]
    assert len(path) > 20
    assert np.abs(np.diff(path, 2)).max() < 0.1 + 1e-9
    assert path[-1] == path[-2]
    hasty = make(robot, Policy(), safety=config, stop_s=0.0)
    robot.told.clear()
    hasty.run(12 * 0.002, seed=0)
    assert len(robot.told) == 13  # at least one safe action


@pytest.mark.usefixtures("patient")
def test_the_run_gives_up_where_it_is_told_to(tmp_path):
    runtime = make(Robot(), Policy({count: [math.nan, 0.0] for count in range(4, 99)}), tmp_path, give_up_s=5 * 0.002)
    assert runtime.run(1.0, seed=0) == "fault"
    assert reasons(tmp_path) == [*[""] * 3, *["not finite"] * 5, "stopped"]


@pytest.mark.usefixtures("patient")
def test_an_episode_that_is_over_is_over():
    robot = Robot()
    robot.over = False
    write = robot.write

    def last(action):
        write(action)
        robot.over = len(robot.told) >= 4

    robot.write = last
    policy = Policy()
    runtime = make(robot, policy)
    assert runtime.run(1.0, seed=5) == "over"
    assert len(robot.told) == 4  # nobody is left to be told the safe action
    robot.told.clear()
    robot.over = False
    assert runtime.run(1.0, seed=6) == "over"
    assert policy.seeds == [5, 6]
    assert robot.told[0][1] == 1  # the policy began anew
    assert runtime.report.steps == 8


@pytest.mark.usefixtures("patient")
def test_an_error_of_our_own_still_ends_with_the_safe_action(monkeypatch):
    robot = Robot()
    runtime = make(robot, Policy(), safety=SafetyConfig(safe_action="zero", max_observation_age_s=None))
    judge, count = runtime._judge, Counter()

    def failing(answer, stopping):
        count["calls"] += 1
        if count["calls"] == 4:
            raise ZeroDivisionError
        return judge(answer, stopping)

    monkeypatch.setattr(runtime, "_judge", failing)
    with pytest.raises(ZeroDivisionError):
        runtime.run(1.0, seed=0)
    assert robot.told[-1] == [0, 0]
    assert runtime.report.ended == "error"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_the_safe_action_and_a_whole_journal(number, tmp_path):
    robot = Robot()
    runtime = make(robot, Policy(), tmp_path, safety=SafetyConfig(safe_action="zero", max_observation_age_s=None))
    before = signal.getsignal(number)
    with on_signals(runtime.stop):
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        assert runtime.run(30.0, seed=0) == signal.Signals(number).name
    assert signal.getsignal(number) is before
    runtime.close()
    assert robot.told[-1] == [0, 0]
    recording = read(tmp_path / "journal")
    assert recording.lost_bytes == 0
    assert REASONS[recording.records[-1]["refused"]] == "stopped"


@pytest.mark.usefixtures("patient")
def test_a_journal_that_cannot_be_written_ends_and_control_goes_on(tmp_path, monkeypatch, caplog):
    robot = Robot()
    runtime = make(robot, Policy(), tmp_path, safety=SafetyConfig(safe_action="zero", max_observation_age_s=None))
    append, count = runtime.journal.append, Counter()  # pyright: ignore[reportOptionalMemberAccess]

    def full(*arguments):
        count["calls"] += 1
        if count["calls"] == 5:
            raise OSError("the disk is full")
        append(*arguments)

    monkeypatch.setattr(runtime.journal, "append", full)
    assert runtime.run(12 * 0.002, seed=0) == "time"
    assert len(robot.told) == 14
    runtime.close()
    assert runtime.report.unwritten == 10  # of 14 records: none after the first that was lost
    assert "10 journal records lost" in runtime.report.line()
    assert records(tmp_path)["step"].tolist() == [0, 1, 2, 3]
    assert LINES.drain(10)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == [
        "the journal ends before control step 4, control goes on: OSError: the disk is full"
    ]


def test_waiting_is_until_a_moment_and_not_for_a_while():
    for spin_s in (0.0, 0.003):
        moment = time.monotonic_ns() + 10_000_000
        assert wait_until(moment, spin_s) >= moment
        assert wait_until(moment, spin_s) >= moment  # in the past: at once
        assert time.monotonic_ns() - moment < 1_000_000_000


def test_real_time_options_that_are_not_permitted_are_an_error(monkeypatch):
    def forbidden(*_):
        raise PermissionError(1, "Operation not permitted")

    cores = os.sched_getaffinity(0)
    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    with (
        pytest.raises(ValueError, match=r"runtime\.priority=5 and runtime\.core=-1 are not permitted"),
        real_time(5, -1),
    ):
        pass
    with pytest.raises(ValueError, match=r"runtime\.core=100000 are not permitted"), real_time(0, 100_000):
        pass
    assert os.sched_getaffinity(0) == cores


def test_a_thread_can_be_kept_on_a_core():
    cores = os.sched_getaffinity(0)
    with real_time(0, min(cores)):
        assert os.sched_getaffinity(0) == {min(cores)}
    assert os.sched_getaffinity(0) == cores


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.0}, r"runtime.budget=0.0 must lie in \(0, 1\]"),
        ({"budget": 1.1}, r"runtime.budget=1.1 must lie"),
        ({"send_at": 0.9, "budget": 0.8}, r"runtime.send_at=0.9 must lie in \[0, budget\], and budget is 0.8"),
        ({"patience_s": -1.0}, "runtime.patience_s=-1.0 must be seconds"),
        ({"stop_s": math.inf}, "runtime.stop_s=inf must be seconds"),
        ({"priority": 100}, r"runtime.priority=100 must lie in 0\.\.99"),
        ({"on_overrun": "panic"}, "runtime.on_overrun='panic' is unknown; choices: skip, catch_up, stop"),
        ({"on_alarm": "panic"}, "runtime.on_alarm='panic' is unknown; choices: hold, stop, ask, log"),
    ],
)
def test_a_wrong_option_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        RuntimeConfig(**options)
