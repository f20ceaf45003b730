"""The steps of the GPU kit, one a process: `python -m benchmarks.gpu.steps STEP [--dry-run] FILE`. Run by kit.py."""

from __future__ import annotations

import argparse
import copy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch.overrides import TorchFunctionMode

import policies
from benchmarks import latency_cuda, ranks, training
from benchmarks.gpu.kit import load, store
from benchmarks.latency_floor import Machine, timed
from benchmarks.latency_turns import random_policy
from conf.cli import compose
from flowhand.commands import eval as evaluation
from flowhand.commands import train
from flowhand.contracts.features import Spec
from policies.device import select_device
from policies.heads import HEADS

FLOW_10 = ["head=flow", "head.steps=10"]
LARGE_NET = ["net=transformer", "net.width=512", "net.blocks=4", "net.heads=8"]  # 20 million parameters
TINY = ["encoder.width=16", "net.width=16", "net.blocks=1"]
LOSS_WITHIN, SAMPLE_WITHIN = 1e-4, 1e-3  # of the CPU's loss, and of an action's spread


class Step:
    """Where a step computes, how much, and where its findings go."""

    def __init__(self, file: Path, dry: bool):
        self.dry, self._file = dry, file
        self.device = select_device("cpu" if dry else "cuda", 1)
        self._found: dict[str, Any] = {
            "dry_run": dry,
            "hardware": evaluation.hardware(self.device),
            "versions": evaluation.versions(),
            "git_sha": _commit(),
        }

    def note(self, **found: Any) -> None:
        """Adds findings; what is there already stays, and of a dict its entries."""
        for name, value in found.items():
            old = self._found.get(name)
            self._found[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        store(self._file, self._found)


def machine(step: Step) -> None:
    """What the machine is, and its rates of multiplying and copying."""
    large, found = Machine(step.device), {}
    for dtype in (torch.float32, torch.bfloat16):
        found[str(dtype).removeprefix("torch.")] = large.rate(dtype) / 1e12
        step.note(matmul_tflop_rate=found)
    source = torch.ones(2**20 if step.dry else 2**28, device=step.device)
    target = torch.empty_like(source)
    seconds = [timed(lambda: target.copy_(source), step.device) for _ in range(10)]
    step.note(copy_gb_per_s=2 * source.nbytes / min(seconds) / 1e9)
    if not step.dry:
        query = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem",
            "--format=csv,noheader",
        ]
        step.note(
            nvidia_smi=subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip(),
            cuda=torch.version.cuda,
            capability=list(torch.cuda.get_device_capability()),
        )


def decisions(step: Step) -> None:
    """The time of a decision with ten evaluations: eager, and as one captured graph; one row, and many."""
    torch.backends.cudnn.allow_tf32 = False
    nets = {"mlp": [*TINY, "head.steps=2"]} if step.dry else {"transformer-20m": LARGE_NET, "mlp": ["net=mlp"]}
    batches, calls, seconds = ([1, 4], 3, 0.1) if step.dry else ([1, 4096], 5000, 3.0)
    known = Machine(step.device)
    for name, net in nets.items():
        policy = random_policy([*FLOW_10, *net])
        for cell in latency_cuda.cells(policy, batches, known, calls, seconds):
            print(name, latency_cuda.told(cell), flush=True)
            step.note(cells={f"{name} {cell['batch']}": cell})


def learning(step: Step) -> None:
    """A captured training step of the demo's policy, then samples per second by batch size, eager and compiled."""
    tiny = [*TINY, "train.batch_size=8"] if step.dry else []
    step.note(captured_step=captured_step(["experiment=demo", *tiny], step.device))
    known, rounds = Machine(step.device), 1 if step.dry else 3
    precision = "train.precision=fp32" if step.dry else "train.precision=bf16"
    for compiled in (False, True):
        for rows in [8] if step.dry else [1024, 16384] if compiled else [256, 1024, 4096, 16384]:
            changed = [precision, *tiny, f"train.batch_size={rows}", f"train.compile={str(compiled).lower()}"]
            cell = training.measure(changed, known, 1, rounds)
            name = f"{'compiled' if compiled else 'eager'} {rows}"
            print(name, f"{cell['samples_per_s']:,.0f} samples/s", flush=True)
            step.note(cells={name: cell})


def captured_step(overrides: list[str], device: torch.device) -> dict[str, Any]:
    """The time of a whole training step as one graph, over that of its matrix products, captured the same way."""
    config, spec = compose(overrides), Spec.from_dict(training.FEATURES)
    shapes = training.shapes_of_a_step(config, spec, device)
    trainer = train.trainer_of(config, spec, training.episodes(), device)
    for group in trainer.optimizer.param_groups:
        group["capturable"] = True
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    multiply = captured(training.products(shapes, dtype, device), device)
    advance = captured(trainer.advance, device, trainer.generator)
    seconds = min(training.seconds_per_call(advance, 1.0, device) for _ in range(3))
    products_s = min(training.seconds_per_call(multiply, 0.5, device) for _ in range(3))
    trainer.require_finite()
    return {
        "captured": device.type == "cuda",
        "batch_size": config.train.batch_size,
        "parameters": sum(p.numel() for p in trainer.policy.parameters()),
        "step_ms": 1e3 * seconds,
        "matmul_ms": 1e3 * products_s,
        "samples_per_s": config.train.batch_size / seconds,
        "over_matmul_time": seconds / products_s,
    }


def captured(
    call: Callable[[], object], device: torch.device, generator: torch.Generator | None = None
) -> Callable[[], object]:
    """The call as a CUDA graph, whose random numbers go on from replay to replay; on a CPU the call itself."""
    if device.type != "cuda":
        return call
    side, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(side)
    if generator is not None:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph, stream=side):
        call()
    return graph.replay


class DrawnOnCpu(TorchFunctionMode):
    """Draws all random numbers of the block on the CPU, from the CPU's generator that is given, and moves them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every function."""
        kwargs = kwargs or {}
        if kwargs.get("generator") is None:
            return func(*args, **kwargs)
        device = kwargs.get("device", "cpu")
        return func(*args, **{**kwargs, "device": "cpu"}).to(device)


def parity(step: Step) -> None:
    """Losses and samples of every head on one net, and of one head on every net, against the CPU's."""
    torch.backends.cudnn.allow_tf32 = False
    heads = [(f"mlp {head}", ["net=mlp", f"head={head}"]) for head in sorted(HEADS)]
    nets = [(f"{net} flow", [f"net={net}", "head=flow"]) for net in ("transformer", "unet1d")]
    worst: list[bool] = []
    for name, overrides in heads[:2] if step.dry else [*heads, *nets]:
        found = compared(random_policy([*overrides, *(TINY if step.dry else [])]), step.device)
        worst.append(found["loss_differs_by"] < LOSS_WITHIN and found["sample_differs_by"] < SAMPLE_WITHIN)
        print(name, found, flush=True)
        step.note(cells={name: found}, within={"loss": LOSS_WITHIN, "sample": SAMPLE_WITHIN}, all_within=all(worst))


def compared(policy: policies.Policy, device: torch.device) -> dict[str, float]:
    """How far a policy on the device is from the one on the CPU, in fp32: of the loss, and of an action's spread."""
    there, chunk, spec = copy.deepcopy(policy).to(device), policy.chunk, policy.spec
    draw = torch.Generator().manual_seed(1)
    rows = 64
    observation = {n: torch.randn(rows, chunk.history, *f.shape, generator=draw) for n, f in spec.observation.items()}
    action = torch.randn(rows, chunk.prediction_horizon, spec.action.size, generator=draw)
    noise = torch.randn(rows, *policy.noise_shape, generator=draw)
    mask, losses, samples = torch.ones(rows, chunk.prediction_horizon, dtype=torch.bool), [], []
    for each in (policy, there):
        on = each.action_normalizer.shift.device
        seen = {name: value.to(on) for name, value in observation.items()}
        batch = policies.Batch(seen, action.to(on), mask.to(on))
        with torch.no_grad(), DrawnOnCpu():
            losses.append(each.loss(batch, torch.Generator().manual_seed(2)).item())
        with torch.no_grad():
            samples.append(each.sample(seen, noise.to(on)).cpu())
    spread = policy.action_normalizer.scale
    return {
        "loss": losses[0],
        "loss_differs_by": abs(losses[1] - losses[0]) / abs(losses[0]),
        "sample_differs_by": float(((samples[1] - samples[0]) / spread).abs().max()),
    }


def processes(step: Step) -> None:
    """Two processes on one card, by gloo: the weights that one comes to, and samples per second beside two alone."""
    few = ["train.batch_size=8", *TINY]
    for head in ("flow", "mean_flow") if step.dry else HEADS:
        with folder() as out:
            words = [f"head={head}", "train.precision=fp32", *(few if step.dry else ranks.SMALL)]
            differs = ranks.difference(words, 2 if step.dry else ranks.STEPS, step.device.type, out / "weights")
            step.note(weights_differ_by={head: differs})
    rounds = {"rounds": 1, "seconds": 0.1} if step.dry else {"rounds": 3, "seconds": 2.0}
    for name, case in ranks.SPEEDS.items():
        small = {"batch": 16, "overrides": [*case["overrides"], *TINY]} if step.dry else {}
        with folder() as out:
            whole = {"case": "speed", "device": step.device.type, **case, **rounds, **small}
            step.note(speed={name: ranks.processes(whole, 2, out / "speed")})


def task(step: Step) -> None:
    """Small tasks from demonstrations to success rate: detour, then the README's demo where Meta-World is there."""
    few = ["train.steps=3", "data.episodes=3", "eval.episodes=2", "eval.n_envs=1", "train.batch_size=8"]
    limits = [*few, *TINY] if step.dry else ["eval.episodes=100", "data.workers=8", "eval.n_envs=8"]
    runs = {"detour": ["env=detour", "train.steps=3" if step.dry else "train.steps=3000"]}
    if not step.dry and installed("metaworld"):
        runs["pick-place"] = ["experiment=demo"]
    for name, overrides in runs.items():
        with folder() as out:
            quiet = ["wandb.mode=disabled", "eval.videos=0", f"data.cache_dir={out}/demos", f"out={out}/run"]
            where = [f"train.device={step.device.type}"]
            start = time.monotonic()
            done = subprocess.run([sys.executable, "train.py", *overrides, *limits, *quiet, *where], check=False)
            if done.returncode:
                raise ValueError(f"train.py ended with exit status {done.returncode} on {name}")
            step.note(runs={name: {**load(out / "run" / "metrics.json"), "wall_s": round(time.monotonic() - start, 1)}})


def many_tasks(step: Step) -> None:
    """MT10 from states, one policy that is told its task: demonstrations, training and 20 episodes a task."""
    if step.dry:
        tiny = ["train.steps=3", "data.episodes=2", "eval.episodes=1", "eval.n_envs=1", "train.batch_size=8", *TINY]
        overrides = ["env=detour", "env.task=[left,right]", "words=index", *tiny]
    elif not installed("metaworld"):
        step.note(skipped="metaworld is not installed")
        return
    else:
        overrides = ["experiment=mt10", "eval.episodes=20", "data.workers=8", "eval.n_envs=8"]
    with folder() as out:
        quiet = ["wandb.mode=disabled", "eval.videos=0", f"data.cache_dir={out}/demos", f"out={out}/run"]
        start = time.monotonic()
        words = [sys.executable, "train.py", *overrides, *quiet, f"train.device={step.device.type}"]
        done = subprocess.run(words, check=False)
        if done.returncode:
            raise ValueError(f"train.py ended with exit status {done.returncode} on many tasks")
        step.note(overrides=overrides, metrics=load(out / "run" / "metrics.json"), wall_s=time.monotonic() - start)


def tests(step: Step) -> None:
    """The tests that need CUDA; without it all are skipped."""
    count: dict[str, int] = {}
    bad: list[str] = []
    for marked in ("not slow", "slow"):
        with folder() as out:
            options = [
                "-q",
                "--noconftest",
                "-p",
                "no:logging",
                "-p",
                "no:cacheprovider",
                f"--junitxml={out}/tests.xml",
            ]
            parallel = [] if step.dry else ["-n", "4"]
            chosen = ["-m", marked, "-k", "captured_graph", "tests/policies/compiled_cases.py"]
            subprocess.run([sys.executable, "-m", "pytest", *options, *parallel, *chosen], check=False)
            for case in ElementTree.parse(out / "tests.xml").iter("testcase"):
                tags = {child.tag for child in case}
                kind = next((tag for tag in ("failure", "error", "skipped") if tag in tags), "passed")
                count[kind] = count.get(kind, 0) + 1
                bad += [str(case.get("name"))] if kind in ("failure", "error") else []
        step.note(count=count, failed=bad, failures=len(bad))


def installed(name: str) -> bool:
    """Whether a package can be imported."""
    return subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, check=False).returncode == 0


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for what is thrown away."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _commit() -> str:
    if not shutil.which("git"):
        return ""
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()


STEPS: dict[str, Callable[[Step], None]] = {
    "machine": machine,
    "decisions": decisions,
    "training": learning,
    "parity": parity,
    "processes": processes,
    "task": task,
    "many_tasks": many_tasks,
    "tests": tests,
}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    STEPS[arguments.step](Step(arguments.file, arguments.dry_run))


if __name__ == "__main__":
    main()
