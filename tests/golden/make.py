"""What wrote `tests/golden/v2`: commit 952b603, as `OMP_NUM_THREADS=1 python -m tests.golden.make` at its root.

The files are frozen: every later version must read them (`tests/test_golden.py`). So this program only documents how
they came about, and need not run with a later version. To freeze another one, add a folder beside v2.

    <head>-<net>[-<variant>]/   a checkpoint of every head and net: random weights, statistics of `store`, and in
                                train_state.pt the configuration of a training without its tensors
    store/                      two episodes of the world detour
    monitored/                  a small policy trained on detour, with a calibrated monitor and without train_state.pt
    export-onnx/                the same exported, with its monitor
    run.journal                 a run of the same on detour
    choices.journal             a run of flow-mlp-choices, whose actions are indices: they are equal on every processor
    evaluation/, disturbed/     records and metrics of `eval.py` of the same, without and with a disturbance
    unfinished/                 two trainings, each killed behind its checkpoint of step 30 of 60, in the folders that
                                are the default: data/demos, outputs/detour-flow-0, outputs/detour-diffusion-0
    expected.npz                an observation of ten control steps, and for every policy <name>/spread of its action,
                                <name>/noise and <name>/action of `Policy.sample` for the histories that end at control
                                steps 1, 5 and 9, and <name>/decisions of a `Controller` in an episode with seed 3;
                                monitor/scores of the decisions; unfinished-flow and unfinished-diffusion are policies
                                of the same trainings where nothing stopped them

Two things were changed afterwards: a journal names its checkpoint by an absolute path, here by one relative to v2,
and what nobody needs again (writer.lock, report.html, train_state.pt of the policy in monitored) was left out. The
processor was an AMD EPYC.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import policies
from conf.cli import compose
from demos.store import Store
from deploy.monitor import Monitor
from deploy.runner import load
from policies.monitor import load_monitor
from train import provenance

HERE, ROOT = Path(__file__).parent / "v2", Path(__file__).parents[2]
SMALL = {
    "mlp": ["net.width=8", "net.blocks=1"],
    "transformer": ["net.width=8", "net.blocks=1", "net.heads=2"],
    "unet1d": ["net.down_dims=[8,16]", "net.groups=2", "net.kernel_size=3", "net.time_width=8"],
}
VARIANTS = {
    "flow-transformer-cross": ["net.cross_attention=true"],
    "flow-mlp-multistep": ["head.prediction=preconditioned", "head.solver=multistep", "head.grid=tabulated"],
    "flow-mlp-guided": ["head.condition_dropout=0.1", "head.guidance=1.5", "head.prefix_max=2"],
    "flow-mlp-choices": [],
    "diffusion-mlp-ddpm": ["head.sampler=ddpm", "head.steps=3"],
}
HEADS = ("consistency", "diffusion", "drift", "edm", "flow", "mean_flow", "mip", "regression", "shortcut")
NAMES = [*(f"{head}-mlp" for head in HEADS), "flow-transformer", "flow-unet1d", *VARIANTS]
QUIET = ["wandb.mode=disabled"]
ONE = ["train.threads=1", "train.precision=fp32", "train.device=cpu", *QUIET]
EVALUATED = ["eval.n_envs=2", "eval.workers=inline", "eval.videos=0", "eval.expert=false"]
TRAINED = ["env=detour", "chunk.prediction_horizon=8", "encoder.width=16", "net.width=16", "net.blocks=1"]
TRAINED += ["train.steps=1500", "train.batch_size=128", "train.warmup_steps=50", "train.learning_rate=5e-3"]
TRAINED += ["demos.episodes=20", "demos.noise=0.02", "eval.episodes=0", *ONE]
UNFINISHED = ["env=detour", "chunk.prediction_horizon=4", "encoder.width=8", "train.steps=60"]
UNFINISHED += ["train.save_every=30", "train.log_every=10", "train.batch_size=32", "train.warmup_steps=5"]
UNFINISHED += ["demos.episodes=2", "eval.episodes=0", *ONE]
KILLED = """
import os, signal, sys, policies, train
from conf import cli
saved = policies.save
def save(*args):
    saved(*args)
    os.kill(os.getpid(), signal.SIGKILL)
policies.save = save
cli.run(train.main)
"""


def main() -> None:
    """Writes everything anew."""
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    python("-m", "demos.collect", "env=detour", "demos.path=store", "demos.episodes=2")
    (HERE / "store" / "writer.lock").unlink()
    store = Store.open(HERE / "store")
    expected = {f"observation/{name}": value[::5][:10] for name, value in store[0].observation.items()}
    for name in NAMES:
        checkpoint(name, store)
        expected |= of_policy(name, policies.load(HERE / name), expected)
    expected |= trained(expected) | unfinished(expected)
    np.savez(HERE / "expected.npz", allow_pickle=False, **expected)


def python(*words: str, cwd: Path = HERE) -> None:
    """Runs a program of this package there; a killed one is meant to be."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=environment, check=False)
    assert done.returncode in (0, -9), words


def checkpoint(name: str, store: Store) -> None:
    """A checkpoint with random weights, as a training writes it, but for the tensors of its state."""
    head, net = name.split("-")[:2]
    options = ["env=detour", f"head={head}", f"net={net}", "chunk.prediction_horizon=4", "encoder.width=8"]
    options += [*SMALL[net], *VARIANTS.get(name, ()), "demos.episodes=2", *ONE]
    config = compose(options)
    spec, episodes = policies.Spec.from_dict(store.features), list(store)
    if name.endswith("choices"):
        chosen = policies.Feature((2,), "float32", "", choices=(3, 3))
        spec = replace(spec, action=chosen)
        episodes = [replace(e, action=np.float32(1) + np.sign(e.action.round(1))) for e in episodes]
    torch.manual_seed(NAMES.index(name))
    windows = policies.Windows(episodes, spec, 2, 4)
    policy = policies.Policy(config.policy, spec)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.5 / parameter.shape[-1] ** 0.5)
    policy.fit_normalizers(windows.observation, windows.action)
    policy.eval().requires_grad_(False)
    source = provenance(config, store)
    source.train_steps = 10
    history = [{"step": 10, "loss": 0.5, "lr": 1e-3, "samples_per_s": 1e4, "threads": 1}]
    state = {"step": 10, "history": history, "overrides": options, "config": asdict(config)}
    policies.save(HERE / name, policy, source, windows.gather(torch.tensor([0, 30])).observation, state)


def of_policy(name: str, policy: policies.Policy, expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is expected of a policy."""
    seen = {key.split("/")[1]: value for key, value in expected.items() if key.startswith("observation/")}
    noise = torch.randn((3, *policy.noise_shape), generator=torch.Generator().manual_seed(7))
    histories = {n: torch.from_numpy(np.stack([v[i - 1 : i + 1] for i in (1, 5, 9)])) for n, v in seen.items()}
    found = {"noise": noise, "action": policy.sample(histories, noise), "spread": policy.action_normalizer.scale}
    return {f"{name}/{key}": v.numpy() for key, v in found.items()} | decisions(name, policy, seen)


def decisions(name: str, policy: Any, seen: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The actions of a controller, one for every control step."""
    controller = policies.Controller(policy)
    controller.reset(seed=3)
    actions = [controller.step({n: v[step] for n, v in seen.items()}) for step in range(10)]
    return {f"{name}/decisions": np.stack(actions)}


def trained(expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A trained policy, its monitor, export, journal and evaluations; what is expected of them."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        python(str(ROOT / "train.py"), *TRAINED, "out=run", cwd=work)
        scores = ["scores=[acceleration,logpzo]", "density.width=8", "density.steps=200", "alpha=0.1", "confidence=0"]
        calibration = ["episodes=20", "workers=inline", *scores]
        python("-m", "deploy.calibrate", "checkpoint=run/checkpoint", *calibration, cwd=work)
        shutil.copytree(work / "run" / "checkpoint", HERE / "monitored")
    (HERE / "monitored" / "train_state.pt").unlink()
    python("-m", "deploy.export", "checkpoint=monitored", "monitor=true", "rows=150", "out=export-onnx")
    limits = ["safety.velocity=[3]", "safety.acceleration=[60]"]
    for name, journal, options in (("monitored", "run", limits), ("flow-mlp-choices", "choices", [])):
        python("-m", "deploy.run", f"checkpoint={name}", "seconds=2", f"journal={journal}.journal", *options)
        make_relative(HERE / f"{journal}.journal", name)
    disturbed = ["eval.episodes=6", "eval.perturb.push=8", "eval.perturb.observation_noise=0.01"]
    for name, options in (("evaluation", ["eval.episodes=4"]), ("disturbed", disturbed)):
        python(str(ROOT / "eval.py"), "checkpoint=monitored", f"out={name}", "device=cpu", *EVALUATED, *options, *QUIET)
        (HERE / name / "report.html").unlink()
    policy, exported = policies.load(HERE / "monitored"), load(HERE / "export-onnx")
    found = of_policy("monitored", policy, expected)
    seen = {key.split("/")[1]: value for key, value in expected.items() if key.startswith("observation/")}
    found |= decisions("export-onnx", exported, seen)
    monitor = Monitor(load_monitor(HERE / "monitored", policy), policy)
    decisions("", monitor.policy, seen)
    return found | {"monitor/scores": np.array(monitor.policy.scores_ND)}


def make_relative(journal: Path, checkpoint: str) -> None:
    """Replaces the absolute path in the header of a journal."""
    content = journal.read_bytes()
    end = 12 + int.from_bytes(content[8:12], "little")
    header = json.loads(content[12:end])
    assert Path(header["checkpoint"]) == (HERE / checkpoint).resolve()
    header["checkpoint"] = checkpoint
    text = json.dumps(header).encode()
    journal.write_bytes(content[:8] + len(text).to_bytes(4, "little") + text + content[end:])


def unfinished(expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Killed trainings; what is expected of their policies in the end."""
    folder, found = HERE / "unfinished", {}
    folder.mkdir()
    other = ["head=diffusion", "head.steps=5", "net=transformer", *SMALL["transformer"], "normalizer.action=min_max"]
    for name, options in (("flow", SMALL["mlp"]), ("diffusion", other)):
        python("-c", KILLED, *UNFINISHED, *options, cwd=folder)
        with tempfile.TemporaryDirectory() as whole:
            python(str(ROOT / "train.py"), *UNFINISHED, *options, cwd=Path(whole))
            policy = policies.load(Path(whole) / f"outputs/detour-{name}-0/checkpoint")
            found |= of_policy(f"unfinished-{name}", policy, expected)
    for lock in folder.rglob("writer.lock"):
        lock.unlink()
    return found


if __name__ == "__main__":
    main()
