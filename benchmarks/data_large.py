"""A set of 200 GB: it opens from its metadata and trains within 2 GB of memory, frames decoded on the fly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

FPS, STEPS, SIZE = 10, 300, (480, 640)
LIMIT = 2 * 10**9  # bytes of memory of its own (RLIMIT_DATA) that the training may have
PROGRAM = """
import resource, sys, threading, time
resource.setrlimit(resource.RLIMIT_DATA, ({limit}, {limit}))
from conf.cli import compose
from flowhand.commands import train
most, done = [0], threading.Event()
def look():
    while not done.wait(0.05):
        status = open("/proc/self/status").read()
        most[0] = max(most[0], int(status.partition("RssAnon:")[2].split()[0]))
threading.Thread(target=look, daemon=True).start()
start = time.perf_counter()
assert train.train(compose(sys.argv[1:]), sys.argv[1:], None) == 0
done.set()
print("MEASURED", most[0] / 1e3, time.perf_counter() - start)
"""


def made(path: Path, size: float) -> tuple[Path, int]:
    """A set of LeRobot 2.1 whose episodes are hard links to one video and one table; its path, and their number.

    Args:
        path: of the set.
        size: of all videos together, bytes, as a listing shows it.
    """
    import av
    import pyarrow as pa
    import pyarrow.parquet as pq

    key, random = "observation.images.front", np.random.default_rng(0)
    folder = {name: path / name / "chunk-000" for name in ("data", "videos")}
    folder["videos"] /= key
    for each in (*folder.values(), path / "meta"):
        each.mkdir(parents=True)
    video, table = folder["videos"] / "episode_000000.mp4", folder["data"] / "episode_000000.parquet"
    with av.open(str(video), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS, options={"crf": "12", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.gop_size = 10
        for _ in range(STEPS):  # noise, so that the file is large
            frame = random.integers(0, 256, (*SIZE, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    lists = {
        name: random.standard_normal((STEPS, n), np.float32) for name, n in (("observation.state", 14), ("action", 7))
    }
    columns = {name: pa.array(values.tolist(), pa.list_(pa.float32())) for name, values in lists.items()}
    pq.write_table(pa.table({**columns, "timestamp": pa.array(np.arange(STEPS) / FPS, pa.float32())}), table)
    count = -(-int(size) // video.stat().st_size)
    for number in range(1, count):
        os.link(video, video.with_name(f"episode_{number:06d}.mp4"))
        os.link(table, table.with_name(f"episode_{number:06d}.parquet"))
    features = {name: {"dtype": "float32", "shape": [values.shape[1]], "names": None} for name, values in lists.items()}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    features[key] = {"dtype": "video", "shape": [*SIZE, 3], "names": ["height", "width", "channels"]}
    info = {"codebase_version": "v2.1", "robot_type": "none", "fps": FPS, "features": features, "chunks_size": 10**6}
    info |= {"data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"}
    info |= {"video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"}
    (path / "meta/info.json").write_text(json.dumps(info))
    lines = [{"episode_index": number, "tasks": ["look"], "length": STEPS} for number in range(count)]
    (path / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (path / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "look"}))
    return path, count


def measure(folder: Path, size: float = 200e9, steps: int = 3) -> dict[str, Any]:
    """Opens such a set and trains on it, with room for the states on the disk, and for no frame."""
    path, count = made(folder / "set", size)
    code = "import sys, time; from flowhand.demos.formats import open_dataset; start = time.perf_counter(); "
    code += "open_dataset(sys.argv[1]); print(time.perf_counter() - start)"
    opened = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    room = count * STEPS * 21 * 4 / 1e9 + 0.01  # states and actions
    given = [f"data.path={path}", f"data.cache_dir={folder}/cache", f"out={folder}/run", "env=none", "data.held_out=0"]
    given += ["vision=conv", "vision.image_size=[64,64]", "data.memory_gb=0.1", f"data.cache_gb={room}"]
    given += ["train.batch_size=8", f"train.steps={steps}", "train.threads=1", "eval.episodes=0", "wandb.mode=disabled"]
    start = time.perf_counter()
    command = [sys.executable, "-c", PROGRAM.format(limit=LIMIT), *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the training failed: {done.stderr[-3000:]}")
    measured = next(line for line in done.stdout.splitlines() if line.startswith("MEASURED")).split()
    return {
        "videos_gb": count
        * (path / "videos/chunk-000/observation.images.front/episode_000000.mp4").stat().st_size
        / 1e9,
        "episodes": count,
        "windows": count * STEPS,
        "open_s": float(opened.stdout),
        "limit_bytes": LIMIT,
        "rss_anon_peak_mb": float(measured[1]),
        "train_s": float(measured[2]),
        "all_s": time.perf_counter() - start,
        "steps": steps,
        "on_the_fly": "decoded on the fly" in done.stderr,
    }
