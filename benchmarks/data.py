"""How fast a training gets its batches, beside LeRobot's own loader, and what large sets cost.

    python -m benchmarks.data --lerobot PYTHON     the Python of an environment with lerobot[dataset]==0.6.1
    python -m benchmarks.data --parts large        200 GB of videos (hard links to one), trained under a limit of 2 GB

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
WORKERS = (0, 2)
PARTS = ("sizes", "states", "video", "large")


def made(path: Path, episodes: int, steps: int, camera: bool = False) -> Path:
    """A set with random states and, if wanted, a camera that sees a moving square before a gradient."""
    observation = {"state": Feature((STATES,), "float32", "rad")}
    observation |= {"front": Feature((*SIZE, 3), "uint8", "")} if camera else {}
    spec, random = Spec(observation, Feature((ACTIONS,), "float32", "rad"), 1 / FPS), np.random.default_rng(0)
    ground = np.stack(np.meshgrid(np.linspace(0, 200, SIZE[0]), np.linspace(0, 200, SIZE[1]), indexing="ij"), -1)
    ground = np.concatenate([ground, np.full((*SIZE, 1), 90)], -1).astype(np.uint8)
    with LeRobotWriter(path, spec, codec="h264") as writer:  # which both sides' decoders know best
        for seed in range(episodes):
            arrays: dict[str, np.ndarray] = {"state": random.standard_normal((steps, STATES), np.float32)}
            if camera:
                frames = np.repeat(ground[None], steps, 0)
                for step, (y, x) in enumerate(random.integers(0, 4, (steps, 2)).cumsum(0) % 180):
                    frames[step, y : y + 40, x : x + 40] = (seed * 20 % 250, 200, 30)
                arrays["front"] = frames
            action = random.standard_normal((steps, ACTIONS), np.float32)
            rest = {"reward": np.zeros(steps, np.float32), "success": np.zeros(steps, bool), "task": "move"}
            writer.append(Episode(arrays, action, **rest, seed=seed, control_dt_s=1 / FPS))
    return path


def family(process: int) -> Iterator[Path]:
    """What the system says of a process and of all below it."""
    waiting = [process]
    while waiting:
        place = Path(f"/proc/{waiting.pop()}")
        try:
            for task in os.listdir(place / "task"):
                waiting += map(int, (place / "task" / task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield place


def memory_mb(process: int) -> float:
    """Memory that belongs to a process and its children alone (RssAnon and shared memory), MB."""
    total = 0.0
    for place in family(process):
        with suppress(FileNotFoundError, ProcessLookupError):
            lines = (place / "status").read_text().splitlines()
            total += sum(float(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))
    return total / 1e3


def cpu_s(process: int) -> float:
    """Seconds of a processor that a process, its children and those that have ended have taken."""
    total = 0
    for place in family(process):
        with suppress(FileNotFoundError, ProcessLookupError):
            total += sum(map(int, (place / "stat").read_text().rpartition(")")[2].split()[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


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


def timed(peer: Peer, **request: Any) -> tuple[float, float]:
    """Windows a second, and windows a second of a processor, which a busy machine changes less."""
    before = cpu_s(peer.process.pid)
    answer = peer.ask("measure", **request)
    return rate(answer), answer["all_windows"] / max(cpu_s(peer.process.pid) - before, 1e-2)


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
    found: dict[str, Any] = {"lerobot": {}}
    peers, tried = {}, {}
    for count in WORKERS:  # a process each: workers that are forked from one that has opened a video cannot read it
        peers[count] = Peer([python, SIDES, "lerobot"], folder / f"lerobot-{count}.log")
        found["lerobot"] |= peers[count].ask("open", path=str(path), cameras=cameras, fps=FPS)
        tried[count] = rate(peers[count].ask("measure", seconds=2, least=1, workers=count))
    best = max(tried, key=lambda workers: tried[workers])
    for count, peer in peers.items():
        if count != best:
            peer.close()
    other = peers[best]
    found["lerobot"] |= {"workers": best, "tried": {str(n): value for n, value in tried.items()}}
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ("lerobot", *sides)}
    with peak_memory(other.process.pid) as peak:
        for _ in range(turns):
            rates["lerobot"].append(timed(other, seconds=3, least=2, workers=best))
            for name, (peer, _, _) in sides.items():
                rates[name].append(timed(peer, seconds=2, least=10))
    found["lerobot"] |= peak
    other.close()
    for name, (peer, opened, memory) in sides.items():
        with peak_memory(peer.process.pid) as peak:
            peer.ask("measure", seconds=2, least=10)
        found[name] = {**opened, **peak, "memory_before_mb": memory[0]}
        peer.close()
    for name, each in rates.items():
        for place, what in enumerate(("windows_per_s", "windows_per_cpu_s")):
            own, theirs = ([turn[place] for turn in side] for side in (each, rates["lerobot"]))
            ratios = [a / b for a, b in zip(own, theirs, strict=True)]
            found[name] |= {what: statistics.median(own), f"{what}_turns": own}
            found[name] |= {f"{what}_ratio": statistics.median(ratios), f"{what}_ratios": ratios}
        told = [
            f"{found[name][key]:,.1f}" for key in ("windows_per_s", "windows_per_s_ratio", "windows_per_cpu_s_ratio")
        ]
        print(f"{name:14s} {told[0]} windows/s, {told[1]} x LeRobot ({told[2]} x by processor time)", flush=True)
    return found


def first_pass(found: dict[str, Any], name: str) -> dict[str, float]:
    """Windows a second of a pass over all windows that begins with nothing decoded, beside one of LeRobot's."""
    own = found[name]
    seconds = own["ready_s"] + own["windows"] / own["windows_per_s"]
    mine = own["windows"] / seconds
    return {"windows_per_s": mine, "ratio": mine / found["lerobot"]["windows_per_s"]}


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
        print(cell, flush=True)
    return cells


def states(python: Path, folder: Path, turns: int) -> dict[str, Any]:
    """Windows of states, in memory and streamed, beside LeRobot's."""
    rows = {"memory": [], "streamed": ["data.memory_gb=0"]}
    return beside(made(folder / "states", 100, 200), [], python, folder, rows, turns)


def video(python: Path, folder: Path, turns: int) -> dict[str, Any]:
    """Windows with frames beside LeRobot's, after the first pass and in it."""
    small = ["vision=conv", "vision.image_size=[96,96]"]
    rows = {"memory": small, "streamed": [*small, "data.memory_gb=0"]}
    rows |= {"as-recorded": ["vision=conv", "data.memory_gb=0"]}
    found = beside(made(folder / "videos", 8, 100, camera=True), [CAMERA], python, folder, rows, turns)
    found["first_pass"] = {name: first_pass(found, name) for name in rows}
    print(found["first_pass"], flush=True)
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lerobot", type=Path, help="Python of an environment with lerobot[dataset]==0.6.1")
    parser.add_argument("--parts", nargs="+", default=["sizes", "states", "video"], choices=PARTS)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for the sets; a temporary one, if it is not given")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        place, found = Path(folder), {}
        for part in arguments.parts:
            if part in ("states", "video") and arguments.lerobot is None:
                parser.error(f"--parts {part} needs --lerobot PYTHON")
            work: dict[str, Callable[[], Any]] = {
                "sizes": lambda: sizes(place, (100, 10_000), arguments.turns),
                "states": lambda: states(arguments.lerobot, place, arguments.turns),
                "video": lambda: video(arguments.lerobot, place, arguments.turns),
                "large": lambda: data_large.measure(place),
            }
            found[part] = work[part]()
    print(write("data", found, arguments.out, device="cpu", threads=1))


if __name__ == "__main__":
    main()
