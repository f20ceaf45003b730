"""kill -9 and full disks while demonstrations are recorded: LeRobot opens what is left, with all earlier episodes.

    FLOWHAND_LEROBOT=PYTHON python -m benchmarks.recorder_kills [--kills N] [--compactions N] [--full N] [--out FILE]

A recorder in a process of its own records short episodes of states and one camera, whose pictures show their own
number, and notes each episode that it was told is finished. It is killed at a random moment: while it records, or while
it joins files; or its disk (a small tmpfs, which needs the right to mount) is filled by another file. The folder is
then opened, as it was left, by LeRobot in the Python that FLOWHAND_LEROBOT names: every noted episode must be there,
with the states and pictures that were recorded. Afterwards recording goes on in the folder, and it is opened again. The
cells are kept in the result file, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result import FOLDER, write
from flowhand.contracts.features import Feature, Spec
from flowhand.demos.recording.config import RecorderConfig
from flowhand.demos.recording.recorder import Recorder

STEPS, SIDE = 8, 64
SPEC = Spec(
    {"state": Feature((3,), "float32", "rad"), "front": Feature((SIDE, SIDE, 3), "uint8", "")},
    Feature((2,), "float32", "rad"),
    1 / 30,
)
LONGEST_S = 4.0  # of recording before a kill
COMPACTED = 10  # episodes that are joined
DISK_MB = 24  # of the small disks

# What runs in LeRobot's Python: opens the folder of each line, and says what is wrong.
OPENS = """
import json, sys, os, tempfile
os.environ["HF_HOME"] = tempfile.mkdtemp()
os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
datasets.disable_progress_bars()
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.video_utils import _default_decoder_cache

def looked_at(path, least):
    _default_decoder_cache.clear()  # which knows files by their names
    data = LeRobotDataset("local/set", root=path)
    count = data.meta.total_episodes
    assert count >= least, f"{count} episodes, expected {least}"
    assert len(data) == data.meta.total_frames, "frames"
    for episode in range(count):
        row = data.meta.episodes[episode]
        first, end = row["dataset_from_index"], row["dataset_to_index"]
        for index in (first, (first + end) // 2, end - 1):
            item = data[index]
            step = index - first
            assert item["episode_index"].item() == episode and item["frame_index"].item() == step, "numbers"
            assert item["observation.state"].tolist() == [step, episode, 7.0], f"state of {episode}, {step}"
            grey = 255 * item["observation.images.front"].mean().item()
            assert abs(grey - (16 * step + episode % 16)) < 4, f"picture of {episode}, {step}: {grey}"
    return count

print("ready", flush=True)
for line in sys.stdin:
    path, least = json.loads(line)
    try:
        print(json.dumps({"episodes": looked_at(path, least)}), flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}), flush=True)
    finally:
        _default_decoder_cache.clear()
"""


class LeRobot:
    """LeRobot, in a process of its own."""

    def __init__(self, python: str):
        self._process = subprocess.Popen(
            [python, "-c", OPENS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tempfile.gettempdir()
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == "ready"

    def opens(self, path: Path, least: int) -> dict[str, Any]:
        """How many episodes it finds, or what is wrong."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([str(path), least]), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait()


def record(path: Path, episodes: int, note: Path) -> None:
    """Records so many episodes; notes how many are finished, and when files are joined."""
    with Recorder(path, SPEC, RecorderConfig(), task="push", robot="arm") as recorder:
        for _ in range(episodes):
            number = recorder.episodes
            recorder.begin()
            for step in range(STEPS):
                picture = np.full((SIDE, SIDE, 3), 16 * step + number % 16, np.uint8)
                recorder.add({"state": np.array([step, number, 7.0]), "front": picture}, np.array([step, number]))
            recorder.end()
            note.write_text(f"{recorder.episodes}")
        note.with_suffix(".joining").touch()


@contextmanager
def process(path: Path, episodes: int, note: Path) -> Iterator[int]:
    """The number of a process that records; it is ended at the end."""
    child = os.fork()
    if child == 0:
        status = 0
        try:
            record(path, episodes, note)
        except OSError:  # of a full disk
            status = 28
        except BaseException:
            status = 1
        os._exit(status)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def killed(folder: Path, kind: str, seed: int) -> tuple[Path, int]:
    """A folder whose recorder was killed, and how many episodes must be there."""
    draw, path, note = random.Random(seed), folder / "set", folder / "note"
    note.write_text("0")
    if kind == "joining":
        with process(path, COMPACTED, note) as child:
            while not note.with_suffix(".joining").exists():
                time.sleep(0.0005)
            time.sleep(draw.uniform(0, 0.12))
            os.kill(child, signal.SIGKILL)
        return path, COMPACTED
    if draw.random() < 0.5:  # what is there already was joined before
        record(path, 2, note)
        note.with_suffix(".joining").unlink()
    with process(path, 10**6, note):
        time.sleep(draw.uniform(0, LONGEST_S) ** 1.5 / LONGEST_S**0.5)
    return path, int(note.read_text() or 0)


@contextmanager
def full(folder: Path, seed: int) -> Iterator[tuple[Path, int]]:
    """A folder whose recorder found the disk full, and how many episodes must be there."""
    draw = random.Random(seed)
    disk, note = folder / "disk", folder / "note"
    disk.mkdir()
    note.write_text("0")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(disk)], check=True)
    try:
        child = os.fork()
        if child == 0:
            try:
                record(disk / "set", 10**6, note)
            except OSError:
                os._exit(28)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        least = draw.randint(0, 12)
        while int(note.read_text() or 0) < least:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.15))
        with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            for size in (2**20, 4096):
                with suppress(OSError):
                    while filler.write(bytes(size)) == size:
                        pass
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 28, f"{os.waitstatus_to_exitcode(status)}: the disk was to be full"
        yield disk / "set", int(note.read_text() or 0)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def cell(kind: str, seed: int, lerobot: LeRobot) -> dict[str, Any]:
    """One kill, or one full disk: what LeRobot says of the folder as it is left, and after recording has gone on."""
    folder = Path(tempfile.mkdtemp(prefix="recorder-kills-"))
    try:
        if kind == "full":
            with full(folder, seed) as (path, least):
                return _opened(path, least, lerobot, goes_on=False)
        path, least = killed(folder, kind, seed)
        return _opened(path, least, lerobot)
    finally:
        shutil.rmtree(folder)


def _opened(path: Path, least: int, lerobot: LeRobot, goes_on: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {"least": least}
    if least or (path / "meta" / "info.json").exists():
        found |= lerobot.opens(path, least)
    if goes_on and "error" not in found:
        note = path.with_name("note2")
        record(path, 1, note)
        again = lerobot.opens(path, found.get("episodes", 0) + 1)
        found |= {"after": again.get("episodes"), **({"error": again["error"]} if "error" in again else {})}
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=150, help="while episodes are recorded")
    parser.add_argument("--compactions", type=int, default=50, help="kills while files are joined")
    parser.add_argument("--full", type=int, default=50, help="full disks")
    parser.add_argument("--minutes", type=float, default=1e9, help="longest time; the next call goes on")
    parser.add_argument("--out", type=Path, default=FOLDER / "recorder_kills.json")
    options = parser.parse_args()
    cells: dict[str, Any] = json.loads(options.out.read_text())["cells"] if options.out.exists() else {}
    wanted = {"recording": options.kills, "joining": options.compactions, "full": options.full}
    end_s, lerobot = time.monotonic() + 60 * options.minutes, LeRobot(os.environ["FLOWHAND_LEROBOT"])
    try:
        for kind, seed in [(kind, seed) for kind, count in wanted.items() for seed in range(count)]:
            if f"{kind} {seed}" not in cells and time.monotonic() < end_s:
                cells[f"{kind} {seed}"] = found = cell(kind, seed, lerobot)
                print(kind, seed, found, flush=True)
    finally:
        lerobot.close()
        counts = Counter(name.split()[0] for name in cells)
        failed = {name: found["error"] for name, found in cells.items() if "error" in found}
        content = {"lerobot": "0.6.1", "counts": counts, "failed": failed, "cells": cells}
        write("recorder_kills", content, options.out, device="cpu", threads=1)
        print(dict(counts), f"{len(failed)} failed", failed or "")


if __name__ == "__main__":
    main()
