"""Run by lerobot's own Python: writes a data set with lerobot, or reads one and keeps what it gave.

python lerobot_side.py write FOLDER WRITTEN.npz
python lerobot_side.py read FOLDER GIVEN.npz STEP
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

FPS, LENGTHS, SIZE = 10, (12, 7, 15), (64, 96)
WINDOW = 4  # steps of the action from each row on


def frames(episode: int, steps: int) -> np.ndarray:
    """Frames that say which they are, though a codec loses a little."""
    images = np.zeros((steps, *SIZE, 3), np.uint8)
    for step in range(steps):
        images[step] = 30 + 12 * step
        images[step, :, 5 * step : 5 * step + 8, episode % 3] = 255
    return images


def write(folder: Path, kept: Path) -> None:
    """A data set of three episodes with a video, an image column, a scalar and a matrix."""
    names: dict[str, Any] = {"names": None}
    features = {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
        "observation.load": {"dtype": "float64", "shape": (1,), **names},
        "observation.matrix": {"dtype": "float32", "shape": (2, 3), **names},
        "observation.images.front": {"dtype": "video", "shape": (*SIZE, 3), "names": ["height", "width", "channels"]},
        "observation.images.still": {"dtype": "image", "shape": (*SIZE, 3), "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["left", "right"]},
    }
    data = LeRobotDataset.create(repo_id="proof/written", fps=FPS, features=features, root=folder, use_videos=True)
    held: dict[str, np.ndarray] = {}
    for episode, steps in enumerate(LENGTHS):
        random = np.random.default_rng(episode)
        rows = {
            "observation.state": random.normal(size=(steps, 3)).astype(np.float32),
            "observation.load": random.normal(size=(steps, 1)),
            "observation.matrix": random.normal(size=(steps, 2, 3)).astype(np.float32),
            "action": random.normal(size=(steps, 2)).astype(np.float32),
            "observation.images.front": frames(episode, steps),
            "observation.images.still": frames(episode + 1, steps),
        }
        for step in range(steps):
            data.add_frame({**{name: values[step] for name, values in rows.items()}, "task": f"task {episode % 2}"})
        data.save_episode()
        held |= {f"{episode}/{name}": values for name, values in rows.items()}
    data.finalize()
    np.savez(kept, **held)  # pyright: ignore[reportArgumentType]


def read(folder: Path, kept: Path, step: int) -> None:
    """Every `step`-th row as lerobot gives it, with the window of actions from it on."""
    plain = LeRobotDataset("proof/read", root=folder)
    windows = {"action": [n / plain.meta.fps for n in range(WINDOW)]}
    data = LeRobotDataset("proof/read", root=folder, delta_timestamps=windows)
    held: dict[str, Any] = {"fps": data.meta.fps, "episodes": data.meta.total_episodes, "steps": len(data)}
    held |= {"robot": str(data.meta.robot_type), "keys": np.array(sorted(data.meta.features))}
    rows = range(0, len(data), step)
    for row in rows:
        item = data[row]
        for name, value in item.items():
            array = np.asarray(value)
            if array.ndim == 3 and array.dtype == np.float32 and "image" in name:
                array = np.rint(array.transpose(1, 2, 0) * 255).astype(np.uint8)
            held[f"{row}/{name}"] = array
    held["rows"] = np.array(rows)
    for name, found in data.meta.stats.items():
        held |= {f"stats/{name}/{which}": np.asarray(value) for which, value in found.items()}
    np.savez(kept, **held)


if __name__ == "__main__":
    what, folder, kept, *more = sys.argv[1:]
    write(Path(folder), Path(kept)) if what == "write" else read(Path(folder), Path(kept), int(more[0]))
