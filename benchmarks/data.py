"""How fast a training gets its batches, beside LeRobot's own loader, and what large sets cost.

    python -m benchmarks.data --lerobot PYTHON     the Python of an environment with lerobot[dataset]==0.6.1
    python -m benchmarks.data --large              200 GB of videos (hard links to one), trained under a limit of 2 GB

Both sides read the same sets, written by flowhand's writer: windows of two observations and 16 actions in batches of
256, one thread of torch each, turn by turn so that a busy machine slows both. LeRobot has the worker count that is best
of those tried. Its windows hold frames as they were recorded; ours hold them at the size that the policy reads, which
is 96 x 96 and, in a row of its own, as they were recorded. A pass without kept frames is our first one, and each of
LeRobot's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data_large
from benchmarks.peers_process import Peer
from benchmarks.result import write
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import Feature, Spec
from flowhand.demos.lerobot.write import LeRobotWriter

SIDES = Path(__file__).with_name("data_sides.py")
FPS, STATES, ACTIONS, SIZE = 20, 14, 7, (240, 320)
CAMERA = "observation.images.front"
WORKERS = (0, 1, 2)


def made(path: Path, episodes: int, steps: int, camera: bool = False) -> Path:
    """A set with random states and, if wanted, a camera that sees a moving square before a gradient."""
    observation = {"state": Feature((STATES,), "float32", "rad")}
    observation |= {"front": Feature((*SIZE, 3), "uint8", "")} if camera else {}
    spec, random = Spec(observation, Feature((ACTIONS,), "float32", "rad"), 1 / FPS), np.random.default_rng(0)
    ground = np.stack(np.meshgrid(np.linspace(0, 200, SIZE[0]), np.linspace(0, 200, SIZE[1]), indexing="ij"), -1)
    ground = np.concatenate([ground, np.full((*SIZE, 1), 90)], -1).astype(np.uint8)
    with LeRobotWriter(path, spec) as writer:
        for seed in range(episodes):
            arrays = {"state": random.standard_normal((steps, STATES), np.float32)}
            if camera:
                frames = np.repeat(ground[None], steps, 0)
                for step, (y, x) in enumerate(random.integers(0, 4, (steps, 2)).cumsum(0) % 180):
                    frames[step, y : y + 40, x : x + 40] = (seed * 20 % 250, 200, 30)
                arrays["front"] = frames
            action = random.standard_normal((steps, ACTIONS), np.float32)
            rest = {"reward": np.zeros(steps, np.float32), "success": np.zeros(steps, bool), "task": "move"}
            writer.append(Episode(arrays, action, **rest, seed=seed, control_dt_s=1 / FPS))
    return path


def memory_mb(process: int) -> float:
    """Memory that belongs to a process and its children alone (RssAnon and shared memory), MB."""
    total, waiting = 0.0, [process]
    while waiting:
        number = waiting.pop()
        try:
            status = Path(f"/proc/{number}/status").read_text()
            for task in os.listdir(f"/proc/{number}/task"):
                waiting += map(int, Path(f"/proc/{number}/task/{task}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(float(line.split()[1]) for line in status.splitlines() if line.startswith(("RssAnon", "RssShmem")))
    return total / 1e3


@contextmanager
def peak_memory(process: int) -> Iterator[dict[str, float]]:
    """Notes the largest of `memory_mb` in the block, ten times a second."""
    found, done = {"peak_mb": memory_mb(process)}, threading.Event()

    def look() -> None:
        while not done.wait(0.1):
            found["peak_mb"] = max(found["peak_mb"], memory_mb(process))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def rate(answer: dict[str, float]) -> float:
    """Windows a second."""
    return answer["windows"] / answer["seconds"]


def ours(path: Path, cache: Path, log: Path, overrides: list[str]) -> tuple[Peer, dict[str, Any], list[float]]:
    """Our side with the set open, what it said, and its memory before the set was opened, and after."""
    peer = Peer([sys.executable, SIDES, "flowhand"], log)
    before = memory_mb(peer.process.pid)
    opened = peer.ask("open", path=str(path), overrides=[f"data.cache_dir={cache}", *overrides])
    return peer, opened, [before, memory_mb(peer.process.pid)]


def beside(path: Path, cameras: list[str], python: Path, folder: Path, rows: dict[str, list[str]], turns: int) -> Any:
    """Windows a second of LeRobot and of ours with several settings, turn by turn."""
    sides = {}
    for name, overrides in rows.items():
        sides[name] = ours(path, folder / f"cache-{name}", folder / f"{name}.log", overrides)
    other = Peer([python, SIDES, "lerobot"], folder / "lerobot.log")
    found: dict[str, Any] = {"lerobot": other.ask("open", path=str(path), cameras=cameras, fps=FPS)}
    tried = {n: rate(other.ask("measure", seconds=2, least=2, workers=n)) for n in WORKERS}
    best = max(tried, key=lambda workers: tried[workers])
    found["lerobot"] |= {"workers": best, "tried": {str(n): value for n, value in tried.items()}}
    rates: dict[str, list[float]] = {name: [] for name in ("lerobot", *sides)}
    with peak_memory(other.process.pid) as peak:
        for _ in range(turns):
            rates["lerobot"].append(rate(other.ask("measure", seconds=4, least=3, workers=best)))
            for name, (peer, _, _) in sides.items():
                rates[name].append(rate(peer.ask("measure", seconds=2, least=10)))
    found["lerobot"] |= peak
    other.close()
    for name, (peer, opened, memory) in sides.items():
        with peak_memory(peer.process.pid) as peak:
            peer.ask("measure", seconds=2, least=10)
        found[name] = {**opened, **peak, "memory_before_mb": memory[0]}
        peer.close()
    for name, each in rates.items():
        found[name] |= {"windows_per_s": statistics.median(each), "turns": each}
        ratios = [a / b for a, b in zip(each, rates["lerobot"], strict=True)]
        found[name] |= {"times_lerobot": statistics.median(ratios), "times_lerobot_range": [min(ratios), max(ratios)]}
        print(
            f"{name:20s} {found[name]['windows_per_s']:12,.0f} windows/s, {found[name]['times_lerobot']:.1f} x LeRobot"
        )
    return found


def first_pass(found: dict[str, Any], name: str) -> dict[str, float]:
    """Windows a second of a pass over all windows that begins with nothing decoded, beside one of LeRobot's."""
    own = found[name]
    seconds = own["ready_s"] + own["windows"] / own["windows_per_s"]
    mine = own["windows"] / seconds
    return {"windows_per_s": mine, "times_lerobot": mine / found["lerobot"]["windows_per_s"]}


def sizes(folder: Path, counts: tuple[int, ...], turns: int) -> list[dict[str, Any]]:
    """What sets of so many episodes of 50 steps cost when they are streamed: opening, memory, windows a second."""
    cells, sides = [], []
    for count in counts:
        path = made(folder / f"episodes-{count}", count, 50)
        streamed = ["data.memory_gb=0"]
        ours(path, folder / f"cache-{count}", folder / "first.log", streamed)[0].close()  # decodes
        sides.append(ours(path, folder / f"cache-{count}", folder / f"{count}.log", streamed))
        cells.append({"episodes": count, **sides[-1][1], "turns": []})
    for _ in range(turns):
        for cell, (peer, _, _) in zip(cells, sides, strict=True):
            cell["turns"].append(rate(peer.ask("measure", seconds=2, least=10)))
    for cell, (peer, _, _) in zip(cells, sides, strict=True):
        with peak_memory(peer.process.pid) as peak:
            peer.ask("measure", seconds=1, least=10)
        peer.close()
        cell |= {**peak, "windows_per_s": statistics.median(cell["turns"])}
        print(cell)
    return cells


def measure(python: Path | None, folder: Path, turns: int) -> dict[str, Any]:
    """All of it; without LeRobot, what concerns flowhand alone."""
    found: dict[str, Any] = {"sizes": sizes(folder, (100, 10_000), turns)}
    if python is not None:
        states = made(folder / "states", 100, 200)
        rows = {"memory": [], "streamed": ["data.memory_gb=0"]}
        found["states"] = beside(states, [], python, folder, rows, turns)
        videos, sees = made(folder / "videos", 20, 200, camera=True), ["vision=conv"]
        small = [*sees, "vision.image_size=[96,96]"]
        rows = {"video-memory": small, "video-streamed": [*small, "data.memory_gb=0"]}
        rows |= {"video-as-recorded": [*sees, "data.memory_gb=0"]}
        found["video"] = beside(videos, [CAMERA], python, folder, rows, turns)
        found["first_pass"] = {name: first_pass(found["video"], name) for name in rows}
        print(found["first_pass"])
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lerobot", type=Path, help="Python of an environment with lerobot[dataset]==0.6.1")
    parser.add_argument("--large", action="store_true", help="only the set of 200 GB")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for the sets; a temporary one, if it is not given")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.large:
            found, name = data_large.measure(Path(folder)), "data_large"
        else:
            found, name = measure(arguments.lerobot, Path(folder), arguments.turns), "data"
    print(write(name, found, arguments.out, device="cpu", threads=1))


if __name__ == "__main__":
    main()
