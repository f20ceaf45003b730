"""Both sides of the comparison with LeRobot: what they have in common, and ours in its terms."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import cells
from benchmarks.peers_process import Peer, PeerPlanner, install
from conf.verbs.train import TrainRoot
from flowhand.commands import train
from flowhand.commands.collect import collect
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import ChunkConfig, Spec
from flowhand.demos.native import Store
from policies.device import select_device

DIMS, BATCH, RATE = [64, 128, 256], 64, 5e-4
UNET = ["net=unet1d", f"net.down_dims={DIMS}", f"train.batch_size={BATCH}", f"train.learning_rate={RATE}"]
FP32 = "train.precision=fp32"
# Diffusion Policy as LeRobot computes it, in our code.
DIFFUSION = [
    *("head=diffusion", "head.prediction=noise", "head.clip=1", "head.spacing=leading", "head.steps=10"),
    *("normalizer.observation=min_max", "normalizer.action=min_max", "chunk.loss_on_padding=true"),
]
WARM = 3  # steps that are not timed


@dataclass
class Side:
    """One task with its demonstrations, and the peer that has them too."""

    config: TrainRoot
    store: Store
    peer: Peer
    parameters: int  # of the peer's policy
    device: torch.device

    @property
    def spec(self) -> Spec:
        """What both sides see and command."""
        return self.store.spec


def configure(overrides: list[str], a: argparse.Namespace, demonstrations: int) -> TrainRoot:
    """Our configuration of an arm."""
    recipe = [*overrides, f"env.task={a.task}", f"data.episodes={demonstrations}", f"seed={a.seed}"]
    config = cells.configure(recipe, a.episodes)
    config.train.device = a.device
    return config


@contextmanager
def side(a: argparse.Namespace, demonstrations: int) -> Iterator[Side]:
    """Collects the demonstrations and hands them to a new peer."""
    config = configure([], a, demonstrations)
    store = collect(config.env, config.data, progress=False)
    data = a.cells.parent / f"{a.task}-{demonstrations}.npz"
    export(store, data)
    python = a.python or install(a.cells.parent / "venv")
    driver = Path(__file__).with_name("peers_lerobot.py").resolve()
    with Peer([python, "-P", driver], a.cells.parent / "peer.log") as peer:
        chunk = config.chunk
        settings = {"down_dims": DIMS, "history": chunk.history, "horizon": chunk.prediction_horizon}
        settings |= {"batch_size": BATCH, "learning_rate": RATE, "seed": a.seed, "threads": 1, "device": a.device}
        told = peer.ask("load", data=str(data.resolve()), **settings)
        yield Side(config, store, peer, told["parameters"], select_device(a.device, 1))


def export(demonstrations: Iterable[Episode], path: Path) -> None:
    """The demonstrations as one npz file: `observation/<name>` and `action` (N, ...), `lengths` (episodes,)."""
    episodes = list(demonstrations)
    arrays = {f"observation/{n}": np.concatenate([e.observation[n] for e in episodes]) for n in episodes[0].observation}
    arrays["action"] = np.concatenate([e.action for e in episodes])
    arrays["lengths"] = np.array([len(e) for e in episodes])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, allow_pickle=False, **arrays)


def planner(s: Side) -> PeerPlanner:
    """The peer's policy for our controller. It predicts from the first observed step on, so less lies ahead."""
    chunk = s.config.chunk
    ahead = chunk.prediction_horizon - chunk.history + 1
    noise_shape = (chunk.prediction_horizon, s.spec.action.size)
    return PeerPlanner(s.peer, s.spec, ChunkConfig(chunk.history, ahead, 1), noise_shape)


def replace_steps(config: TrainRoot, steps: int) -> TrainRoot:
    """The configuration with another number of steps; the warm-up takes a tenth of them at most."""
    warmup = min(config.train.warmup_steps, steps // 10)
    return replace(config, train=replace(config.train, steps=steps, warmup_steps=warmup))


def rehearse(trainer: train.Trainer, seconds: float) -> float:
    """Optimizer steps per second of a trainer that is thrown away."""
    for _ in range(WARM):
        trainer.advance()
    steps, started = trainer.step, now(trainer)
    while time.perf_counter() - started < seconds:
        trainer.advance()
    return (trainer.step - steps) / (now(trainer) - started)


def now(trainer: train.Trainer) -> float:
    """Seconds, when the device has done all it was given."""
    if trainer.bad_step.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
