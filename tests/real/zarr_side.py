"""Run by a Python with zarr 2: writes replay buffers as Diffusion Policy does, a folder and a zip file.

python zarr_side.py write FOLDER WRITTEN.npz
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

import sys
from pathlib import Path

import numcodecs
import numpy as np
import zarr

LENGTHS = (31, 7, 64)


def write(folder: Path, kept: Path) -> None:
    """Stores with Diffusion Policy's compressors and chunks along time alone."""
    random, steps = np.random.default_rng(0), sum(LENGTHS)
    arrays = {
        "state": random.normal(size=(steps, 5)).astype(np.float32),
        "keypoint": random.normal(size=(steps, 9, 2)),
        "img": random.integers(0, 256, (steps, 24, 32, 3)).astype(np.float32),
        "camera": random.integers(0, 256, (steps, 24, 32, 3), np.uint8),
        "action": random.normal(size=(steps, 2)).astype(np.float32),
    }
    folder.mkdir(parents=True)
    compressors = {
        "lz4": numcodecs.Blosc("lz4", 5, numcodecs.Blosc.NOSHUFFLE),
        "disk": numcodecs.Blosc("zstd", 5, numcodecs.Blosc.BITSHUFFLE),
    }
    for name, compressor in compressors.items():
        for store in (
            zarr.DirectoryStore(str(folder / f"{name}.zarr")),
            zarr.ZipStore(str(folder / f"{name}.zarr.zip")),
        ):
            root = zarr.group(store=store)
            data, meta = root.create_group("data"), root.create_group("meta")
            for key, values in arrays.items():
                data.array(key, values, chunks=(20, *values.shape[1:]), compressor=compressor)
            meta.array("episode_ends", np.cumsum(LENGTHS), chunks=(len(LENGTHS),), compressor=None)
            store.close()
    np.savez(kept, **arrays, lengths=np.array(LENGTHS))  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    write(Path(sys.argv[2]), Path(sys.argv[3]))
