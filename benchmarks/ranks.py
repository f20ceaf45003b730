"""A training in two processes beside one: the same weights, the same after kills, the speed; and a sweep's overhead.

    python -m benchmarks.ranks                     run what is missing of all parts, then write the result file
    python -m benchmarks.ranks weights|speed|kills|sweep ...   of some parts
    python -m benchmarks.ranks --summary           only write the result file from what is there

weights: every head, 50 steps at the same global batch in one process and in two (gloo): norm of the difference of the
weights in norms of the weights; fp32, and bf16 beside. speed: samples per second of two linked processes and of two
that know nothing of each other, in turns within the same two processes. kills: either of two processes is killed at
random moments, and the run goes on alone until it is done. sweep: 24 short cells by joblib, and the same cells packed
by hand. Every cell is kept below --cells, so that a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.result import write
from policies.heads import HEADS

ROOT = Path(__file__).parent.parent
STEPS = 50
SMALL = ["net.width=64", "encoder.width=64", "net.blocks=1", "train.batch_size=64", "train.draws=2"]
SPEEDS = {
    "mlp at batch 1,024": {"overrides": [], "batch": 1024, "pixels": False},
    "small conv at batch 256": {"overrides": ["vision=conv"], "batch": 256, "pixels": True},
}
KILLS = 20  # of each process
RUN = ["env=detour", "data.episodes=4", "train.steps=300", "train.save_every=25", "net.width=32", "encoder.width=32"]
QUIET = ["net.blocks=1", "train.batch_size=64", "eval.episodes=0", "wandb.mode=disabled", "train.timeout_s=20"]
CELL = ["env=detour", "data.episodes=4", "train.steps=400", "eval.episodes=20", "eval.n_envs=1", "eval.videos=0"]
SEEDS, HEADS_SWEPT = 6, ("flow", "regression", "mip", "shortcut")  # 24 cells
Found = dict[str, Any]


def processes(case: Found, count: int, folder: Path) -> Found:
    """What so many processes find of a case."""
    folder.mkdir(parents=True, exist_ok=True)
    file, out = folder / f"case-{count}.json", folder / f"out-{count}.json"
    file.write_text(json.dumps({**case, "out": str(out)}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.ranks_process", str(file)],
            cwd=ROOT,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)},
        )
        for rank in range(count)
    ]
    if sum(each.wait() != 0 for each in running):
        raise ValueError(f"a process of {case} failed")
    return json.loads(out.read_text())


def environment() -> dict[str, str]:
    """Of what is started: one thread, and this package before an installed one."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def weights(cells: Path, device: str) -> None:
    """A cell is a head with a precision."""
    for precision in ("fp32", "bf16"):
        for head in HEADS:
            cell = cells / f"weights-{head}-{precision}.json"
            if cell.is_file():
                continue
            overrides = [*SMALL, f"head={head}", f"train.precision={precision}"]
            differs = difference(overrides, STEPS, device, cells / f"{head}-{precision}")
            cell.write_text(json.dumps({"head": head, "precision": precision, "differs": differs}))
            print(f"{head} {precision}: {differs:.2g}", flush=True)


def difference(overrides: Sequence[str], steps: int, device: str, folder: Path) -> float:
    """Of the weights that two processes and one come to, in norms of the weights."""
    states = []
    for count in (1, 2):
        kept = folder / f"{count}.pt"
        case = {"case": "weights", "overrides": list(overrides), "steps": steps, "weights": str(kept)}
        processes({**case, "device": device}, count, folder)
        states.append(torch.cat([value.double().flatten() for value in torch.load(kept).values()]))
    shutil.rmtree(folder)
    return ((states[1] - states[0]).norm() / states[0].norm()).item()


def speed(cells: Path, device: str) -> None:
    """A cell is a policy."""
    for name, case in SPEEDS.items():
        cell = cells / f"speed-{name.replace(' ', '-')}.json"
        if cell.is_file():
            continue
        folder = cells / "speed"
        found = processes({"case": "speed", "device": device, "rounds": 5, "seconds": 3.0, **case}, 2, folder)
        shutil.rmtree(folder)
        cell.write_text(json.dumps({"name": name, **found}))
        print(name, found["median"], flush=True)


def torchrun(count: int, words: Sequence[str]) -> subprocess.Popen[bytes]:
    """A training in so many processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    program = [sys.executable] if count == 1 else launcher
    return subprocess.Popen([*program, "train.py", *words], cwd=ROOT, env=environment(), stderr=subprocess.PIPE)


def kills(cells: Path, device: str) -> None:
    """A cell is a kill: of which process, when, and how the run went on."""
    for at in range(2 * KILLS):
        cell = cells / f"kill-{at:02d}.json"
        if cell.is_file():
            continue
        chance, rank = random.Random(at), at % 2
        out = cells / f"kill-{at:02d}"
        words = [*RUN, *QUIET, f"out={out}", "train.threads=1", f"train.device={device}"]
        running = torchrun(2, words)
        begun = time.monotonic()
        wait_for(out / "checkpoint", running)
        time.sleep(chance.uniform(0, 1.5))
        victim = children(running.pid)[rank]
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        said = running.communicate(timeout=120)[1].decode()
        ended_s = time.monotonic() - killed
        left = train_state(out)
        again = torchrun(1, [f"resume={out}"])
        if again.wait(timeout=300):
            raise ValueError(f"the run of {cell} did not go on")
        after = train_state(out)
        same = after == whole_run(cells, device, words)
        lines = [line for line in said.splitlines() if line.startswith("error:")]
        found = {"rank": rank, "step": left["step"], "ended_s": ended_s, "said": lines, "begun_s": killed - begun}
        cell.write_text(json.dumps({**found, "after": after, "same_as_unkilled": same}))
        shutil.rmtree(out)
        print(cell.name, {**found, "same": same}, flush=True)


def whole_run(cells: Path, device: str, words: Sequence[str]) -> Found:
    """What the same run comes to that is never killed."""
    kept = cells / "kill-none.json"
    if not kept.is_file():
        out = cells / "kill-none"
        rest = [word for word in words if not word.startswith("out=")]
        if torchrun(1, [*rest, f"out={out}"]).wait():
            raise ValueError("the run without a kill failed")
        kept.write_text(json.dumps(train_state(out)))
        shutil.rmtree(out)
    return json.loads(kept.read_text())


def train_state(out: Path) -> Found:
    """What must be equal whatever happened: step, EMA's counter, rate, where the sampler is, and the loss about."""
    import policies

    state = policies.load_train_state(out / "checkpoint")
    position = int(state["generator"].to(torch.int64).mul(torch.arange(len(state["generator"])) + 1).sum())
    rate = state["optimizer"]["param_groups"][0]["lr"]
    last = state["history"][-1] if state["history"] else {"loss": 0.0}
    names = {"step": state["step"], "ema_updates": state["ema_updates"], "lr": rate, "sampler": position}
    return {**names, "loss": float(f"{last['loss']:.3g}")}


def wait_for(place: Path, running: subprocess.Popen[bytes]) -> None:
    """Until something is there."""
    while not place.exists():
        if running.poll() is not None:
            raise ValueError(f"the run ended before there was {place}")
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """The processes that torchrun has started, in the order of their ranks."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                words = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            rank = next((int(word[5:]) for word in words if word.startswith(b"RANK=")), None)
            if parent == pid and rank is not None:
                found.append((rank, int(entry.name)))
    return [process for _, process in sorted(found)]


def sweep(cells: Path, device: str) -> None:
    """The same 24 cells by joblib and by hand, in turns."""
    cell, cores = cells / "sweep.json", 2
    if cell.is_file():
        return
    seconds: dict[str, list[float]] = {"joblib": [], "by hand": []}
    common = [*CELL, f"train.device={device}", "wandb.mode=disabled", f"data.cache_dir={cells / 'demos'}"]
    by_hand(cells / "warm", [[*common, "head=flow", "seed=0"]], 1)  # collects the demonstrations
    shutil.rmtree(cells / "warm")
    for turn in range(2):
        out = cells / f"sweep-{turn}"
        swept = [f"head={','.join(HEADS_SWEPT)}", f"seed={','.join(map(str, range(SEEDS)))}", f"out={out}"]
        words = ["-m", "hydra/launcher=cores", f"hydra.launcher.n_jobs={cores}", *common, *swept]
        begun = time.perf_counter()
        subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, env=environment(), check=True)
        seconds["joblib"].append(time.perf_counter() - begun)
        shutil.rmtree(out)
        begun = time.perf_counter()
        jobs = [[*common, f"head={head}", f"seed={seed}"] for head in HEADS_SWEPT for seed in range(SEEDS)]
        by_hand(out, jobs, cores)
        seconds["by hand"].append(time.perf_counter() - begun)
        shutil.rmtree(out)
    cell.write_text(json.dumps({"cells": len(HEADS_SWEPT) * SEEDS, "cores": cores, "seconds": seconds}))


def by_hand(out: Path, jobs: Sequence[Sequence[str]], cores: int) -> None:
    """A command for each cell, as many at once as there are cores."""

    def run(job: tuple[int, Sequence[str]]) -> None:
        words = [sys.executable, "train.py", *job[1], f"out={out / str(job[0])}"]
        subprocess.run(words, cwd=ROOT, env=environment(), check=True, stdout=subprocess.DEVNULL)

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(run, enumerate(jobs)))


PARTS: dict[str, Callable[[Path, str], None]] = {"weights": weights, "speed": speed, "kills": kills, "sweep": sweep}


def summary(cells: Path) -> Found:
    """All that is there, and the figures that are wanted."""

    def read(pattern: str) -> list[Found]:
        return [json.loads(file.read_text()) for file in sorted(cells.glob(pattern))]

    found = {name: read(f"{name}-*.json") for name in ("weights", "speed")}
    found["kills"] = read("kill-[0-9]*.json")
    sweeps = read("sweep.json")
    wanted: Found = {}
    exact = [each["differs"] for each in found["weights"] if each["precision"] == "fp32"]
    wanted["largest difference of weights in fp32, at most 1e-6"] = max(exact, default=None)
    for each in found["speed"]:
        rates, saving = each["median"], {name: min(times) for name, times in each["checkpoint_s"].items()}
        wanted[f"{each['name']}: linked over unlinked, whole batch each, at least .8"] = (
            rates["linked"] / rates["whole batch each"]
        )
        wanted[f"{each['name']}: linked over unlinked, half the batch each"] = (
            rates["linked"] / rates["half the batch each"]
        )
        wanted[f"{each['name']}: a checkpoint over that of one process, at most 1.2"] = (
            saving["linked"] / saving["alone"]
        )
    if sweeps:
        joblib, hand = (min(sweeps[0]["seconds"][name]) for name in ("joblib", "by hand"))
        wanted["24 cells by joblib over the same by hand, at most 1.1"] = joblib / hand
    same = [each["same_as_unkilled"] for each in found["kills"]]
    wanted["runs equal after a kill"] = f"{sum(same)} of {len(same)}"
    return {"wanted": wanted, **found, "sweep": sweeps}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--cells", type=Path, default=Path("outputs/ranks"), help="folder of what is finished")
    parser.add_argument("--device", default="cpu", help="cpu | cuda")
    parser.add_argument("--summary", action="store_true")
    arguments = parser.parse_args()
    arguments.cells.mkdir(parents=True, exist_ok=True)
    for name in () if arguments.summary else arguments.parts:
        PARTS[name](arguments.cells.absolute(), arguments.device)
    print(write("ranks", summary(arguments.cells), device=arguments.device, threads="1 a process"))


if __name__ == "__main__":
    main()
