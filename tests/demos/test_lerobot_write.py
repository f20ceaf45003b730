"""What is written as LeRobot 3.0: equal when it is read again, and as the format's own tools expect it."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.screen.fields import action_feature, observation_features
from flowhand.demos.lerobot.dataset import LeRobotDataset
from flowhand.demos.lerobot.write import LeRobotWriter
from tests.demos.recorded import frames_of

LENGTHS = (7, 5, 9, 6)


def spec(**more: Feature) -> Spec:
    return Spec({"state": Feature((3,), "float32", "rad"), **more}, Feature((2,), "float32", "rad"), 0.1)


def episodes(size: tuple[int, int] | None = None) -> list[Episode]:
    found = []
    for number, steps in enumerate(LENGTHS):
        random = np.random.default_rng(number)
        observation = {"state": random.normal(size=(steps, 3)).astype(np.float32)}
        if size:
            observation["front"] = frames_of(number, steps, size)
        found.append(
            Episode(
                observation,
                action=random.normal(size=(steps, 2)).astype(np.float32),
                reward=random.normal(size=steps).astype(np.float32),
                success=np.arange(steps) == steps - 1,
                task=f"task {number % 2}",
                seed=0,
                control_dt_s=0.1,
            )
        )
    return found


def write(path, spec, episodes, **options):
    with LeRobotWriter(path, spec, **options) as writer:
        for episode in episodes:
            writer.append(episode)
    return LeRobotDataset(path)


def test_states_and_actions_come_back_to_the_last_bit(tmp_path):
    made = episodes()
    names = {"state": ("x", "y", "z")}
    data = write(tmp_path / "set", spec(), made, names=names, rewards=True, data_mb=0.001, robot="arm")
    assert data.warnings == []
    assert data.meta.robot == "arm"
    assert data.columns["state"].names == names["state"]
    assert list(data.tasks) == [episode.task for episode in made]
    assert len(list(tmp_path.glob("set/data/*/*.parquet"))) > 1
    for number, episode in enumerate(made):
        got = data.read(number)
        np.testing.assert_array_equal(got.observation["state"], episode.observation["state"])
        for name in ("action", "reward", "success"):
            np.testing.assert_array_equal(getattr(got, name), getattr(episode, name))
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("size", "codec", "written"), [((64, 96), "av1", "av1"), ((48, 64), "h264", "h264"), ((31, 45), "av1", "h264")]
)
def test_videos_come_back_frame_by_frame(tmp_path, size, codec, written):
    made = episodes(size)
    described = spec(front=Feature((*size, 3), "uint8", ""))
    data = write(tmp_path / "set", described, made, codec=codec, video_mb=1e-4)
    files = list(tmp_path.glob("set/videos/*/*/*.mp4"))
    assert len(files) == 1 if written == "av1" else len(files) > 1  # the AV1 encoder holds back more than these frames
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert info["features"]["observation.images.front"]["info"]["video.codec"] == written
    for number, episode in enumerate(made):
        got = data.read(number).observation["front"].astype(int)
        assert np.abs(got - episode.observation["front"]).mean() < 15
        assert np.abs(got - np.roll(episode.observation["front"], 1, 0)).mean() > 15


def test_png_columns_lose_nothing(tmp_path):
    made = episodes((10, 12))
    data = write(tmp_path / "set", spec(front=Feature((10, 12, 3), "uint8", "")), made, images="png")
    assert not (tmp_path / "set/videos").exists()
    for number, episode in enumerate(made):
        np.testing.assert_array_equal(data.read(number).observation["front"], episode.observation["front"])


def test_arrays_of_two_dimensions(tmp_path):
    described = spec(points=Feature((4, 2), "float32", "m"))
    made = episodes()
    for episode in made:
        episode.observation["points"] = np.random.default_rng(1).normal(size=(len(episode), 4, 2)).astype(np.float32)
    data = write(tmp_path / "set", described, made)
    np.testing.assert_array_equal(data.read(2).observation["points"], made[2].observation["points"])


def test_the_tables_are_as_the_format_has_them(tmp_path):
    made = episodes((48, 64))
    write(tmp_path / "set", spec(front=Feature((48, 64, 3), "uint8", "")), made, codec="h264")
    tasks = pd.read_parquet(tmp_path / "set/meta/tasks.parquet")
    assert tasks.index.name == "task"
    assert [tasks.iloc[i].name for i in range(2)] == ["task 0", "task 1"]
    rows = pd.read_parquet(tmp_path / "set/data/chunk-000/file-000.parquet")
    assert rows["index"].tolist() == list(range(sum(LENGTHS)))
    assert rows["timestamp"].dtype == np.float32
    assert pq.ParquetFile(tmp_path / "set/data/chunk-000/file-000.parquet").num_row_groups == len(LENGTHS)
    table = pd.read_parquet(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet")
    assert table["dataset_to_index"].tolist() == np.cumsum(LENGTHS).tolist()
    assert table["videos/observation.images.front/from_timestamp"].tolist() == pytest.approx([0, 0.7, 1.2, 2.1])
    state = made[1].observation["state"].astype(np.float64)
    np.testing.assert_allclose(table["stats/observation.state/q90"][1], np.quantile(state, 0.9, axis=0))
    mean = pq.read_table(tmp_path / "set/meta/episodes")["stats/observation.images.front/mean"]
    assert np.shape(mean[0].as_py()) == (3, 1, 1)
    stats = json.loads((tmp_path / "set/meta/stats.json").read_text())
    whole = np.concatenate([episode.observation["state"] for episode in made]).astype(np.float64)
    expected = np.quantile(whole, 0.99, axis=0, method="nearest")
    np.testing.assert_array_equal(stats["observation.state"]["q99"], expected)
    pixels = np.concatenate([episode.observation["front"].reshape(-1, 3) for episode in made]) / 255
    for name, expected in (
        ("mean", pixels.mean(0)),
        ("std", pixels.std(0)),
        ("min", pixels.min(0)),
        ("max", pixels.max(0)),
    ):
        np.testing.assert_allclose(np.squeeze(stats["observation.images.front"][name]), expected, atol=1e-9)
    assert stats["observation.state"]["count"] == [sum(LENGTHS)]


def test_nothing_is_there_until_all_is(tmp_path):
    made = episodes()
    interrupted = iter([made[0]])
    with pytest.raises(AttributeError):
        write(
            tmp_path / "set", spec(), (None if episode is made[1] else episode for episode in [*interrupted, made[1]])
        )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="at least one episode"):
        write(tmp_path / "set", spec(), [])
    write(tmp_path / "set", spec(), made)
    with pytest.raises(ValueError, match="exists; choose another path"):
        write(tmp_path / "set", spec(), made)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_what_does_not_fit_is_refused(tmp_path):
    made = episodes()
    made[1].observation["state"] = made[1].observation["state"].astype(np.float64)
    with pytest.raises(ValueError, match=r"episode 1: 'state' is float64 of shape \(5, 3\), expected float32 \(5, 3\)"):
        write(tmp_path / "set", spec(), made)
    with pytest.raises(ValueError, match="whole number of steps a second"):
        LeRobotWriter(tmp_path / "set", Spec(spec().observation, spec().action, 0.3))
    with pytest.raises(ValueError, match=r"actions wait for events, .*; leave it out, or write natively"):
        LeRobotWriter(tmp_path / "set", Spec(spec().observation, spec().action, None))
    screen = Spec(observation_features(), action_feature(), None)
    with pytest.raises(
        ValueError, match="'element_strings' is of kind 'elements', which LeRobot has no place for; leave it out"
    ):
        LeRobotWriter(tmp_path / "set", screen)
    assert not list(tmp_path.iterdir())
