"""Real data sets, which lie where FLOWHAND_DATA says: every value held against an independent reading."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from flowhand.demos.formats import open_dataset
from flowhand.demos.hdf5_files.robomimic import RobomimicDataset
from flowhand.demos.lerobot.dataset import LeRobotDataset
from flowhand.demos.reader import Reader
from tests.demos.recorded import decoded, described

hdf5: Any = pytest.importorskip("h5py")

DATA = Path(os.environ.get("FLOWHAND_DATA", ""))
pytestmark = pytest.mark.skipif("FLOWHAND_DATA" not in os.environ, reason="FLOWHAND_DATA names no folder of real sets")
PUSHT, G1 = "pusht_human_zarr/pusht_cchi_v7_replay.zarr", "lerobot_v21_g1"
GROOT, MIMIC = "lerobot_v20_gr00t/demo_data/robot_sim.PickNPlace", "robomimic_hdf5_isaaclab/datasets"


def opened(name: str, **options) -> Reader:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not in FLOWHAND_DATA")
    data = open_dataset(DATA / name, **options)
    assert isinstance(data, Reader)
    return data


def rows_of(name: str, episode: int) -> pd.DataFrame:
    """An episode's rows, read one row group after the other by pyarrow alone."""
    return pq.read_table(DATA / name / f"data/chunk-000/episode_{episode:06d}.parquet").to_pandas()


@pytest.mark.parametrize(("name", "count", "steps", "size"), [(G1, 100, 35965, 26), (GROOT, 5, 2096, 44)])
def test_lerobot_states_and_actions(name, count, steps, size):
    data = opened(name).select(["state"])
    assert len(data) == count
    assert sum(data.lengths) == steps
    listed = [json.loads(line) for line in (DATA / name / "meta/episodes.jsonl").read_text().splitlines()]
    for number in range(count):
        expected, got = rows_of(name, number), data.read(number)
        state, action = (np.stack(expected[name].to_list()) for name in ("observation.state", "action"))
        assert state.shape[1] == size
        assert data.columns["state"].stored == state.dtype.name
        np.testing.assert_array_equal(got.observation["state"], state.astype(data.spec.observation["state"].dtype))
        np.testing.assert_array_equal(got.action, action.astype(data.spec.action.dtype))
        np.testing.assert_array_equal(data.read(number, 100, 120).action, got.action[100:120])
        assert got.task == listed[number]["tasks"][0]
        got.validate(described(data))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "folder", "camera", "episodes"),
    [
        (G1, "videos/chunk-000/observation.images.cam_high", "cam_high", (1, 2)),
        (GROOT, "videos/chunk-000/observation.images.ego_view", "ego_view", range(5)),
    ],
)
def test_lerobot_frames(name, folder, camera, episodes):
    data = opened(name).select([camera])
    for number in episodes:
        path = DATA / name / folder / f"episode_{number:06d}.mp4"
        whole = decoded(path)
        assert len(whole) == data.lengths[number]
        for start in (0, 57, len(whole) - 40):
            got = data.read(number, start, start + 40).observation[camera]
            np.testing.assert_array_equal(got, whole[start : start + 40])
        np.testing.assert_array_equal(data.read(number, len(whole) - 1).observation[camera], whole[-1:])


def test_g1_says_that_98_videos_are_missing():
    data = opened(G1)
    assert [line for line in data.warnings if "98 of 100 episodes are missing (there: 1, 2)" in line]
    with pytest.raises(ValueError, match=r"episode 0: camera 'observation.images.cam_high': .*000000.mp4 is missing"):
        data.read(0)


def test_groot_says_what_is_odd():
    data = opened(GROOT)
    assert isinstance(data, LeRobotDataset)
    for part in ("data_path", "video_path", "split 'train' is 0:100", "egoview", "5 episodes list several texts"):
        assert [line for line in data.warnings if part in line], part
    data.read(0, 0, 1)
    assert [line for line in data.warnings if "frame n is taken for row n" in line]


def test_statistics_are_those_of_the_rows():
    data = opened(G1).select(["state"])
    rows = np.concatenate([np.stack(rows_of(G1, number)["action"].to_list()) for number in range(100)]).astype(
        np.float64
    )
    found = data.statistics()["action"]
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.std, rows.std(0), rtol=1e-9, atol=1e-12)
    for place, q in ((0, 0.01), (-1, 0.99)):
        np.testing.assert_array_equal(found.quantiles[place], np.quantile(rows, q, axis=0, method="nearest"))


def test_human_pusht():
    zarr: Any = pytest.importorskip("zarr")
    data = opened(PUSHT)
    root = zarr.open_group(str(DATA / PUSHT), mode="r")
    ends = root["meta/episode_ends"][:]
    assert list(data.lengths) == np.diff([0, *ends]).tolist()
    arrays = {name: root[f"data/{name}"][:] for name in ("state", "keypoint", "n_contacts", "action")}
    states = data.select(list(arrays)[:3])
    for number, end in enumerate(ends):
        got, begin = states.read(number), end - data.lengths[number]
        for name in ("state", "keypoint", "n_contacts"):
            np.testing.assert_array_equal(got.observation[name], arrays[name][begin:end])
        np.testing.assert_array_equal(got.action, arrays["action"][begin:end])
    for number in (0, 100, 205):
        begin, end = ends[number] - data.lengths[number], ends[number]
        np.testing.assert_array_equal(data.read(number).observation["img"], root["data/img"][begin:end])


@pytest.mark.parametrize("name", ["dataset", "annotated_dataset", "generated_dataset_small"])
def test_isaac_lab(name):
    data = opened(f"{MIMIC}/{name}.hdf5")
    with hdf5.File(DATA / MIMIC / f"{name}.hdf5") as file:
        names = sorted(file["data"], key=lambda demo: int(demo[5:]))
        assert len(data) == len(names) == 10
        for number, demo in enumerate(names):
            got = data.read(number)
            for feature in data.spec.observation:
                np.testing.assert_array_equal(got.observation[feature], file[f"data/{demo}/obs/{feature}"][()])
            np.testing.assert_array_equal(got.action, file[f"data/{demo}/actions"][()])
            assert got.success[-1]


def test_isaac_labs_failed_episodes():
    with pytest.raises(ValueError, match="all 16 episodes failed; failed=keep reads them"):
        opened(f"{MIMIC}/generated_dataset_small_failed.hdf5")
    data = opened(f"{MIMIC}/generated_dataset_small_failed.hdf5", failed="keep")
    assert isinstance(data, RobomimicDataset)
    assert len(data.failed) == len(data) == 16
    assert not data.read(3).success.any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "unused", "held_out"),
    [
        (G1, "cam_high", 10),
        (GROOT, "ego_view", 1),
        (PUSHT, "img", 21),
        *((f"{MIMIC}/{part}.hdf5", "", 1) for part in ("dataset", "annotated_dataset", "generated_dataset_small")),
    ],
)
def test_one_line_trains_and_judges(name, unused, held_out, tmp_path, capsys):
    """As docs/data.md has it, but with a small net and few steps."""
    from conf.cli import compose
    from flowhand.commands import train

    if not (DATA / name).exists():
        pytest.skip(f"{name} is not in FLOWHAND_DATA")
    small = ["net.width=16", "encoder.width=16", "net.blocks=1", "train.batch_size=32", "train.threads=1"]
    words = [f"data.path={DATA / name}", "env=none", "eval.episodes=0", f"out={tmp_path}", "train.steps=5", *small]
    assert train.train(compose([*words, "wandb.mode=disabled"]), words, None) == 0
    said = capsys.readouterr().out
    assert f"{held_out} held out" in said
    assert not unused or f"no policy reads images yet: {unused} left unused" in said
    judged = json.loads((tmp_path / "held_out.json").read_text())
    assert len(judged["episodes"]) == held_out
    assert all(np.isfinite(row["mean"]) for row in judged["methods"].values())
