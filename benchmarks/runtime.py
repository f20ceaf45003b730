"""Control in real time: deadline misses and jitter at 200 Hz, and how soon a robot is safe when something fails.

    python -m benchmarks.runtime [--seconds 60] [--rate 200] [--spin_s 0] [--priority 0] [--core -1] [--rounds 4]

The robot is a MuJoCo simulation whose one physics step is one control step, so at 200 Hz it moves in real time. It is
controlled by the default policy (with random weights, which cost the same) with limits of velocity and acceleration
and a journal, as a checkpoint or exported, deciding beside the control or within the control step. Every journal is
replayed. Then inference, reading or writing fails for half a second in the midst of control. Beside them the same loop
runs with a policy that computes nothing: what that misses is the machine's.

A virtual machine cannot keep a deadline while others have its processors, which Linux counts as stolen time. A run of
which more than QUIET was stolen is repeated in the next round, whatever came of it; every run is in the result.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import envs
import policies
from benchmarks.result import write
from conf.cli import compose
from envs.mujoco import load_mujoco
from flowhand.commands.export import export
from flowhand.contracts.planner import NOTHING, Planner, PrefixArrays
from flowhand.control.inference_thread import InferenceThread
from flowhand.control.journal import read
from flowhand.control.limits.config import SafetyConfig
from flowhand.control.replay import open_journal, replay
from flowhand.control.runtime import Runtime
from flowhand.control.runtime_config import RuntimeConfig
from flowhand.control.safety import Safety
from flowhand.deploy.runner import load as load_exported

SCENE = Path(envs.__file__).parent / "assets" / "detour.xml"
LIMITS = SafetyConfig(velocity=[5.0], acceleration=[100.0], rest=[0.0, 0.0])  # of the wanted velocity: m/s^2, m/s^3
QUIET = 0.005  # of the processors' time, stolen at most in a run that counts as undisturbed
FAILS_AT = 100  # control step at which the faults begin
FAILS_S = 0.5
REACTION = ("safe_after_ms", "longest_without_command_ms", "policy_after_ms")
FAULTS = (
    *(f"inference {how}" for how in ("hangs", "raises", "gives NaN")),
    *("read hangs", "read raises", "write raises"),
)


@dataclass(frozen=True)
class Trial:
    """What is run, the same in every round."""

    policy: str
    asynchronous: bool
    send_at: float = 0.0
    fault: str = ""  # one of FAULTS, or nothing


TRIALS = (
    *(Trial("idle", False, send_at) for send_at in (0.0, 0.8)),
    *(Trial(*each) for each in itertools.product(("checkpoint", "exported"), (True, False), (0.0, 0.8))),
    *(Trial("exported", asynchronous, fault=fault) for fault, asynchronous in itertools.product(FAULTS, (True, False))),
)


@dataclass
class Fault:
    """Something that fails for half a second, once."""

    what: str = ""  # one of FAULTS, or nothing
    began_s: float = math.inf  # on the clock of time.monotonic

    def now(self, what: str, count: int, at: int) -> bool:
        """Whether this fails now; the failure begins at the count `at`, by hanging or by failing again and again."""
        if self.what.split()[0:1] != [what]:
            return False
        if count == at:
            self.began_s = time.monotonic()
            if self.what.endswith("hangs"):
                time.sleep(FAILS_S)
        return not self.what.endswith("hangs") and 0 <= time.monotonic() - self.began_s < FAILS_S


class DetourRobot:
    """The disc of envs/detour.py, with one physics step per command."""

    def __init__(self, fault: Fault | None = None):
        self._mujoco = load_mujoco()
        self._model = self._mujoco.MjModel.from_xml_path(str(SCENE))
        self._data = self._mujoco.MjData(self._model)
        self._fault, self._reads, self._writes = fault or Fault(), 0, 0
        self.control_dt_s = float(self._model.opt.timestep)

    def read(self) -> dict[str, np.ndarray]:
        """Position, velocity and goal."""
        self._reads += 1
        if self._fault.now("read", self._reads, FAILS_AT):
            raise OSError("no camera")
        state = np.concatenate([self._data.qpos, self._data.qvel]).astype(np.float32)
        return {"state": state, "goal": np.array([0.45, 0.0], np.float32)}

    def write(self, action: np.ndarray) -> None:
        """Does one physics step."""
        self._writes += 1
        if self._fault.now("write", self._writes, FAILS_AT):
            raise OSError("no cable")
        self._data.ctrl[:] = action
        self._mujoco.mj_step(self._model, self._data)


class Idle:
    """A planner that computes nothing: its chunk is zero."""

    def __init__(self, planner: Planner):
        self.spec, self.chunk, self.noise_shape = planner.spec, planner.chunk, planner.noise_shape
        self.continues = NOTHING
        self._zero = np.zeros((1, self.chunk.prediction_horizon, self.spec.action.size), np.float32)

    def plan(
        self, observation: Mapping[str, np.ndarray], noise: np.ndarray, prefix: PrefixArrays | None = None
    ) -> np.ndarray:
        """The chunk."""
        return self._zero


class FaultyPlanner:
    """A planner that fails."""

    def __init__(self, planner: Planner, fault: Fault):
        self.spec, self.chunk, self.noise_shape = planner.spec, planner.chunk, planner.noise_shape
        self.continues = NOTHING
        self._planner, self._fault, self._plans = planner, fault, 0

    def plan(
        self, observation: Mapping[str, np.ndarray], noise: np.ndarray, prefix: PrefixArrays | None = None
    ) -> np.ndarray:
        """A chunk, or the failure."""
        self._plans += 1
        fails = self._fault.now("inference", self._plans, FAILS_AT // 2)
        if fails and self._fault.what.endswith("raises"):
            raise RuntimeError("out of memory")
        return self._planner.plan(observation, noise) * (np.nan if fails else 1)


def default_policy(control_dt_s: float) -> policies.Policy:
    """The default policy for the robot, with random weights: they cost what trained ones cost."""
    with closing(envs.make(envs.DetourConfig())) as env:
        spec = replace(env.features, control_dt_s=control_dt_s)
    policy = policies.Policy(compose(["env=detour"]).policy, spec)
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.parameters():  # the net starts at zero, which no machine may profit from
        torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    data = {name: torch.randn(100, f.size, generator=generator) for name, f in spec.observation.items()}
    policy.fit_normalizers(data, 0.2 * torch.randn(100, spec.action.size, generator=generator))
    return policy.eval().requires_grad_(False)


def exported(policy: policies.Policy, folder: str) -> Planner:
    """The same policy as a graph."""
    features, history = policy.spec.observation, policy.chunk.history
    golden = {f"observation.{name}": torch.randn(4, history, f.size) for name, f in features.items()}
    export(f"{folder}/onnx", policy, {**golden, "noise": torch.randn(4, *policy.noise_shape)}, {})
    return load_exported(f"{folder}/onnx")


def control(
    planner: Planner, asynchronous: bool, seconds: float, dt: float, config: RuntimeConfig, fault: Fault
) -> tuple[dict[str, Any], np.ndarray]:
    """Controls the robot, then replays the journal; the report and the records."""
    watched = FaultyPlanner(planner, fault) if fault.what.startswith("inference") else planner

    def safety() -> Safety:
        return Safety.for_spec(planner.spec, LIMITS, dt)

    with tempfile.TemporaryDirectory() as folder:
        inference_thread = InferenceThread(watched, asynchronous=asynchronous)
        journal = open_journal(f"{folder}/journal", planner.spec, {})
        features = planner.spec.observation
        runtime = Runtime(DetourRobot(fault), inference_thread, safety(), features, dt, config, journal=journal)
        with closing(inference_thread), closing(runtime):
            runtime.run(seconds, seed=0)
        recording = read(f"{folder}/journal")
    report = runtime.report.summary()
    if "NaN" not in fault.what:  # those actions the planner itself would not give
        again = InferenceThread(planner, asynchronous=asynchronous, replaying=True)
        report["replayed"] = replay(recording, again, safety()).line()
    return report, recording.records


def stolen_s() -> float | None:
    """For how long other virtual machines have had this one's processors since it started, in s; None if unknown."""
    stat = Path("/proc/stat")
    return int(stat.read_text().split()[8]) / os.sysconf("SC_CLK_TCK") if stat.exists() else None


def reaction(records: np.ndarray, fault: Fault) -> dict[str, float | None]:
    """How soon the robot was safe, how long it was without a command, and how soon the policy had it again; in ms."""
    steps = records[(records["late"] == 0) & (records["sent_ns"] > 0)]
    refused, sent_s = steps["refused"] > 0, steps["sent_ns"] / 1e9
    safe_s = sent_s[refused & (sent_s > fault.began_s)][:1]
    back_s = sent_s[~refused & (sent_s > max(fault.began_s + FAILS_S, *safe_s))][:1]
    safe_ms = 1e3 * float(safe_s[0] - fault.began_s) if len(safe_s) else None
    back_ms = 1e3 * float(back_s[0] - fault.began_s - FAILS_S) if len(back_s) else None
    return dict(zip(REACTION, (safe_ms, 1e3 * float(np.diff(sent_s).max()), back_ms), strict=True))


def run(trial: Trial, planner: Planner, seconds: float, dt: float, config: RuntimeConfig) -> dict[str, Any]:
    """What came of a trial, `stolen` included: the share of the processors' time that others had meanwhile."""
    fault, started, before = Fault(trial.fault), time.monotonic(), stolen_s()
    report, records = control(
        planner, trial.asynchronous, 2.0 if trial.fault else seconds, dt, replace(config, send_at=trial.send_at), fault
    )
    after, available = stolen_s(), (time.monotonic() - started) * (os.cpu_count() or 1)
    stolen = None if before is None or after is None else round((after - before) / available, 5)
    return {**asdict(trial), "stolen": stolen, **(reaction(records, fault) if trial.fault else {}), **report}


def told(result: dict[str, Any]) -> str:
    """A run in one line."""
    how = "beside" if result["asynchronous"] else "within"
    if result["fault"]:
        what = ", ".join(f"{key} {result[key] or math.nan:.1f}" for key in REACTION)
    else:
        jitter = " / ".join(f"{value:.2f}" for value in result["jitter_ms"].values())
        what = f"send_at {result['send_at']}: {result['misses']} of {result['steps']} missed, jitter {jitter} ms"
    return f"{result['policy']:10s} {how} {result['fault'] or 'control':20s} {what}; stolen {result['stolen']}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--rounds", type=int, default=4, help="runs of a trial at most, until one is undisturbed")
    for name, default in (("spin_s", 0.0), ("priority", 0), ("core", -1)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = RuntimeConfig(spin_s=options.spin_s, priority=options.priority, core=options.core)
    policy, dt = default_policy(1 / options.rate), 1 / options.rate
    about = {"robot": "detour, one physics step per command", "limits": asdict(LIMITS), "runtime": asdict(config)}
    runs: list[dict[str, Any]] = []
    quiet: set[Trial] = set()

    def save() -> Path:
        return write("runtime", {**about, "quiet": QUIET, "runs": runs}, options.out, device="cpu", threads=1)

    with tempfile.TemporaryDirectory() as folder:
        planners = {"idle": Idle(policy), "checkpoint": policy, "exported": exported(policy, folder)}
        for number in range(options.rounds):
            for trial in TRIALS:
                if trial in quiet:
                    continue
                result = run(trial, planners[trial.policy], options.seconds, dt, config)
                runs.append({"round": number, **result})
                if (result["stolen"] or 0.0) <= QUIET:
                    quiet.add(trial)
                print(told(result), flush=True)
                save()  # what was measured outlives a kill
    print(save())


if __name__ == "__main__":
    main()
