"""Hostile input by the hundred thousand: nothing may answer with anything but an explanation of one line.

    python -m benchmarks.fuzz [--scale S] [--seed N] [--only TARGET,TARGET] [--case I] [--out FILE]

A target makes and runs one case from a random generator that depends on (seed, target, number of the case) alone, and
says how it ended; whatever it raises is a finding, and its number is printed. The targets here run in this process;
`benchmarks/fuzz_wire.py` has those that need a live server, under which a good client is served throughout. A new
target is a function that takes a folder and gives a case, and one line in TARGETS.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import policies
from benchmarks import fuzz_onnx, fuzz_state, fuzz_store, fuzz_wire
from benchmarks.fuzz_inputs import (
    message,
    mutated,
    mutated_text,
    observation,
    one_line,
    other_journal,
    other_json,
    other_tensors,
)
from benchmarks.result import write
from benchmarks.toy_server import ToyPolicy
from conf import cli
from conf.verbs.export import ExportConfig
from flowhand.commands.export import export
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.export.artifact import MANIFEST, fingerprint, read
from flowhand.contracts.export.band import Band
from flowhand.contracts.features import Spec
from flowhand.control.journal import observation_of
from flowhand.control.journal import read as read_journal
from flowhand.control.limits.config import SafetyConfig
from flowhand.control.replay import open_journal, replay
from flowhand.control.runtime import REASONS
from flowhand.control.safety import Safety
from flowhand.deploy.client import Client, unpack
from flowhand.deploy.runner import load
from flowhand.deploy.server.session import Session
from policies.monitor.calibrated import CalibratedMonitor, Calibration, MonitorConfig, load_monitor, save_monitor
from policies.monitor.density import Density, DensityConfig
from policies.monitor.watched_policy import WatchedPolicy

Case = Callable[[random.Random], str]  # runs one case and says how it ended


def request(_: Path) -> Case:
    """What the server does with a message of a client."""
    policy, good = ToyPolicy(), observation()

    def case(rng: random.Random) -> str:
        try:
            histories = Session(policy).read(unpack(message(rng, good)))
        except ValueError as error:
            one_line(str(error))
            return "refused"
        assert histories["joints"].shape == (2, 3)
        assert histories["joints"].dtype == np.float32
        assert np.isfinite(histories["joints"]).all()
        assert histories["camera"].shape == (2, 8, 8, 3)
        return "taken"

    return case


def answer(_: Path) -> Case:
    """What the client does with a message of a server."""
    client = Client("ws://127.0.0.1")
    client._metadata = {"chunk_shape": [8, 2]}
    good = {"actions": np.zeros((8, 2), np.float32), "server_timing": {"infer_ms": 1.0}}

    def case(rng: random.Random) -> str:
        try:
            content = unpack(message(rng, good))
            client._check(content if isinstance(content, dict) else {})
        except ValueError as error:
            one_line(str(error))
            return "refused"
        assert content["actions"].shape == (8, 2)
        assert np.isfinite(content["actions"]).all()
        return "taken"

    return case


def verdict(read: Callable[[], object]) -> str:
    """Whether what is read is taken, or refused as it should be."""
    try:
        read()
    except ValueError as error:
        one_line(str(error))
        return "refused"
    return "taken"


def small_policy() -> policies.Policy:
    """A policy that is quick to make, with random weights."""
    config = cli.compose(["encoder.width=8", "net.width=8", "net.blocks=1", "chunk.prediction_horizon=4"])
    feature = {"shape": [2], "dtype": "float32", "unit": "m", "low": None, "high": None}
    spec = Spec.from_dict({"observation": {"state": feature}, "action": feature, "control_dt_s": 0.1})
    policy = policies.Policy(config.policy, spec)
    policy.fit_normalizers({"state": torch.randn(20, 2)}, torch.randn(20, 2))
    return policy.eval().requires_grad_(False)


def checkpoint(folder: Path) -> Path:
    """A checkpoint of a very small policy."""
    policy = small_policy()
    source = policies.Provenance({"kind": "toy"}, "toy", "reach", "", [], {}, "", 0)
    policies.save(folder / "checkpoint", policy, source, {"state": torch.zeros(1, policy.chunk.history, 2)}, {})
    return folder / "checkpoint"


def checkpoint_config(folder: Path) -> Case:
    """Reading a checkpoint's configuration."""
    path = checkpoint(folder)
    good = (path / "config.json").read_bytes()

    def case(rng: random.Random) -> str:
        (path / "config.json").write_bytes(other_json(rng, good))
        return verdict(lambda: policies.read_config(path))

    return case


def checkpoint_tensors(folder: Path) -> Case:
    """Loading a checkpoint whose weights or stored actions were tampered with."""
    path = checkpoint(folder)
    good = {name: (path / name).read_bytes() for name in ("model.safetensors", "golden.safetensors")}

    def case(rng: random.Random) -> str:
        name = rng.choice(list(good))
        (path / name).write_bytes(other_tensors(rng, good[name]))
        try:
            return verdict(lambda: policies.load(path))
        finally:
            (path / name).write_bytes(good[name])

    return case


def artifact(folder: Path) -> Path:
    """An exported policy with its monitor, very small."""
    policy = small_policy()
    golden = {"observation.state": torch.zeros(2, policy.chunk.history, 2), "noise": torch.zeros(2, 4, 2)}
    export(folder / "artifact", policy, golden, {}, ExportConfig(rows=10), calibrated(policy))
    return folder / "artifact"


def calibrated(policy: policies.Policy) -> CalibratedMonitor:
    """A monitor with a band of its own making."""
    config, execution = MonitorConfig(["acceleration", "logpzo"], density=DensityConfig(width=8)), ExecutionConfig()
    interval = WatchedPolicy(policy, ["acceleration"], execution).interval
    band = Band(np.zeros((3, 2)), np.ones((3, 2)), 2.0, config.alpha, config.confidence, 40)
    about = Calibration(config, execution.mode, interval, {"kind": "toy"}, 3_000_000, 60, 60)
    density = Density(config.density, policy.encoder.size).requires_grad_(False)
    return CalibratedMonitor(about, band, density)


def manifest(folder: Path) -> Case:
    """Reading an exported policy's manifest, and judging by the monitor that is in it."""
    path = artifact(folder)
    good = (path / MANIFEST).read_bytes()

    def judge() -> None:
        watched = read(path)[0].monitor
        if watched:
            watched.band.alarm(np.zeros((4, len(watched.scores))))

    def case(rng: random.Random) -> str:
        (path / MANIFEST).write_bytes(other_json(rng, good))
        return verdict(judge)

    return case


def model(folder: Path) -> Case:
    """Loading an exported policy whose graph or stored actions were tampered with, by someone who mends the hashes."""
    path = artifact(folder)
    told = json.loads((path / MANIFEST).read_text())
    good = {name: (path / name).read_bytes() for name in told["files"]}

    def case(rng: random.Random) -> str:
        name = rng.choice(list(good))
        cut = rng.choice((64, 2048, len(good[name])))
        changed = mutated(rng, good[name][:cut]) + good[name][cut:]
        (path / name).write_bytes(changed)
        files = told["files"] | {name: fingerprint(changed)}
        (path / MANIFEST).write_text(json.dumps(told | {"files": files}))
        try:
            return verdict(lambda: load(path))
        finally:
            (path / name).write_bytes(good[name])

    return case


def monitor(folder: Path) -> Case:
    """Loading a checkpoint's monitor that was tampered with, and judging by it."""
    path = checkpoint(folder)
    policy = policies.load(path)
    stored = save_monitor(path, calibrated(policy))
    good = {file: file.read_bytes() for file in sorted(stored.iterdir())}

    def judge() -> None:
        monitor = load_monitor(path, policy)
        monitor.band.alarm(np.zeros((4, len(monitor.watch(policy, ExecutionConfig()).names))))

    def case(rng: random.Random) -> str:
        file = rng.choice(list(good))
        other = other_json if file.suffix == ".json" else other_tensors
        file.write_bytes(other(rng, good[file]))
        try:
            return verdict(judge)
        finally:
            file.write_bytes(good[file])

    return case


class Halving:
    """The policy of the journal below: half of what it sees, and as it sees it from its second step on."""

    steps = 0

    def reset(self, *, seed: int) -> None:
        """Starts an episode."""
        self.steps = seed % 2

    def skip(self, steps: int) -> None:
        """Lets control steps pass."""
        self.steps += steps

    def step(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """The action of a control step."""
        self.steps += 1
        return observation["state"] * (0.5 if self.steps < 2 else 1.0)


def journal(folder: Path) -> Case:
    """Reading the journal of a run, of which what is before the damage must be there and nothing else; its replay."""
    logging.getLogger("flowhand.control.safety").setLevel(logging.CRITICAL)  # it says what it refuses
    path, spec = folder / "journal", small_policy().spec
    writer, policy = open_journal(path, spec, {"note": ["any"]}), Halving()
    limits = SafetyConfig(velocity=[5.0], acceleration=[90.0], max_chunk_age_s=1.0, chunk_jump=[0.1])
    safety = Safety.for_spec(spec, limits)
    policy.reset(seed=3)
    for step in range(6):
        observation = {"state": np.full(2, 0.3 * step, np.float32)}
        action = policy.step(observation)
        said = safety.refuse("alarm", observation) if step == 3 else safety.step(action, observation)
        values = {"step": step, "asked": 1, "observed_ns": 1, "sent": 1, "restarted": step == 0, "seed": 3}
        values |= {"observation.state": observation["state"], "action": action, "safe": said.action}
        writer.append({**values, "refused": REASONS.index(said.refused)}, said.clamps, f"step {step}")
    writer.close()
    good, size = path.read_bytes(), read_journal(path).records.dtype.itemsize
    start = len(good) - 6 * size
    assert replay(read_journal(path), Halving(), Safety.for_spec(spec, limits)).commands == 6

    def case(rng: random.Random) -> str:
        data = other_journal(rng, good)
        path.write_bytes(data)
        try:
            recording = read_journal(path)
        except ValueError as error:
            one_line(str(error))
            return "refused"
        found = recording.records.tobytes()
        assert 12 + int.from_bytes(data[8:12], "little") + len(found) + recording.lost_bytes == len(data)
        assert all(len(observation_of(record)) <= len(recording.header["record"]) for record in recording.records)
        if data[:start] == good[:start] and recording.lost_bytes:
            ends = range(start + size, len(good) + 1, size)
            whole = sum(data[:end] == good[:end] for end in ends)
            assert found[: size * whole] == good[start : start + size * whole]
        again = verdict(lambda: replay(recording, Halving(), Safety.for_spec(spec, limits)))
        part = " in part" if recording.lost_bytes else ""
        return f"read{part}, {'replayed' if again == 'taken' else 'another decision'}"

    return case


def overrides(_: Path) -> Case:
    """Composing a configuration from a command line."""
    words = ["head=flow", "head.steps=3", "train.steps=10", "env.task=reach-v3", "chunk.history=2", "seed=1"]
    values = ["x", "-1", "1e999", "null", "[1,2]", "{a:1}", "${seed}", "${nope}", "${oc.env:NOPE}", "'", "", "é", "\\"]
    signs, tails = ["", "", "", "+", "~", "++"], ["", "", "", ".x", "x", "@y"]

    def case(rng: random.Random) -> str:
        chosen: list[str] = [*rng.sample(words, rng.randint(0, 3))]
        for _ in range(rng.randint(0, 2)):
            key = rng.choice(signs) + rng.choice(words).partition("=")[0] + rng.choice(tails)
            value = rng.choice(values) if rng.random() < 0.7 else rng.randint(1, 9)
            chosen.append(f"{key}={value}" if rng.random() < 0.8 else mutated_text(rng, key))
        try:
            with cli.one_line_errors():
                cli.compose(chosen)
        except SystemExit as end:
            one_line(str(end.code))
            return "refused"
        return "taken"

    return case


# By which a target's memory may grow over the last nine tenths of its cases, peaks included. Allocators and caches that
# settle take up to 8 MiB. It shows what one input made it allocate, and what each left behind: 0.6 KiB of each of
# 60,000 requests, 36 KiB of each of 1,000 command lines.
GROWTH_MIB = 32.0
MOST_BYTES = 2**33  # of address space: who asks for more gets a MemoryError, a finding, and not the machine's memory

TARGETS: dict[str, tuple[Callable[[Path], Case], int]] = {  # how to make its case, and number of cases at scale 1
    "request": (request, 60_000),
    "answer": (answer, 40_000),
    "checkpoint_config": (checkpoint_config, 4_000),
    "checkpoint_tensors": (checkpoint_tensors, 2_000),
    "manifest": (manifest, 4_000),
    "model": (model, 2_000),
    "monitor": (monitor, 4_000),
    "journal": (journal, 100_000),
    "overrides": (overrides, 1_000),
    "store": (fuzz_store.target, 100_000),
    "onnx": (fuzz_onnx.onnx_bytes, 100_000),
    "train_state": (fuzz_state.target, 100_000),
}


def fuzz(name: str, numbers: range, seed: int) -> dict[str, Any]:
    """Runs these cases of a target; what is not explained in one line is printed and counted as a finding."""
    outcomes: Counter[str] = Counter()
    findings: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        case = TARGETS[name][0](Path(folder))
        start, before = time.perf_counter(), 0.0
        for done, number in enumerate(numbers):
            if done == len(numbers) // 10:  # what follows should need no more memory
                gc.collect()  # garbage that goes later would hide what comes
                Path("/proc/self/clear_refs").write_text("5")  # makes the largest that it had what it has now
                before = largest_mib()
            try:
                outcomes[case(random.Random(f"{seed}/{name}/{number}"))] += 1
            except Exception as error:  # every kind is a finding
                findings.append(f"{number}: {type(error).__name__}: {error}"[:300])
                if len(findings) <= 3:
                    print(f"{name} --seed {seed} --case {number}\n{traceback.format_exc()}", flush=True)
    seconds, growth = time.perf_counter() - start, largest_mib() - before
    if growth > GROWTH_MIB and len(numbers) > 1:
        findings.append(f"memory grew by {growth:.0f} MiB")
    return {
        "cases": len(numbers),
        "outcomes": dict(outcomes),
        "findings": len(findings),
        "examples": findings[:10],
        "cases_per_s": round(len(numbers) / seconds),
        "growth_mib": round(growth, 1),
    }


def largest_mib() -> float:
    """Largest memory that this process has had since it was last told to forget it.

    Not getrusage's, which never falls below what the process that started this one had.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="times the usual number of cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join([*TARGETS, "wire"]))
    parser.add_argument("--case", type=int, help="run this case of the target alone")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    results: dict[str, Any] = {}
    for name in arguments.only.split(","):
        if name == "wire":
            results[name] = fuzz_wire.run(round(fuzz_wire.CASES * arguments.scale), arguments.seed)
        else:
            count = round(TARGETS[name][1] * arguments.scale)
            numbers = range(count) if arguments.case is None else range(arguments.case, arguments.case + 1)
            results[name] = fuzz(name, numbers, arguments.seed)
        print(name, json.dumps(results[name]), flush=True)
    if arguments.case is None:
        total = sum(result["cases"] for result in results.values())
        content = {"cases": total, "seed": arguments.seed, "targets": results}
        print(f"{total} cases: {write('fuzz', content, arguments.out, device='cpu', threads=1)}")
    sys.exit(any(result["findings"] for result in results.values()))


if __name__ == "__main__":
    main()
