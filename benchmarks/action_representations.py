"""Which representation of actions to take: one recorded set, its held-out episodes, the same training.

    python -m benchmarks.action_representations PATH            train every arm, then write the result file
    python -m benchmarks.action_representations PATH --steps 500 --arms absolute relative

PATH is a recorded set whose actions and states have the same names, such as the joint targets of a robot. Episodes are
held out by a seed before anything is trained. The error is the mean absolute one over all steps of the predicted chunk
and all windows of the held-out episodes, in the set's units: of all dimensions, and of the median dimension as a share
of what repeating the last action errs. Intervals are bootstrapped by episode, paired with the first arm.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.result import write
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import ChunkConfig, Spec
from flowhand.contracts.planner import learnable
from flowhand.demos.formats import open_dataset
from flowhand.demos.native import Store
from flowhand.demos.states import StateEpisodes
from policies.heads.flow import FlowConfig
from policies.heads.regression import RegressionConfig
from policies.policy import Policy, PolicyConfig
from policies.representation.config import ActionConfig
from policies.training.config import TrainingConfig
from policies.training.trainer import Trainer
from policies.training.windows import Windows

ARMS = {
    "absolute": ActionConfig(),
    "relative": ActionConfig("relative"),
    "relative, statistics by step": ActionConfig("relative", statistics="step"),
    "delta": ActionConfig("delta"),
}
HEADS = {"regression": RegressionConfig, "flow": FlowConfig}
HELD_OUT = 20  # episodes
ROWS = 1024  # windows that are decided at once
DRAWS = 10_000  # of the bootstrap


def error(policy: Policy, spec: Spec, episode: Episode) -> np.ndarray:
    """Mean absolute error (A,) over the chunks of all windows of an episode; steps past its end do not count."""
    chunk = policy.chunk
    windows = Windows([episode], spec, chunk.history, chunk.prediction_horizon)
    noise = torch.randn((len(windows), *policy.noise_shape), generator=torch.Generator().manual_seed(0))
    total, count = torch.zeros(spec.action.size, dtype=torch.float64), 0
    for index in torch.arange(len(windows)).split(ROWS):
        batch = windows.gather(index)
        with torch.no_grad():
            sampled = policy.sample(batch.observation, noise[index])
        apart = (sampled - batch.action).abs().double()[batch.mask]
        total, count = total + apart.sum(0), count + len(apart)
    return (total / count).numpy()


def repeated(spec: Spec, episode: Episode, chunk: ChunkConfig) -> np.ndarray:
    """The same error of the last action, which is repeated over the chunk; the first step of an episode has none."""
    batch = (windows := Windows([episode], spec, 1, chunk.prediction_horizon)).gather(torch.arange(1, len(windows)))
    apart = (windows.action[:-1, None] - batch.action).abs().double()[batch.mask]
    return apart.mean(0).numpy()


def interval(differences: np.ndarray) -> list[float]:
    """The 95 % interval of the mean of differences (E,) between two arms on E episodes."""
    random = np.random.default_rng(0)
    means = differences[random.integers(len(differences), size=(DRAWS, len(differences)))].mean(1)
    return np.quantile(means, (0.025, 0.975)).tolist()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--head", choices=HEADS, default="flow")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=256, help="windows per step")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--out", type=Path, help="the result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = open_dataset(str(options.path))
    if isinstance(data, Store):
        raise ValueError(f"{options.path} is a store of one of flowhand's worlds, expected a recorded set")
    states = StateEpisodes(data)
    episodes, spec = list(states), learnable(states.spec)
    held = sorted(np.random.default_rng(0).permutation(len(episodes))[:HELD_OUT].tolist())
    shown = [episode for i, episode in enumerate(episodes) if i not in held]
    training = TrainingConfig(steps=options.steps, batch_size=options.batch_size, threads=1, device="cpu")
    last = np.array([repeated(spec, episodes[i], ChunkConfig()) for i in held])  # (E, A)
    errors: dict[str, np.ndarray] = {}
    arms: dict[str, dict[str, Any]] = {"repeat the last action": {"error": float(last.mean())}}
    for name in options.arms:
        config, started = PolicyConfig(action=ARMS[name], head=HEADS[options.head]()), time.perf_counter()
        windows = Windows(shown, spec, config.chunk.history, config.chunk.prediction_horizon)
        trainer = Trainer(training, config, spec, windows, torch.device("cpu"), options.seed)
        while trainer.step < training.steps:
            trainer.advance()
        trainer.require_finite()
        policy = trainer.ema.module.eval()
        errors[name] = np.array([error(policy, spec, episodes[i]) for i in held])
        first = errors[options.arms[0]].mean(1)
        arms[name] = {
            "error": float(errors[name].mean()),
            "less_than_first": float((first - errors[name].mean(1)).mean()),
            "less_than_first_interval": interval(first - errors[name].mean(1)),
            "median_share_of_repeating": float(np.median(errors[name].mean(0) / last.mean(0))),
            "dimensions_better_than_repeating": int((errors[name].mean(0) < last.mean(0)).sum()),
            "by_dimension": errors[name].mean(0).tolist(),
            "seconds": round(time.perf_counter() - started, 1),
        }
        print(name, {key: value for key, value in arms[name].items() if key != "by_dimension"}, flush=True)
    content = {
        "data": options.path.name,
        "unit": spec.action.unit,
        "names": list(spec.action.names or ()),
        "head": options.head,
        "steps": options.steps,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "held_out": held,
        "episodes": len(episodes),
        "repeating_by_dimension": last.mean(0).tolist(),
        "arms": arms,
    }
    write("action_representations", content, options.out, device="cpu", threads=1)


if __name__ == "__main__":
    main()
