"""`flowhand control`: a checkpoint controls a simulated robot in real time, and the journal is replayed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

import envs
import policies
from conf.sampling import SamplingConfig
from conf.verbs.control import ControlRoot
from flowhand.commands import control, verify
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.export.band import Band
from flowhand.contracts.features import ChunkConfig
from flowhand.control.background import LINES
from flowhand.control.journal import read
from flowhand.control.limits.config import SafetyConfig
from flowhand.control.limits.workspace import Box
from flowhand.control.replay import open_journal
from flowhand.control.runtime import Runtime
from flowhand.control.runtime_config import RuntimeConfig
from flowhand.control.safety import Safety
from flowhand.robots.simulated import SimulatedRobot
from policies.checkpoint import FILES
from policies.encoders.state import StateEncoderConfig
from policies.monitor.calibrated import CalibratedMonitor, Calibration, MonitorConfig, save_monitor
from policies.nets.mlp import MLPConfig

ROOT = Path(__file__).parents[2]


def make_checkpoint(path: Path, world: envs.EnvConfig, seed: int = 0) -> str:
    """Of a small policy with random weights."""
    env = envs.make(world)
    spec, chunk = env.features, ChunkConfig(2, 16, 2)
    config = policies.PolicyConfig(chunk=chunk, encoder=StateEncoderConfig(width=16), net=MLPConfig(width=16))
    torch.manual_seed(seed)
    policy = policies.Policy(config, spec)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    data = {name: torch.randn(50, feature.size) for name, feature in spec.observation.items()}
    policy.fit_normalizers(data, torch.randn(50, spec.action.size))
    source = policies.Provenance(asdict(world), env.version, env.task_text, "", [], {}, "", 0)
    golden = {name: torch.randn(1, chunk.history, feature.size) for name, feature in spec.observation.items()}
    policies.save(path, policy, source, golden, {"step": 0})
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("run") / "checkpoint", envs.DetourConfig(max_steps=8))


def root(checkpoint: str, path: Path, **options) -> ControlRoot:
    defaults = {"checkpoint": checkpoint, "journal": str(path / "journal"), "seconds": 0.4, "rate_hz": 50.0}
    return ControlRoot(**{**defaults, **options})


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_checkpoint_controls_a_world_and_the_journal_is_replayed(checkpoint, tmp_path, asynchronous):
    safety = SafetyConfig(velocity=[2.0], acceleration=[80.0], chunk_jump=[0.05])
    box = Box("state", [0], [0], [0.02], [-0.5], [0.3])
    options = {"asynchronous": asynchronous, "safety": safety, "workspace": box, "noise_seed": 7}
    options |= {"rate_hz": 25.0, "seconds": 0.8, "runtime": RuntimeConfig(on_overrun="catch_up", budget=1.0)}
    line, ended = control.control(root(checkpoint, tmp_path, **options))
    assert ended in ("time", "over")
    timing = r"detour: (\d+) steps at 25 Hz, \d+ missed, jitter p99 [\d.]+ ms; .*; 0 alarms; ended: (?:time|over) "
    pattern = timing + r"\(1.25 times the checkpoint's rate\); 0 of \d+ episodes solved; journal: .*"
    found = re.fullmatch(pattern, line)
    assert found, line
    recording = read(tmp_path / "journal")
    records = recording.records[recording.records["late"] == 0]
    assert len(records) == int(found[1])
    assert set(records["episode"]) == set(range(records["episode"].max() + 1))
    assert records["episode"].max() >= 1  # an episode has at most 8 steps
    restarted = recording.records[recording.records["restarted"] == 1]
    starts = restarted[np.flatnonzero(np.diff(restarted["episode"], prepend=-1))]
    assert starts["seed"].tolist() == [2_000_000 + episode for episode in starts["episode"]]
    safe = records["safe"][(records["told"] == 1) & (records["refused"] == 0)]
    assert (np.abs(safe) <= 0.5).all()
    done = verify.verify(tmp_path / "journal")
    assert done.steps == len(records)
    assert done.actions == recording.records["acted"].sum() > 0


def test_another_sampler_decides_and_is_replayed(checkpoint, tmp_path):
    head = SamplingConfig(steps=1)  # pyright: ignore[reportCallIssue]
    options = {"asynchronous": False, "rate_hz": 20.0, "runtime": RuntimeConfig(on_overrun="catch_up", budget=1.0)}
    control.control(root(checkpoint, tmp_path, head=head, **options))
    recording = read(tmp_path / "journal")
    assert recording.header["head"] == {"steps": 1}
    assert verify.verify(tmp_path / "journal").actions == recording.records["acted"].sum() > 0
    content = (tmp_path / "journal").read_bytes()
    (tmp_path / "other").write_bytes(content.replace(b'"head": {"steps": 1}', b'"head": {"steps": 3}'))
    with pytest.raises(ValueError, match=r"episode 0, step \d+: the action was"):
        verify.verify(tmp_path / "other")
    with pytest.raises(ValueError, match="calibrated for the checkpoint's own sampler"):
        control.control(root(checkpoint, tmp_path, head=head, monitor=True))


def test_a_journal_belongs_to_its_checkpoint(checkpoint, tmp_path):
    control.control(root(checkpoint, tmp_path, seconds=0.1))
    other = make_checkpoint(tmp_path / "other", envs.DetourConfig(max_steps=8), seed=1)
    with pytest.raises(ValueError, match=r"is not the policy that .*journal was recorded with"):
        verify.verify(tmp_path / "journal", other)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in FILES:
        (copy / name).write_bytes((Path(checkpoint) / name).read_bytes())
    assert verify.verify(tmp_path / "journal", copy).steps > 0


def test_a_journal_of_a_program_of_its_own_has_its_own_replay(checkpoint, tmp_path):
    policy = policies.load(checkpoint)
    open_journal(tmp_path / "own", policy.spec, {"robot": "mine"}).close()
    with pytest.raises(
        ValueError, match=r"own does not say artifact, asynchronous, .*flowhand\.control\.replay\.replay takes"
    ):
        verify.verify(tmp_path / "own", checkpoint)
    control.control(root(checkpoint, tmp_path, seconds=0.1))
    header = read(tmp_path / "journal").header
    about = {name: value for name, value in header.items() if name in verify.RECORDED}
    open_journal(tmp_path / "older", policy.spec, {**about, "safety": {"limit": 1}}).close()
    with pytest.raises(ValueError, match=r"older: .*unexpected keyword argument 'limit'"):
        verify.verify(tmp_path / "older")


class Straight:
    """Drives on, whatever it sees."""

    def reset(self, *, seed):
        pass

    def step(self, observation):
        return np.array([0.2, 0.1])


@pytest.mark.parametrize("limits", [{}, {"acceleration": [40.0]}])
def test_the_end_of_a_run_stops_the_robot_and_not_only_its_command(limits):
    """A world steered by velocities stands still at zero, not at the last of them."""
    env = envs.make(envs.DetourConfig())
    spec = env.features
    config = control.resting(SafetyConfig(**limits, max_observation_age_s=None), env)
    robot = SimulatedRobot(env)
    robot.reset(1_000_000)
    runtime = Runtime(robot, Straight(), Safety.for_spec(spec, config, 0.01), spec.observation, 0.01)
    assert runtime.run(0.05, seed=0) == "time"
    runtime.close()
    assert not robot.over
    assert runtime.safety.last is not None
    assert runtime.safety.last.tolist() == [0.0, 0.0]
    assert np.abs(robot.read()["state"][2:]).max() < 0.05  # m/s; it follows its command with a lag


def test_what_a_world_does_not_say_of_standing_still_is_told(caplog):
    env = envs.make(envs.DetourConfig())
    assert control.resting(SafetyConfig(), env).rest == [0.0, 0.0]
    assert control.resting(SafetyConfig(rest=[None, 0.0]), env).rest == [None, 0.0]
    assert control.resting(SafetyConfig(safe_action="zero"), env).rest is None
    assert not caplog.records
    env.rest = None
    assert control.resting(SafetyConfig(), env).rest is None
    assert LINES.drain(10)
    assert "detour does not say how its robot stands still" in caplog.text


def test_a_digest_is_of_what_decides(tmp_path):
    for name in ("config.json", "model.safetensors", "train_state.pt"):
        (tmp_path / name).write_bytes(name.encode())
    before = control.digest(tmp_path)
    (tmp_path / "train_state.pt").write_bytes(b"")
    assert control.digest(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert control.digest(tmp_path) != before
    (tmp_path / "manifest.json").write_bytes(b"of an export")
    assert control.digest(tmp_path) != before


def test_only_a_calibrated_policy_is_watched(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="has no monitor"):
        control.control(root(checkpoint, tmp_path, monitor=True))


@pytest.mark.slow
def test_an_exported_policy_decides_in_place_of_the_checkpoint(checkpoint, tmp_path):
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "onnx"
    command("export", f"checkpoint={checkpoint}", f"out={folder}", "export.rows=20").communicate(timeout=120)
    control.control(root(folder, tmp_path, seconds=0.2))
    assert read(tmp_path / "journal").header["artifact"] == str(folder)
    assert verify.verify(tmp_path / "journal").actions > 0
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text() + " ")
    with pytest.raises(ValueError, match=r"is not the policy that .*journal was recorded with; give checkpoint="):
        verify.verify(tmp_path / "journal")
    with pytest.raises(ValueError, match=r"onnx has no monitor; flowhand export monitor=true exports one"):
        control.control(root(folder, tmp_path, monitor=True))


@pytest.mark.slow
def test_an_exported_monitor_watches(checkpoint, tmp_path):
    pytest.importorskip("onnxruntime")
    folder, copy = tmp_path / "onnx", tmp_path / "checkpoint"
    shutil.copytree(checkpoint, copy)
    monitor = MonitorConfig(["acceleration"])
    about = Calibration(monitor, "receding_horizon", 2, {}, 3_000_000, 30, 30)
    never = Band(np.zeros((1, 1)), np.ones((1, 1)), -1.0, 0.05, 0.9, 20)  # no score is as low
    save_monitor(copy, CalibratedMonitor(about, never, None))
    done = command("export", f"checkpoint={copy}", f"out={folder}", "export.rows=20", "monitor=true")
    assert "with a monitor, error of its scores" in done.communicate(timeout=120)[0]
    options = {"monitor": True, "asynchronous": False, "seconds": 0.2}
    line, _ = control.control(root(str(folder), tmp_path, **options))
    assert re.search(r"; [1-9]\d* alarms; ", line)
    assert verify.verify(tmp_path / "journal").steps > 0
    with pytest.raises(ValueError, match=r"decision every 2 control steps, not for .* every 3"):
        control.control(root(str(folder), tmp_path, execution=ExecutionConfig(execution_horizon=3), **options))


def test_a_world_that_does_not_fit_is_an_error(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"reach-v3 has .*, the policy expects"):
        control.control(root(checkpoint, tmp_path, env=envs.MetaWorldConfig(task="reach-v3")))


def test_a_simulated_robot_ends_its_episodes_as_an_evaluation_does():
    env = envs.make(envs.DetourConfig(max_steps=60))
    for stop, over in ((True, True), (False, False)):
        robot = SimulatedRobot(env, stop)
        assert robot.over
        robot.reset(1_000_000)
        steps = 0
        while not robot.over and steps < 58:
            assert env.expert is not None
            seen = np.concatenate([robot.read()["state"], robot.read()["goal"]])
            robot.write(np.asarray(env.expert(seen), np.float64))
            steps += 1
        assert robot.over == over
        assert [(outcome.seed, outcome.success) for outcome in robot.outcomes] == [(1_000_000, True)] * over
        before = robot.read()
        if over:
            robot.write(np.zeros(2))
            assert robot.read() is before
            assert robot.outcomes[0].steps == steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0.0}, "seconds=0.0 must be positive"),
        ({"rate_hz": -1.0}, "rate_hz=-1.0 0 or positive"),
        ({"seed": 2**32}, "seed=4294967296 must lie in"),
    ],
)
def test_a_wrong_setting_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        ControlRoot(**options)


def command(verb: str, *words: str) -> subprocess.Popen:
    environment = {**os.environ, "MUJOCO_GL": "disable", "OMP_NUM_THREADS": "1"}
    whole = [sys.executable, "-m", "flowhand", verb, *words]
    return subprocess.Popen(whole, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_command_line_and_its_end(checkpoint, tmp_path, number):
    """The journal tells when control has begun; a signal ends it, a kill leaves the journal."""
    path = tmp_path / "journal"
    process = command("control", f"checkpoint={checkpoint}", f"journal={path}", "seconds=100", "safety.velocity=[3]")
    while not path.exists() or path.stat().st_size < 20_000:
        assert process.poll() is None, process.communicate()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number, err
        assert f"ended: {number.name}" in out
        assert "refusal: stopped" in err  # the first of its kind is a warning
        assert out.count("\n") == 1
    again = command("verify", f"journal={path}")
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert "are equal to the last bit" in out


@pytest.mark.slow
def test_the_command_line_says_what_is_wrong():
    process = command("control", "seconds=1")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.strip() == "error: which checkpoint? Give checkpoint=PATH"
    assert RuntimeConfig() == ControlRoot().runtime
