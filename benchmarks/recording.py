"""What recording costs beside a control loop: two cameras of 640 x 480 at 30 Hz, control at 50 Hz.

    python -m benchmarks.recording [--seconds S] [--rounds N] [--out FILE]

A robot without a motor gives states and the newest frame of each camera, and takes commands. Runs alternate: without
recording; with recording but frames that are read from the queue and not encoded; with H.264; with AV1. The share is of
one core, of the whole process, less that of the runs without recording. Lateness is how much later than due a command
was sent. The pictures move, so that they cost as much to encode as a camera's.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.result import write
from flowhand.commands.record.writing import EpisodeWriter
from flowhand.contracts.features import Feature, Spec
from flowhand.control.runtime import Runtime
from flowhand.control.safety import Safety
from flowhand.demos.lerobot.video import VideoWriter
from flowhand.demos.recording.config import RecorderConfig
from flowhand.demos.recording.recorder import Recorder

RATE_HZ, CAMERA_HZ, SIZE = 50, 30, (480, 640)
MODES = ("off", "not encoded", "h264", "av1")
SPEC = Spec(
    {
        "state": Feature((6,), "float32", "rad"),
        **{name: Feature((*SIZE, 3), "uint8", "", camera=name) for name in ("front", "wrist")},
    },
    Feature((6,), "float32", "rad"),
    1 / RATE_HZ,
)


class Arm:
    """A robot whose cameras have a new frame every 1/30 s; frames are made beforehand."""

    concurrent = True

    def __init__(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (SIZE[0] // 8, SIZE[1] // 8, 3), np.uint8)
        still = np.kron(noise, np.ones((8, 8, 1), np.uint8))
        self._frames = [np.roll(still, 3 * shift, axis=1) for shift in range(20)]
        self.command = np.zeros(6)
        self._began_s = time.monotonic()
        self._shown: tuple[int, dict[str, np.ndarray]] = (-1, {})

    def read(self) -> dict[str, np.ndarray]:
        """State, and the newest frames."""
        number = int((time.monotonic() - self._began_s) * CAMERA_HZ)
        if number != self._shown[0]:
            frame = self._frames[number % len(self._frames)]
            self._shown = number, {"front": frame, "wrist": frame[::-1]}
        return {"state": np.zeros(6, np.float32), **self._shown[1]}

    def write(self, action: np.ndarray) -> None:
        """Takes the command."""
        self.command = action


class Still:
    """Says the same at every step."""

    chunk_start, chunk_age_s = False, 0.0

    def reset(self, *, seed: int) -> None:
        """Nothing."""

    def step(self, observation: Any) -> np.ndarray:
        """The same."""
        return np.zeros(6)


@contextmanager
def not_encoded() -> Iterator[None]:
    """Frames are taken from the queue and thrown away."""

    def add(self: VideoWriter, blocks: Any) -> tuple[int, float, float]:
        for _ in blocks:
            pass
        return 0, 0.0, 0.0

    with mock.patch.object(VideoWriter, "add", add):
        yield


def run(mode: str, seconds: float) -> dict[str, float]:
    """One run: the share of a core, the lateness, and the largest memory so far."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        robot, actor = Arm(), Still()
        observers, recorder, writer = [], None, None
        if mode == "not encoded":
            stack.enter_context(not_encoded())
        if mode != "off":
            config = RecorderConfig(codec=mode if mode in ("h264", "av1") else "h264")
            recorder = stack.enter_context(Recorder(folder / "set", SPEC, config, task="rest"))
            recorder.begin()
            writer = EpisodeWriter(recorder, robot, actor, 1.0, 1 / RATE_HZ, threaded=True)
            observers = [writer]
        safety = Safety.for_spec(SPEC)
        runtime = Runtime(robot, actor, safety, SPEC.observation, 1 / RATE_HZ, observers=observers)
        before_s, begun_s = time.process_time(), time.monotonic()
        runtime.run(seconds, 0)
        share = (time.process_time() - before_s) / (time.monotonic() - begun_s)
        found = {"share": share, "steps": runtime.report.steps, "missed": runtime.report.misses}
        found |= {f"late_{q}_ms": float(np.percentile(runtime.report.sent_s, q)) * 1e3 for q in (50, 99)}
        if writer is not None and recorder is not None:
            writer.wait()
            found |= {"waiting": recorder.waiting, "whole": float(not writer.broken), "filled": writer.filled}
            recorder.drop()
            writer.close()
        runtime.close()
        found["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a run")
    parser.add_argument("--rounds", type=int, default=5, help="each of one run of each kind")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(options.rounds):
        for mode in MODES:
            runs[mode].append(run(mode, options.seconds))
            print(mode, runs[mode][-1], flush=True)
    middle = {
        mode: {k: float(np.median([each[k] for each in found])) for k in found[0]} for mode, found in runs.items()
    }
    shares = {mode: middle[mode]["share"] - middle["off"]["share"] for mode in MODES[1:]}
    late = {mode: middle[mode]["late_99_ms"] / middle["off"]["late_99_ms"] for mode in MODES[1:]}
    content = {"seconds": options.seconds, "rounds": options.rounds, "share_of_a_core": shares,
               "p99_lateness_ratio": late, "medians": middle, "runs": runs}  # fmt: skip
    print(shares, late, write("recording", content, options.out, device="cpu", threads=1))


if __name__ == "__main__":
    main()
