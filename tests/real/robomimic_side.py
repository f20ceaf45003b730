"""Run by a Python with robomimic: what its own dataset class gives of a file.

python robomimic_side.py read FILE GIVEN.npz
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import robomimic.utils.obs_utils as obs_utils
from robomimic.utils.dataset import SequenceDataset


def read(file: Path, kept: Path) -> None:
    """Observations and actions of every step, in robomimic's order, with a window of two steps and padding."""
    with h5py.File(file, "r") as content:
        keys = [key for key, value in content["data/demo_0/obs"].items() if isinstance(value, h5py.Dataset)]
        images = [key for key in keys if content[f"data/demo_0/obs/{key}"].ndim == 4]
    modalities = {"obs": {"low_dim": [key for key in keys if key not in images], "rgb": images}}
    obs_utils.initialize_obs_utils_with_obs_specs([modalities])
    data = SequenceDataset(
        hdf5_path=str(file),
        obs_keys=keys,
        dataset_keys=("actions",),
        frame_stack=1,
        seq_length=2,
        pad_seq_length=True,
        hdf5_cache_mode=None,
        hdf5_use_swmr=False,
        load_next_obs=False,
    )
    held: dict[str, list[np.ndarray]] = {key: [] for key in (*keys, "window")}  # an observation may be called actions
    for index in range(len(data)):
        item = data[index]
        for key in keys:
            held[key].append(np.asarray(item["obs"][key][0]))
        held["window"].append(np.asarray(item["actions"]))
    demos = list(data.demos)
    arrays = {key: np.stack(values) for key, values in held.items()}
    lengths = np.array([data.get_dataset_for_ep(demo, "actions").shape[0] for demo in demos])
    np.savez(kept, **arrays, demos=np.array(demos), lengths=lengths)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    read(Path(sys.argv[2]), Path(sys.argv[3]))
