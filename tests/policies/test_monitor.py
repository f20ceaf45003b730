"""A watched policy, and the monitor stored beside its checkpoint."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.export.band import Band
from flowhand.contracts.features import ChunkConfig
from flowhand.control.async_controller import AsyncController
from flowhand.control.controller import Controller
from policies import Policy, load, save
from policies.conditioning import Conditioning
from policies.generation.grids import uniform
from policies.generation.paths import PATHS, to_velocity
from policies.generation.solvers import SOLVERS, integrate, stage_times
from policies.monitor.calibrated import (
    FILES,
    FOLDER,
    CalibratedMonitor,
    Calibration,
    MonitorConfig,
    load_monitor,
    save_monitor,
)
from policies.monitor.density import DensityConfig, learn_density
from policies.monitor.scores import SCORES, acceleration, gaussian_entropy, mmd2
from policies.monitor.watched_policy import WatchedPolicy, possible
from tests.policies.test_asynchronous import Ticking

ALL = sorted(SCORES)
DENSITY = DensityConfig(width=8, steps=2)


def density_of(policy: Policy):
    return learn_density(torch.randn(40, policy.encoder.size), DENSITY)


def inputs(policy: Policy, seed: int = 0):
    rng = np.random.default_rng(seed)
    features = policy.spec.observation.items()
    observation = {n: rng.standard_normal((1, policy.chunk.history, *f.shape), np.float32) for n, f in features}
    return observation, rng.standard_normal((1, *policy.noise_shape), np.float32)


@pytest.mark.parametrize("options", [{}, {"solver": "midpoint"}, {"condition_dropout": 0.1, "guidance": 2.0}])
def test_watching_changes_no_action_and_leaves_nothing_behind(make_policy, options):
    policy = make_policy(**options).eval()
    watched = WatchedPolicy(policy, ALL, samples=4, density=density_of(policy))
    for seed in range(3):
        observation, noise = inputs(policy, seed)
        np.testing.assert_array_equal(watched.plan(observation, noise), policy.plan(observation, noise))
    assert np.isfinite(watched.scores_ND).all()
    assert np.shape(watched.scores_ND) == (3, 5)
    assert not policy.net._forward_hooks
    assert not policy.encoder._forward_hooks


@pytest.mark.parametrize("options", [{}, {"prediction": "velocity", "steps": 7}, {"solver": "midpoint"}])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_acceleration_is_that_of_the_integrated_velocity(make_policy, options, guidance):
    policy = make_policy(condition_dropout=0.1, guidance=guidance, **options).eval()
    with torch.no_grad():
        policy.head.null.normal_()
    observation, noise = inputs(policy)
    head, tableau = policy.head.config, SOLVERS[policy.head.config.solver]
    times, visited = stage_times(tableau, uniform(head.steps)), []

    def velocity(x, i):
        t = torch.full((1,), times[i])

        def net(cond):
            return policy.net(x, policy.net.prepare(t[None], Conditioning(cond))[0])

        null = net(policy.head.null[None])
        output = null + guidance * (
            net(policy.encode({n: torch.tensor(o) for n, o in observation.items()}).vector_BE) - null
        )
        visited.append(to_velocity(head.prediction, output, x, PATHS["linear"](t[0])))
        return visited[-1]

    with torch.no_grad():
        integrate(velocity, torch.tensor(noise), tableau, uniform(head.steps))
    watched = WatchedPolicy(policy, ["acceleration"])
    watched.plan(observation, noise)
    expected = float(acceleration(torch.cat(visited[:: tableau.stages])))
    assert watched.scores_ND[0][0] == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3


def test_sampled_chunks_follow_from_the_decisions_noise(make_policy):
    policy = make_policy().eval()
    runs = []
    for _ in range(2):
        watched = WatchedPolicy(policy, ["entropy", "stac"], samples=5)
        for seed in range(3):
            watched.plan(*inputs(policy, seed))
        runs.append(watched.scores_ND)
    assert runs[0] == runs[1]
    watched = WatchedPolicy(policy, ["entropy"], samples=5)
    observation, noise = inputs(policy)
    watched.plan(observation, noise)
    watched.plan(observation, noise + 1)
    watched.plan(observation, noise)
    first, second, third = (row[0] for row in watched.scores_ND)
    assert first == third != second
    sampled = watched._memory["chunks"]
    assert sampled.shape == (5, 4, 2)
    assert first == pytest.approx(float(gaussian_entropy(sampled)))
    assert len({row.numpy().tobytes() for row in sampled}) == 5


def test_an_episode_begins_without_memory(make_policy):
    policy = make_policy().eval()
    watched = WatchedPolicy(policy, ["stac"], samples=4)
    watched.plan(*inputs(policy))
    watched.plan(*inputs(policy, 1))
    before = watched.scores_ND
    assert before[0] == [0.0]
    assert before[1][0] > 0
    watched.begin()
    watched.plan(*inputs(policy))
    assert watched.scores_ND == [[0.0]]
    assert len(before) == 2


def test_the_interval_is_that_of_the_execution(make_policy):
    policy = make_policy(chunk=ChunkConfig(2, 8, 3)).eval()
    assert WatchedPolicy(policy, ["stac"]).interval == 3
    assert WatchedPolicy(policy, ["stac"], ExecutionConfig(execution_horizon=5)).interval == 5
    assert WatchedPolicy(policy, ["stac"], ExecutionConfig(mode="temporal_ensembling")).interval == 1


@pytest.mark.parametrize(
    ("mode", "latencies", "steps"),
    [
        ("temporal_ensembling", 2, [0, 1, 3, 5, 7]),  # simulated: the first chunk is not late
        ("receding_horizon", 2, [0, 3, 6, 9, 12]),  # the delay is no longer than the interval: nothing changes
        ("rtc_identity", [1, 4, 2, 5, 1], [0, 4, 8, 11, 16]),  # measured; the robot stands until the first chunk
        ("temporal_ensembling", [2, 1, 3, 2, 1], [0, 3, 4, 7, 9]),
        ("receding_horizon", [1, 7, 8, 11, 1], [0, 4, 11, 19, 30]),  # as far apart as a chunk is long, and further
    ],
)
def test_stac_compares_the_same_control_steps_however_far_apart_decisions_are(
    make_policy, monkeypatch, mode, latencies, steps
):
    policy, simulated = make_policy(chunk=ChunkConfig(2, 8, 3)).eval(), isinstance(latencies, int)
    execution = ExecutionConfig(mode, delay=latencies if simulated else 0)
    watched, sampled, decided = WatchedPolicy(policy, ["stac"], execution, samples=4), [], []
    sample = watched._sample
    monkeypatch.setattr(watched, "_sample", lambda *given: sampled.append(sample(*given)) or sampled[-1])
    worker = Ticking([] if simulated else latencies)
    if simulated:
        controller = Controller(watched, execution=execution)
    else:
        controller = AsyncController(watched, execution=execution, worker=worker)
    controller.reset(seed=5)
    rng, shapes = np.random.default_rng(0), {name: f.shape for name, f in policy.spec.observation.items()}
    for step in range(steps[-1] + 1):
        controller.step({name: rng.standard_normal(shape) for name, shape in shapes.items()})
        decided += [step] * (len(watched.scores_ND) - len(decided))
        worker.tick()
    assert decided == steps
    begun = steps if simulated else [latencies[0], *steps[1:]]
    for n, (score,) in enumerate(watched.scores_ND):
        apart = begun[n] - begun[n - 1] if n else 8
        shared = [sampled[n][:, : 8 - apart], sampled[n - 1][:, apart:]]
        expected = float(mmd2(*(part.flatten(1) for part in shared))) if apart < 8 else 0.0
        assert score == expected
        assert (score > 0) == (apart < 8)


def test_a_controller_takes_it_for_a_policy(make_policy):
    policy = make_policy(prefix_max=2).eval()
    for mode in ("receding_horizon", "rtc_identity", "rtc_trained"):
        execution = ExecutionConfig(mode=mode, delay=1)
        watched = WatchedPolicy(policy, ["acceleration", "entropy"], execution, samples=3)
        actions = []
        for planner in (watched, policy):
            controller = Controller(planner, execution=execution)
            controller.reset(seed=5)
            rng = np.random.default_rng(0)
            sizes = {name: f.shape for name, f in policy.spec.observation.items()}
            actions.append([controller.step({n: rng.standard_normal(s) for n, s in sizes.items()}) for _ in range(7)])
        np.testing.assert_array_equal(*actions)
        assert np.isfinite(watched.scores_ND).all()
        assert len(watched.scores_ND) == 4


@pytest.mark.parametrize(
    ("head", "options", "mode", "missing"),
    [
        ("flow", {}, "receding_horizon", []),
        ("flow", {"steps": 1}, "receding_horizon", ["acceleration"]),
        ("flow", {}, "rtc_exact", ["acceleration"]),
        ("diffusion", {}, "receding_horizon", ["acceleration"]),
        ("regression", {}, "receding_horizon", ["acceleration", "entropy", "stac"]),
    ],
)
def test_not_every_policy_has_every_score(make_policy, head, options, mode, missing):
    policy, execution = make_policy(head=head, **options).eval(), ExecutionConfig(mode=mode)
    assert possible(policy, execution) == [name for name in ALL if name not in missing]
    for name in missing:
        with pytest.raises(ValueError, match=f"score '{name}' is not to be had of head={head} in mode='{mode}', only"):
            WatchedPolicy(policy, [name], execution)


def test_what_cannot_be_watched(make_policy):
    policy = make_policy().eval()
    with pytest.raises(ValueError, match="scores logpzo need the density"):
        WatchedPolicy(policy, ["logpzo"])
    observation, noise = inputs(policy)
    two = {name: np.repeat(value, 2, axis=0) for name, value in observation.items()}
    with pytest.raises(ValueError, match="one robot at a time, got 2 rows"):
        WatchedPolicy(policy, ["acceleration"]).plan(two, np.repeat(noise, 2, axis=0))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scores", ["speed"], r"scores=\['speed'\] must be different ones of: acceleration, entropy"),
        ("scores", ["stac", "stac"], "must be different"),
        ("alpha", 0.0, "alpha=0.0 must lie"),
        ("confidence", 1.0, "confidence=1.0"),
        ("samples", 1, r"samples=1 must lie in 2\.\.1024"),
    ],
)
def test_options_out_of_range(field, value, message):
    with pytest.raises(ValueError, match=message):
        MonitorConfig(**{field: value})


@pytest.fixture
def checkpoint(make_policy, make_batch, provenance, tmp_path):
    policy = make_policy()
    save(tmp_path / "checkpoint", policy, provenance, make_batch(policy).observation, {})
    return tmp_path / "checkpoint"


def calibrated(policy: Policy, scores=("acceleration", "logpzo")) -> CalibratedMonitor:
    rng = np.random.default_rng(0)
    shape = (6, len(scores))
    band = Band(rng.standard_normal(shape), rng.random(shape) + 0.1, 2.5, 0.07, 0.8, 40)
    monitor = MonitorConfig(list(scores), 0.07, 0.8, 4, DENSITY)
    about = Calibration(monitor, "receding_horizon", 2, {"kind": "toy"}, 3_000_000, 70, 60)
    density = density_of(policy) if "logpzo" in scores else None
    return CalibratedMonitor(about, band, density)


@pytest.mark.parametrize("scores", [("acceleration", "logpzo"), ("entropy",)])
def test_a_stored_monitor_is_the_same_monitor(checkpoint, scores):
    policy = load(checkpoint)
    one = calibrated(policy, scores)
    folder = save_monitor(checkpoint, one)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert sorted(path.name for path in checkpoint.iterdir() if "monitor" in path.name) == [FOLDER]
    policy = load(checkpoint)  # a checkpoint with a monitor is a checkpoint
    other = load_monitor(checkpoint, policy)
    assert other.about == one.about
    np.testing.assert_array_equal(other.band.center_ND, one.band.center_ND)
    np.testing.assert_array_equal(other.band.spread_ND, one.band.spread_ND)
    for name in ("limit", "alpha", "confidence", "calibrated"):
        assert getattr(other.band, name) == getattr(one.band, name)
    told = []
    for monitor in (one, other):
        watched = monitor.watch(policy, ExecutionConfig())
        watched.plan(*inputs(policy))
        told.append(watched.scores_ND)
    assert told[0] == told[1]
    save_monitor(checkpoint, calibrated(policy, ("stac",)))  # replaces it
    assert load_monitor(checkpoint, policy).about.monitor.scores == ["stac"]


def test_a_monitor_serves_only_the_policy_and_the_execution_it_was_calibrated_for(checkpoint):
    policy = load(checkpoint)
    with pytest.raises(ValueError, match=r"has no monitor; flowhand calibrate checkpoint="):
        load_monitor(checkpoint, policy)
    save_monitor(checkpoint, calibrated(policy))
    monitor = load_monitor(checkpoint, policy)
    with pytest.raises(ValueError, match=r"every 2 control steps, not for mode='receding_horizon' every 1; calibrate"):
        monitor.watch(policy, ExecutionConfig(execution_horizon=1))
    with pytest.raises(ValueError, match="calibrated for mode='receding_horizon'"):
        monitor.watch(policy, ExecutionConfig(mode="rtc_identity"))
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(ValueError, match="calibrated for another policy"):
        load_monitor(checkpoint, policy)


def change_config(folder, change):
    data = json.loads((folder / FILES[0]).read_text())
    change(data)
    (folder / FILES[0]).write_text(json.dumps(data))


def change_tensors(folder, change):
    tensors = safetensors.torch.load_file(folder / FILES[1])
    change(tensors)
    (folder / FILES[1]).write_bytes(safetensors.torch.save(tensors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format_version=2), "format version 2"),
        (lambda d: d.update(format_version=True), "format version True"),
        (lambda d: d.update(extra=1), "has the fields"),
        (lambda d: d.pop("band"), "has the fields"),
        (lambda d: d["band"].update(limit="x"), "limit"),
        (lambda d: d["band"].update(limit=None), "limit"),
        (lambda d: d["about"].update(more=1), "unknown field 'more'"),
        (lambda d: d["about"]["monitor"].update(alpha=2.0), "alpha=2.0"),
        (lambda d: d["about"]["monitor"].update(scores=["speed"]), "must be different ones"),
        (lambda d: d["about"]["monitor"].update(scores=["acceleration"]), "does not hold the density"),
        (lambda d: d["about"]["monitor"].update(scores=["acceleration", "logpzo", "stac"]), "does not hold the band"),
        (lambda d: d["about"]["monitor"]["density"].update(width=10**12), "density.width=1000000000000 must lie"),
        (lambda d: d["about"]["monitor"]["density"].update(width=9), "does not hold the density"),
        (lambda d: d["about"]["monitor"]["density"].pop("width"), "lacks the field 'width'"),
    ],
)
def test_a_changed_configuration_is_refused(checkpoint, change, message):
    policy = load(checkpoint)
    change_config(save_monitor(checkpoint, calibrated(policy)), change)
    with pytest.raises(ValueError, match=message):
        load_monitor(checkpoint, policy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("band.spread"), "does not hold the band"),
        (lambda t: t.update(more=torch.zeros(6, 2, dtype=torch.float64)), "does not hold the band"),
        (lambda t: t.update({"band.spread": t["band.spread"][:3].clone()}), "does not hold the band"),
        (lambda t: t["band.center"].fill_(float("nan")), "does not hold the band"),
        (lambda t: t.update({"band.center": t["band.center"].float()}), "does not hold the band"),
        (lambda t: t.update({"band.center": t["band.center"].bfloat16()}), "does not hold the band"),
        (lambda t: t.update({"band.center": t["band.center"].to(torch.float8_e4m3fn)}), "does not hold the band"),
        (lambda t: t["band.spread"].zero_(), "must be positive"),
        (lambda t: t.pop("density.mean"), "does not hold the density"),
        (lambda t: t["density.mean"].fill_(float("inf")), "density has NaN or infinity"),
    ],
)
def test_changed_tensors_are_refused(checkpoint, change, message):
    policy = load(checkpoint)
    change_tensors(save_monitor(checkpoint, calibrated(policy)), change)
    with pytest.raises(ValueError, match=message):
        load_monitor(checkpoint, policy)


def test_damaged_files_are_told_in_words(checkpoint):
    policy = load(checkpoint)
    for name, message in ((FILES[0], "not valid JSON"), (FILES[1], "cannot be read")):
        folder = save_monitor(checkpoint, calibrated(policy))
        good = (folder / name).read_bytes()
        for damaged in (good[:40], good.replace(b'"F64"', b'"\\nx"') if name == FILES[1] else b"\n"):
            (folder / name).write_bytes(damaged)
            with pytest.raises(ValueError, match=message) as caught:
                load_monitor(checkpoint, policy)
            assert "\n" not in str(caught.value)
