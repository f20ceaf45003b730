"""The packages whose formats flowhand reads and writes, each in a virtual environment of its own, against flowhand.

    python -m benchmarks.real_packages [--venvs FOLDER] [--python PYTHON3.12] [--only PACKAGE,PACKAGE] [--data FOLDER]

Each package writes a data set, or opens one that flowhand wrote, in its own process (`tests/real/`), and keeps
what it gave as arrays; the two sides are compared here. States, actions, rewards, tasks and windows must be equal to
the last bit (lerobot gives doubles as float32, and is compared so). Frames of one video may differ by a grey level or
two where two decoders turn the same colours into RGB, and must be nearer to the right frame than to those beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result import write
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import Feature, Spec
from flowhand.demos.conversion.convert import How, convert
from flowhand.demos.conversion.plan import Source, planned
from flowhand.demos.formats import open_dataset
from flowhand.demos.lerobot.write import LeRobotWriter
from flowhand.demos.reader import Reader

SIDES = Path(__file__).parents[1] / "tests" / "real"
REQUIREMENTS = {
    "lerobot": ["lerobot[dataset,feetech]==0.6.1"],
    "robomimic": ["robomimic==0.3.0"],
    "zarr": ["zarr<3", "numcodecs<0.16"],
    "minari": ["minari[hdf5]", "pillow", "jax"],  # its collector stores trees of arrays by way of jax
}
LEVELS = 3.0  # grey levels by which two decoders of one frame may differ in the mean
SIZE, LENGTHS, FPS = (64, 96), (12, 7, 15), 10
WINDOW = 4


class Side:
    """The package's own Python."""

    def __init__(self, package: str, venvs: Path, python: str, folder: Path):
        self.package, self.folder = package, folder
        self.python = venvs / package / "bin" / "python"
        if not self.python.exists():
            subprocess.run([python, "-m", "venv", str(venvs / package)], check=True)
            subprocess.run([str(self.python), "-m", "pip", "install", "-q", *REQUIREMENTS[package]], check=True)

    def __call__(self, what: str, path: Path, *more: str) -> dict[str, np.ndarray]:
        """Runs the side; the arrays that it kept."""
        kept = self.folder / f"{self.package}_{what}_{path.name}.npz"
        words = [str(self.python), str(SIDES / f"{self.package}_side.py"), what, str(path), str(kept), *more]
        offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder / "hf"), "OMP_NUM_THREADS": "1"}
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | offline
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.package} {what} {path}: {done.stderr[-2000:]}")
        with np.load(kept) as arrays:
            return dict(arrays)

    def version(self) -> str:
        """Of the package."""
        code = f"from importlib.metadata import version; print(version({self.package!r}))"
        return subprocess.run([str(self.python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


class Checks:
    """Counts what is equal, and keeps what is not."""

    def __init__(self) -> None:
        self.values, self.frames, self.worst, self.wrong = 0, 0, 0.0, []

    def equal(self, what: str, got: np.ndarray, expected: np.ndarray) -> None:
        """To the last bit."""
        got, expected = np.asarray(got), np.asarray(expected)
        self.values += expected.size
        if got.shape != expected.shape or not np.array_equal(got, expected):
            self.wrong.append(f"{what}: {got.dtype} {got.shape} differs from {expected.dtype} {expected.shape}")

    def rounded(self, what: str, got: np.ndarray, expected: np.ndarray) -> None:
        """To the last bit of what lerobot makes of doubles, which it gives as float32."""
        is_rounded = got.dtype == np.float32 and expected.dtype == np.float64
        self.equal(what, got, expected.astype(np.float32) if is_rounded else expected)

    def frame(self, what: str, got: np.ndarray, expected: np.ndarray, beside: np.ndarray | None) -> None:
        """The same picture; nearer to it than to the one beside it."""
        self.frames += 1
        off = float(np.abs(got.astype(int) - expected.astype(int)).mean())
        self.worst = max(self.worst, off)
        other = np.inf if beside is None else float(np.abs(got.astype(int) - beside.astype(int)).mean())
        if off > LEVELS or off >= other:
            self.wrong.append(f"{what}: {off:.1f} grey levels off the right frame, {other:.1f} off the one beside it")

    def result(self) -> dict[str, Any]:
        """For the result file."""
        about = {"values": self.values, "frames": self.frames, "largest_frame_difference": round(self.worst, 2)}
        return {**about, "differences": len(self.wrong), "examples": self.wrong[:5]}


def lerobot(side: Side, folder: Path, data: Path | None) -> Checks:
    """What flowhand wrote and converted opens in lerobot, and what lerobot wrote in flowhand."""
    checks = Checks()
    held = side("write", folder / "theirs")
    found = open_dataset(folder / "theirs")
    assert isinstance(found, Reader)
    names = {column.source: name for name, column in found.columns.items()}
    for number in range(len(found)):
        episode = found.read(number)
        arrays = {**episode.observation, "action": episode.action}
        for source, name in names.items():
            expected = held[f"{number}/{source}"]
            if source != "observation.images.front":
                checks.equal(f"theirs, episode {number}, {source}", arrays[name], expected)
        frames = _decoded(folder / "theirs", found, number)
        checks.equal(f"theirs, episode {number}, video", arrays["front"], frames)
        checks.equal(f"theirs, episode {number}, text", np.array(episode.task), np.array(f"task {number % 2}"))
    for path in _ours(folder, data):
        _opened_by_lerobot(side, path, checks)
    return checks


def _decoded(path: Path, found: Any, number: int) -> np.ndarray:
    """An episode's frames by PyAV alone, counted from the metadata's time."""
    import av

    part = found.meta.episodes[number].videos["observation.images.front"]
    with av.open(str(part.file)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    first = round(part.begin_s * found.meta.fps)
    return frames[first : first + found.lengths[number]]


def _ours(folder: Path, data: Path | None) -> list[Path]:
    """Sets that flowhand wrote: from episodes, and from other formats."""
    spec = Spec(
        {
            "state": Feature((3,), "float32", "", names=("x", "y", "z")),
            "load": Feature((1,), "float64", ""),
            "matrix": Feature((2, 3), "float32", ""),
            "count": Feature((2,), "int64", ""),
            "front": Feature((*SIZE, 3), "uint8", ""),
            "still": Feature((*SIZE, 3), "uint8", ""),
        },
        Feature((2,), "float32", ""),
        1 / FPS,
    )
    images = {"front": "video", "still": "png"}
    with LeRobotWriter(folder / "ours", spec, images=images, robot="two", rewards=True, part_s=0.0) as writer:
        for number, steps in enumerate(LENGTHS):
            writer.append(_episode(spec, number, steps))
    made = [folder / "ours"]
    sources = {"from_lerobot": (folder / "theirs", {})}
    if data is not None:
        sources |= {
            "g1": (data / "lerobot_v21_g1", {"episodes": ["1", "2"]}),
            "gr00t": (data / "lerobot_v20_gr00t/demo_data/robot_sim.PickNPlace", {}),
            "pusht": (data / "pusht_human_zarr/pusht_cchi_v7_replay.zarr", {"episodes": ["0:10"]}),
            "isaac": (data / "robomimic_hdf5_isaaclab/datasets/dataset.hdf5", {}),
        }
    for name, (path, options) in sources.items():
        convert(planned([Source(name, open_dataset(path))], **options), folder / name, How())
        made.append(folder / name)
    return made


def _episode(spec: Spec, number: int, steps: int) -> Episode:
    random = np.random.default_rng(number)
    observation = {}
    for name, feature in spec.observation.items():
        if feature.kind == "image":
            frames = np.zeros((steps, *feature.shape), np.uint8)
            for step in range(steps):
                frames[step] = 30 + 12 * step
                frames[step, :, 5 * step : 5 * step + 8, number % 3] = 255
            observation[name] = frames
        else:
            observation[name] = (random.normal(size=(steps, *feature.shape)) * 9).astype(feature.dtype)
    action = random.normal(size=(steps, *spec.action.shape)).astype(spec.action.dtype)
    reward = random.normal(size=steps).astype(np.float32)
    return Episode(observation, action, reward, reward > 0, f"task {number % 2}", 0, spec.seconds())


def _opened_by_lerobot(side: Side, path: Path, checks: Checks) -> None:
    """Rows, windows with their padding, frames and statistics."""
    found = open_dataset(path)
    assert isinstance(found, Reader)
    step = max(1, sum(found.lengths) // 60)
    given = side("read", path, str(step))
    checks.equal(
        f"{path.name}: counts",
        np.array([given["episodes"], given["steps"]]),
        np.array([len(found), sum(found.lengths)]),
    )
    starts = np.cumsum([0, *found.lengths])
    for row in given["rows"].tolist():
        number = int(np.searchsorted(starts, row, side="right")) - 1
        at, end = row - int(starts[number]), found.lengths[number]
        where = f"{path.name}, row {row}"
        episode = found.read(number, max(0, at - 1), min(end, at + WINDOW))
        here = at - max(0, at - 1)
        for name, column in found.columns.items():
            got = given[f"{row}/{column.source}"]
            if name == "action":
                last = len(episode.action) - 1
                checks.rounded(f"{where}, window", got, episode.action[np.minimum(here + np.arange(WINDOW), last)])
                checks.equal(f"{where}, padding", given[f"{row}/action_is_pad"], at + np.arange(WINDOW) >= end)
            elif column.kind == "image":
                frames = episode.observation[name]
                checks.frame(f"{where}, {name}", got, frames[here], frames[0] if here and column.encoding == "video"
                             and not np.array_equal(frames[0], frames[here]) else None)  # fmt: skip
            else:
                expected = episode.observation[name][here]
                checks.rounded(f"{where}, {name}", got.reshape(expected.shape), expected)
        checks.equal(f"{where}, text", given[f"{row}/task"], np.array(found.tasks[number]))
    for name, values in found.statistics().items():
        source = found.columns[name].source
        for which, expected in (("mean", values.mean), ("std", values.std), ("min", values.low), ("max", values.high)):
            checks.equal(f"{path.name}, {name}, {which}", given[f"stats/{source}/{which}"].reshape(-1), expected)


def zarr(side: Side, folder: Path, data: Path | None) -> Checks:
    """What zarr 2 wrote opens in flowhand."""
    checks = Checks()
    held = side("write", folder / "zarr")
    ends = np.cumsum([0, *held["lengths"]])
    for path in sorted((folder / "zarr").iterdir()):
        found = open_dataset(path)
        for number in range(len(found)):
            part, episode = slice(ends[number], ends[number + 1]), found.read(number)
            for name in ("state", "keypoint", "camera", "img"):
                checks.equal(f"{path.name}, episode {number}, {name}", episode.observation[name], held[name][part])
            checks.equal(f"{path.name}, episode {number}, action", episode.action, held["action"][part])
    return checks


def minari(side: Side, folder: Path, data: Path | None) -> Checks:
    """What minari's collector wrote opens in flowhand, with what minari itself gives."""
    checks = Checks()
    held = side("write", folder / "minari")
    found = open_dataset(folder / "minari" / "toy" / "walk-v0")
    for number in range(len(found)):
        episode, steps = found.read(number), found.lengths[number]
        checks.equal(f"episode {number}, pose", episode.observation["pose"], held[f"{number}/pose"][:steps])
        checks.equal(f"episode {number}, eye", episode.observation["eye"], held[f"{number}/eye"][:steps])
        checks.equal(f"episode {number}, action", episode.action, held[f"{number}/action"])
        checks.equal(f"episode {number}, reward", episode.reward, held[f"{number}/reward"].astype(np.float32))
    return checks


def robomimic(side: Side, folder: Path, data: Path | None) -> Checks:
    """A file gives in flowhand what it gives in robomimic's own dataset class."""
    checks = Checks()
    files = [_robomimic_file(folder / "made.hdf5")]
    files += [data / "robomimic_hdf5_isaaclab/datasets/dataset.hdf5"] if data else []
    for file in files:
        given, found = side("read", file), open_dataset(file)
        assert isinstance(found, Reader)
        order = np.argsort([int(name[5:]) for name in given["demos"].tolist()])
        ends = np.cumsum([0, *given["lengths"]])
        for number, place in enumerate(order.tolist()):
            part, episode = slice(ends[place], ends[place + 1]), found.read(number)
            for name, column in found.columns.items():
                if name != "action":
                    theirs = given[column.source.removeprefix("obs/")][part]
                    expected = episode.observation[name]
                    if column.kind == "image":  # robomimic leaves them as they are stored
                        theirs = theirs if theirs.shape == expected.shape else theirs.transpose(0, 2, 3, 1)
                    checks.equal(f"{file.name}, episode {number}, {name}", expected, theirs)
            checks.equal(f"{file.name}, episode {number}, action", episode.action, given["window"][part, 0])
            last = np.minimum(np.arange(len(episode)) + 1, len(episode) - 1)
            checks.equal(f"{file.name}, episode {number}, window", episode.action[last], given["window"][part, 1])
    return checks


def _robomimic_file(path: Path) -> Path:
    import h5py

    with h5py.File(path, "w") as file:
        group = file.create_group("data")
        group.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20}})
        for number, steps in ((0, 9), (2, 6), (10, 12)):
            random = np.random.default_rng(number)
            demo = group.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = steps
            demo["actions"], demo["rewards"] = random.normal(size=(steps, 4)), np.zeros(steps)
            demo["dones"], demo["states"] = np.zeros(steps, int), random.normal(size=(steps, 5))
            demo["obs/object"] = random.normal(size=(steps, 3))
            demo["obs/eye_image"] = random.integers(0, 256, (steps, 16, 20, 3), np.uint8)
    return path


PROOFS: dict[str, Callable[[Side, Path, Path | None], Checks]] = {
    "lerobot": lerobot,
    "robomimic": robomimic,
    "zarr": zarr,
    "minari": minari,
}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venvs", type=Path, default=Path(".real"), help="where the virtual environments are, or go")
    parser.add_argument("--python", default="python3.12", help="that makes them")
    parser.add_argument("--only", default=",".join(PROOFS))
    default = os.environ.get("FLOWHAND_DATA")
    parser.add_argument("--data", type=Path, default=default and Path(default), help="folder of real data sets")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in arguments.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            side = Side(name, arguments.venvs, arguments.python, Path(folder))
            checks = PROOFS[name](side, Path(folder), arguments.data)
            results[name] = {"version": side.version(), **checks.result()}
        print(name, json.dumps(results[name]), flush=True)
    print(write("real_packages", {"packages": results}, arguments.out, device="cpu", threads=1))
    sys.exit(any(result["differences"] for result in results.values()))


if __name__ == "__main__":
    main()
