"""What images cost: training images per second of every vision encoder, and the time of a decision that sees.

    python -m benchmarks.pixels [--parts training decision] [--rounds R] [--batch N] [--sizes 64 96] [--device cpu]
                                [--out FILE]

Training: steps of the trainer, augmentation and optimizer included, on random images of one camera with a state beside
them, one observation of history, the default mlp and flow head. Of conv also with several draws of noise for each
encoded image (train.draws). bf16 runs beside fp32 where the processor has units for it.

On a CPU seconds are those of the one core that computes, so that other programs on the machine count for little.

Decision: conv and mlp with four evaluations, exported to ONNX, one camera of 96 x 96, one thread. Its floor is the time
that the machine needs for the matrix products and convolutions alone (benchmarks/latency_floor.py). Each round times a
stretch of decisions, one of torch and one of the machine's own rate, so that a busy minute meets all of them; what is
told is the median over the rounds. Beside the seconds of the core stands the time on the wall.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.latency_floor import Machine, wait, work
from benchmarks.result import write
from conf.cli import compose
from conf.verbs.export import ExportConfig
from flowhand.commands import train
from flowhand.commands.export import export
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import Feature, Spec
from flowhand.deploy.runner import load
from policies import Policy
from policies.device import cpu_threads, has_bf16_units, select_device
from policies.training.trainer import Trainer

DT_S = 0.1
STATE, ACTION = Feature((7,), "float32", ""), Feature((4,), "float32", "")
ENCODERS = ("conv", "resnet18", "vit")
DRAWS = (1, 4, 8)
CALLS = 60  # decisions of a stretch
DECISIONS = {  # name: what the policy is
    "conv, 1 image": ["vision=conv", "chunk.history=1"],
    "conv, 2 observations, newest image": ["vision=conv", "chunk.history=2", "vision.frames=1"],
    "conv, 2 images": ["vision=conv", "chunk.history=2"],
    "no image": ["chunk.history=1"],
}


def spec_of(size: int) -> Spec:
    """A state and, of a size above 0, one camera."""
    camera = {"camera": Feature((size, size, 3), "uint8", "", camera="front")} if size else {}
    return Spec({"state": STATE, **camera}, ACTION, DT_S)


def episodes(spec: Spec, count: int = 4, length: int = 64) -> list[Episode]:
    """Random ones; the speed of a step does not depend on the values."""
    random, found = np.random.default_rng(0), []
    for seed in range(count):
        observation = {
            name: random.integers(0, 256, (length, *feature.shape), np.uint8)
            if feature.kind == "image"
            else random.standard_normal((length, *feature.shape), np.float32)
            for name, feature in spec.observation.items()
        }
        action, rest = random.standard_normal((length, 4), np.float32), np.zeros(length, np.float32)
        found.append(Episode(observation, action, rest, np.zeros(length, bool), "", seed, DT_S))
    return found


def trainer_of(overrides: list[str], size: int, device: torch.device) -> Trainer:
    """A trainer on random images."""
    config, spec = compose(["env=none", *overrides]), spec_of(size)
    return train.trainer_of(config, spec, episodes(spec), device)


class Core(Machine):
    """A machine whose seconds are those of the core that computes."""

    def _best(self, call: Callable[[], torch.Tensor]) -> float:
        """The shortest of the calls that fit into the time, at least three."""
        times, end = [], time.process_time() + self.seconds
        while len(times) < 3 or time.process_time() < end:
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
        return min(times)


def clock(device: torch.device) -> float:
    """Seconds: of this process's core, or on the wall where a GPU computes."""
    wait(device)
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def seconds_of(step: Callable[[], object], at_least: float, device: torch.device) -> float:
    """Mean time of a step over a stretch."""
    start, count = clock(device), 0
    while count < 2 or clock(device) - start < at_least:
        step()
        count += 1
    return (clock(device) - start) / count


def training(
    vision: str, size: int, batch: int, precision: str, machine: Machine, rounds: int, draws: int = 1
) -> dict[str, Any]:
    """Images per second of one encoder, and the share of the machine's rate that its products reach."""
    overrides = [f"vision={vision}", f"train.batch_size={batch}", f"train.precision={precision}", "chunk.history=1"]
    trainer = trainer_of([*overrides, f"train.draws={draws}"], size, machine.device)
    trainer.advance()
    steps = [seconds_of(trainer.advance, 0.5, machine.device) for _ in range(rounds)]
    seconds = statistics.median(steps)
    forward = work(trainer.policy).operations if machine.device.type == "cpu" else None
    return {
        "vision": vision,
        "pixels": size,
        "batch": batch,
        "precision": precision,
        "draws": draws,
        "images_per_s": round(batch / seconds, 1),
        "noise_draws_per_s": round(batch * draws / seconds, 1),
        "seconds_per_step": [round(each, 4) for each in steps],
        "parameters": sum(p.numel() for p in trainer.policy.encoder.parameters()),
        "operations_of_a_decision": forward,
    }


def policy_of(overrides: list[str], size: int) -> Policy:
    """A policy of a few training steps, so that its actions are those of one."""
    trainer = trainer_of([*overrides, "train.batch_size=16"], size, torch.device("cpu"))
    for _ in range(3):
        trainer.advance()
    return trainer.policy.eval().requires_grad_(False)


def decision(name: str, machine: Machine, rounds: int) -> dict[str, Any]:
    """Median time of a decision at batch 1: exported, in torch, and the floor."""
    policy = policy_of(DECISIONS[name], 0 if name == "no image" else 96)
    seen = {n: torch.from_numpy(e[None]) for n, e in example(policy).items()}
    noise = torch.randn((1, *policy.noise_shape), generator=torch.Generator().manual_seed(0))
    golden = {**{f"observation.{n}": value for n, value in seen.items()}, "noise": noise}
    asked = work(policy)
    with tempfile.TemporaryDirectory() as folder:
        manifest = export(Path(folder) / "p", policy, golden, {}, ExportConfig(rows=20, tolerance=1e-4))
        planner = load(Path(folder) / "p", threads=1)
    observation, given = {n: value.numpy() for n, value in seen.items()}, noise.numpy()
    stretches: dict[str, list[list[float]]] = {"onnx": [], "torch": [], "onnx_wall": [], "torch_wall": []}
    floors = []
    for _ in range(rounds):
        for who, each in (("onnx", planner), ("torch", policy)):
            core, wall = stretch(lambda each=each: each.plan(observation, given))
            stretches[who].append(core)
            stretches[f"{who}_wall"].append(wall)
        floors.append(Core(machine.device, 0.3).floor_s(asked, 1))
    told = {who: summary(times) for who, times in stretches.items()}
    floor_ms = 1e3 * statistics.median(seconds for seconds, _ in floors)
    return {
        "policy": name,
        "evaluations": policy.head.evaluations,
        "operations": asked.operations,
        "max_error": manifest.parity.max_error,
        **{f"{who}_ms": value for who, value in told.items()},
        "floor_ms": round(floor_ms, 3),
        "floor_is": floors[0][1],
        "p50_over_floor": round(told["onnx"]["p50"] / floor_ms, 2),
    }


def example(policy: Policy) -> dict[str, np.ndarray]:
    """One observation history (O, *shape)."""
    history = policy.chunk.history
    return {name: value[:history] for name, value in episodes(policy.spec, 1)[0].observation.items()}


def stretch(decide: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Milliseconds of decisions one after the other: of the core, and on the wall."""
    for _ in range(5):
        decide()
    core, wall = [], []
    for _ in range(CALLS):
        starts = time.process_time(), time.perf_counter()
        decide()
        core.append(1e3 * (time.process_time() - starts[0]))
        wall.append(1e3 * (time.perf_counter() - starts[1]))
    return core, wall


def summary(stretches: list[list[float]]) -> dict[str, float]:
    """The median over stretches of their median, 95th percentile, and least."""
    quantiles = {"p50": 0.5, "p95": 0.95, "least": 0.0}
    return {
        name: round(statistics.median(float(np.quantile(times, q)) for times in stretches), 3)
        for name, q in quantiles.items()
    }


def measure(arguments: argparse.Namespace, save: Callable[[dict[str, Any]], object]) -> None:
    """All cells; what is finished is saved after each, for a killed run to leave."""
    device = select_device(arguments.device, 1)
    machine, trained, decided = Machine(device), [], []
    precisions = ["fp32"] + (["bf16"] if has_bf16_units(device) else [])
    cells: list[tuple[str, int, str, int]] = [
        (vision, size, precision, 1) for precision in precisions for size in arguments.sizes for vision in ENCODERS
    ]
    cells += [("conv", max(arguments.sizes), precision, n) for precision in precisions for n in DRAWS[1:]]
    for vision, size, precision, draws in cells if "training" in arguments.parts else ():
        cell = training(vision, size, arguments.batch, precision, machine, arguments.rounds, draws)
        trained.append(cell)
        save({"training": trained, "decision": decided})
        print(
            f"{vision:9s} {size:3d} pixels {precision} {draws} draws {cell['images_per_s']:9,.1f} images/s", flush=True
        )
    for name in DECISIONS if device.type == "cpu" and "decision" in arguments.parts else ():
        cell = decision(name, machine, arguments.rounds)
        decided.append(cell)
        save({"training": trained, "decision": decided})
        print(
            f"{name:36s} p50 {cell['onnx_ms']['p50']:.2f} ms (torch {cell['torch_ms']['p50']:.2f}), "
            f"{cell['p50_over_floor']} times the floor of {cell['floor_ms']:.2f} ms",
            flush=True,
        )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["training", "decision"], default=["training", "decision"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with cpu_threads(1):
        measure(arguments, lambda found: write("pixels", found, arguments.out, device=arguments.device, threads=1))


if __name__ == "__main__":
    main()
