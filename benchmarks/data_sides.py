"""The two sides of benchmarks/data.py: each a program that answers requests on its standard input, in its own Python.

`python benchmarks/data_sides.py lerobot` needs LeRobot and nothing of flowhand.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HISTORY, HORIZON, BATCH = 2, 16, 256


def counted(batches: Iterator[Any], seconds: float, least: int, size: Any) -> dict[str, float]:
    """Windows and seconds of the batches after the first, over so many of both at least."""
    first = size(next(batches))
    start, windows, count = time.perf_counter(), 0, 0
    while count < least or time.perf_counter() - start < seconds:
        windows += size(next(batches))
        count += 1
    return {"windows": windows, "seconds": time.perf_counter() - start, "all_windows": first + windows}


class Ours:
    """What `train.py` draws its batches from."""

    def open(self, path: str, overrides: list[str]) -> dict[str, Any]:
        """Opens a set as a training does; with frames, these are decoded where they are not yet."""
        import torch

        from conf.cli import compose
        from flowhand.commands import held_out, train
        from flowhand.demos.formats import open_dataset

        torch.set_num_threads(1)
        config = compose(["env=none", "data.held_out=0", *overrides])
        start = time.perf_counter()
        data = open_dataset(path)
        opened = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):
            states, _ = held_out.split(data, config.data, config.vision.kind != "none")
        self.windows = train.windows_of(config, train.observed(config, states), states, torch.device("cpu"))
        self.generator = torch.Generator().manual_seed(0)
        ready = time.perf_counter()
        told = {"windows": len(self.windows), "kind": type(self.windows).__name__}
        return {"open_s": opened - start, "ready_s": ready - opened, **told}

    def measure(self, seconds: float, least: int) -> dict[str, float]:
        """Windows drawn in so many seconds."""
        batches = iter(lambda: self.windows.draw(BATCH, self.generator), None)
        return counted(batches, seconds, least, lambda batch: len(batch.mask))


class LeRobot:
    """Its `LeRobotDataset` behind torch's `DataLoader`, as `lerobot-train` has it."""

    def open(self, path: str, cameras: list[str], fps: float) -> dict[str, Any]:
        """Opens a set with windows like ours."""
        from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore[reportMissingImports]

        past = [step / fps for step in range(1 - HISTORY, 1)]
        deltas = dict.fromkeys(["observation.state", *cameras], past)
        deltas["action"] = [step / fps for step in range(HORIZON)]
        start = time.perf_counter()
        self.data = LeRobotDataset("local/set", path, delta_timestamps=deltas, return_uint8=True)
        about = {"open_s": time.perf_counter() - start, "windows": len(self.data)}
        return about | {"backend": str(getattr(self.data, "video_backend", getattr(self.data, "_video_backend", "")))}

    def measure(self, seconds: float, least: int, workers: int) -> dict[str, float]:
        """Windows loaded in so many seconds, by so many worker processes (0: in this one)."""
        import torch

        torch.set_num_threads(1)
        options: dict[str, Any] = {"prefetch_factor": 2} if workers else {}
        loader = torch.utils.data.DataLoader(self.data, BATCH, shuffle=True, num_workers=workers, **options)

        def batches() -> Iterator[Any]:
            while True:
                yield from loader

        return counted(batches(), seconds, least, lambda batch: len(batch["action"]))


def main() -> None:
    """Answers requests until the input ends."""
    side: Any = {"flowhand": Ours, "lerobot": LeRobot}[sys.argv[1]]()
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer
    answers.write(json.dumps({"ready": sys.argv[1]}) + "\n")
    answers.flush()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(side, request.pop("do"))(**request)
        except Exception:
            answer = {"error": traceback.format_exc()[-2000:]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
