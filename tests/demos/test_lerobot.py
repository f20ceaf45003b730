"""LeRobot sets of all versions, as found in the wild: every value right, or one line that says what is wrong."""

from __future__ import annotations

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowhand.contracts.data.statistics import QUANTILES
from flowhand.demos.lerobot.dataset import LeRobotDataset
from flowhand.demos.lerobot.meta import fill
from tests.demos.recorded import FPS, TASKS, Set2, Set3, camera, decoded, described, table_of, write_video


def close(frames: np.ndarray, expected: np.ndarray) -> bool:
    """Whether these are the frames, but for what the codec lost."""
    return frames.shape == expected.shape and np.abs(frames.astype(int) - expected.astype(int)).mean() < 12


def error_of(call) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same_rows(data: LeRobotDataset, rows: list) -> None:
    for number, expected in enumerate(rows):
        episode = data.read(number)
        dtype = data.spec.observation["state"].dtype
        np.testing.assert_array_equal(episode.observation["state"], expected["observation.state"].astype(dtype))
        np.testing.assert_array_equal(episode.action, expected["action"].astype(np.float32))
        part = data.read(number, 1, 4)
        np.testing.assert_array_equal(part.observation["state"], episode.observation["state"][1:4])
        np.testing.assert_array_equal(part.action, episode.action[1:4])


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_version_2_gives_rows_tasks_and_names(tmp_path, version):
    made = Set2(tmp_path / "set", version=version)
    data = LeRobotDataset(made.write())
    assert list(data.lengths) == [7, 5, 9]
    assert list(data.tasks) == [TASKS[0], TASKS[1], TASKS[0]]
    assert data.spec.control_dt_s == 1 / FPS
    assert data.columns["state"].names == ("x", "y", "z")  # a list in a list
    assert data.columns["action"].names == ("left", "right")  # lists in a mapping
    assert data.warnings == []
    same_rows(data, made.rows)
    data.read(2).validate(described(data))


def test_version_3_with_uneven_files_and_row_groups(tmp_path):
    files = {"front": ((0, 1), (2,), (3, 4)), "wrist": ((0,), (1, 2, 3, 4))}  # so offsets differ per camera
    made = Set3(tmp_path / "set", video_files=files)
    data = LeRobotDataset(made.write())
    assert data.warnings == []
    same_rows(data, made.rows)
    for episode in range(5):
        got = data.read(episode)
        for name in files:
            assert close(got.observation[name], made.frames[name][episode])
            assert not close(got.observation[name], np.roll(made.frames[name][episode], 1, 0))
            np.testing.assert_array_equal(data.read(episode, 2, 4).observation[name], got.observation[name][2:4])


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
def test_frames_equal_a_full_decode(tmp_path, codec):
    made = Set3(tmp_path / "set", (40, 30), ((0, 1),), {"front": ((0, 1),)}, codec)
    made.features["observation.images.front"] = camera((64, 96))
    made.frames["front"] = [np.repeat(np.repeat(f, 2, 1), 2, 2)[:, :64, :96] for f in made.frames["front"]]
    data = LeRobotDataset(made.write())
    whole = decoded(made.video("front", 0))
    assert len(whole) == 70
    for first, last in ((0, 30), (29, 30), (3, 17)):
        np.testing.assert_array_equal(data.read(1, first, last).observation["front"], whole[40 + first : 40 + last])


@pytest.mark.parametrize("name", ["task", "__index_level_0__", "anything"])
def test_the_task_text_is_found_in_any_column(tmp_path, name):
    made = Set3(tmp_path / "set")
    made.task_column = name
    for row in made.episodes:
        row["tasks"] = []
    data = LeRobotDataset(made.write())
    assert list(data.tasks) == [TASKS[e % 2] for e in range(5)]


def test_the_chunk_slot_may_hold_something_else(tmp_path):
    made = Set2(tmp_path / "set", cameras=("front",))
    made.info["data_path"] = "data/chunk-{episode_index:03d}/episode_{episode_index:06d}.parquet"
    made.info["video_path"] = "videos/chunk-{episode_index:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    data = LeRobotDataset(made.write())
    same_rows(data, made.rows)
    assert close(data.read(2).observation["front"], made.frames["front"][2])
    assert sum("leads to no file" in line for line in data.warnings) == 2


def test_a_camera_without_files_is_left_out_with_a_line(tmp_path):
    made = Set2(tmp_path / "set", cameras=("front",))
    made.features["observation.images.ghost"] = camera((800, 1280))
    data = LeRobotDataset(made.write())
    assert list(data.spec.observation) == ["state", "front"]
    assert [line for line in data.warnings if "ghost" in line and "no file of this camera" in line]


def test_missing_videos_leave_the_states(tmp_path):
    made = Set2(tmp_path / "set", cameras=("front",))
    made.write()
    made.video("front", 1).unlink()
    data = LeRobotDataset(made.path)
    assert len(data.warnings) == 1
    assert "the videos of 1 of 3 episodes are missing (there: 0, 2)" in data.warnings[0]
    assert close(data.read(0).observation["front"], made.frames["front"][0])
    line = error_of(lambda: data.read(1))
    assert str(made.video("front", 1)) in line
    assert "episode 1" in line and "observation.images.front" in line  # noqa: PT018
    same_rows(data.select(["state"]), made.rows)
    assert data.select(episodes=[2, 0]).read(1).observation["front"].shape == (7, 48, 64, 3)


def test_a_missing_frame_index_is_no_harm_and_a_wrong_one_is_refused(tmp_path):
    made = Set2(tmp_path / "set")
    for rows in made.rows[:2]:
        del rows["frame_index"]
    made.rows[2]["frame_index"] = made.rows[2]["frame_index"][::-1].copy()
    data = LeRobotDataset(made.write())
    same_rows(data, made.rows[:2])
    line = error_of(lambda: data.read(2))
    assert "episode_000002.parquet: episode 2: column 'frame_index' is 8 at row 0" in line


def test_splits_larger_than_the_set_are_cut_with_a_line(tmp_path):
    made = Set2(tmp_path / "set")
    made.info["splits"] = {"train": "0:100", "odd": "a:b"}
    data = LeRobotDataset(made.write())
    assert data.meta.splits == {"train": range(3)}
    assert len(data.warnings) == 2


def test_language_columns_are_left_out_with_a_line(tmp_path):
    made = Set3(tmp_path / "set")
    said = pa.array([[{"role": "user", "content": "go", "style": None, "timestamp": 0.0}]] * 7)
    tables = [table_of(rows) for rows in made.rows]
    for number, table in enumerate(tables):
        column = pa.array([said[0].as_py()] * len(table), said.type)
        made.rows[number] = table.append_column("language_persistent", column).append_column("language_events", column)
    for name in ("language_persistent", "language_events"):
        made.features[name] = {"dtype": "language", "shape": [1], "names": None}
    data = LeRobotDataset(made.write())
    assert list(data.spec.observation) == ["state"]
    assert set(data.left_out) == {"language_persistent", "language_events"}
    data.read(3)


def test_float64_is_read_as_it_is_stored_or_cast_once(tmp_path):
    made = Set2(tmp_path / "set")
    for rows in made.rows:
        rows["observation.state"] = rows["observation.state"].astype(np.float64) + 1e-12
    made.features["observation.state"] = {"dtype": "float64", "shape": [3], "names": None}
    data = LeRobotDataset(made.write())
    assert data.columns["state"].stored == "float64"
    same_rows(data, made.rows)


def test_the_files_are_believed_and_not_info_json(tmp_path):
    made = Set2(tmp_path / "set")
    for rows in made.rows:
        rows["observation.state"] = rows["observation.state"].astype(np.float64)
    data = LeRobotDataset(made.write())
    assert "holds float64, though info.json says float32" in data.warnings[0]
    made.rows[2]["observation.state"] = made.rows[2]["observation.state"].astype(np.float32)
    pq.write_table(table_of(made.rows[2]), made.data(2))
    line = error_of(lambda: LeRobotDataset(made.path).read(2))
    assert "column 'observation.state' holds float32 here and float64 in the first file" in line


def png(values: np.ndarray) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def test_image_and_depth_columns(tmp_path):
    made = Set2(tmp_path / "set")
    random = np.random.default_rng(0)
    colours = [random.integers(0, 256, (n, 10, 12, 3), np.uint8) for n in made.lengths]
    depths = [random.integers(0, 65536, (n, 10, 12), np.uint16) for n in made.lengths]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for number, rows in enumerate(made.rows):
        table = table_of(rows)
        cells = [{"bytes": png(image), "path": None} for image in colours[number]]
        if number == 1:  # or a file beside it
            for step, cell in enumerate(cells):
                (tmp_path / "set" / "images").mkdir(parents=True, exist_ok=True)
                (tmp_path / "set" / "images" / f"{step}.png").write_bytes(cell["bytes"])
                cell |= {"bytes": None, "path": f"images/{step}.png"}
        table = table.append_column("observation.images.top", pa.array(cells, kind))
        cells = [{"bytes": png(image), "path": None} for image in depths[number]]
        made.rows[number] = table.append_column("observation.images.depth", pa.array(cells, kind))
    made.features["observation.images.top"] = {"dtype": "image", "shape": [3, 10, 12], "names": ["channels", "h", "w"]}
    made.features["observation.images.depth"] = {"dtype": "image", "shape": [10, 12, 1], "names": None}
    data = LeRobotDataset(made.write())
    for number in range(3):
        got = data.read(number).observation
        np.testing.assert_array_equal(got["top"], colours[number])
        np.testing.assert_array_equal(got["depth"][..., 0], depths[number])
    assert data.columns["depth"].stored == "uint16"


def test_rows_that_begin_late_take_a_video_with_a_frame_for_each(tmp_path):
    made = Set2(tmp_path / "set", cameras=("front",))
    for rows in made.rows:
        rows["timestamp"] = rows["timestamp"] + np.float32(1 / FPS)
    data = LeRobotDataset(made.write())
    assert close(data.read(0).observation["front"], made.frames["front"][0])
    assert "frame n is taken for row n" in data.warnings[0]


@pytest.mark.parametrize("version", [2, 3])
def test_a_video_with_too_few_frames_is_refused(tmp_path, version):
    if version == 2:
        made = Set2(tmp_path / "set", cameras=("front",))
    else:
        made = Set3(tmp_path / "set", video_files={"front": ((0, 1, 2, 3, 4),)})
        for number, row in enumerate(made.episodes):  # one frame was dropped, and all later ones moved up
            for key in ("from_timestamp", "to_timestamp"):
                row[f"videos/observation.images.front/{key}"] -= 0.1 * (
                    number > 1 or (key == "to_timestamp" and number)
                )
    made.frames["front"][1] = made.frames["front"][1][:-1]
    data = LeRobotDataset(made.write())
    assert close(data.read(2).observation["front"], made.frames["front"][2])
    line = error_of(lambda: data.read(1))
    assert "episode 1" in line and "observation.images.front" in line and ".mp4" in line  # noqa: PT018


def test_metadata_that_contradict_the_rows_are_refused(tmp_path):
    made = Set3(tmp_path / "set")
    made.episodes[1]["length"] = 6
    data = LeRobotDataset(made.write())
    assert "episode 1: column 'episode_index' has 5 rows of it, but the metadata list 6" in error_of(
        lambda: data.read(1)
    )
    data.read(2)


def test_wrong_offsets_in_the_metadata_do_no_harm(tmp_path):
    made = Set3(tmp_path / "set")
    for row in made.episodes:
        row["dataset_from_index"] = 0
    same_rows(LeRobotDataset(made.write()), made.rows)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_no_number_is_refused(tmp_path, value):
    made = Set2(tmp_path / "set")
    made.rows[1]["observation.state"][3, 2] = value
    line = error_of(lambda: LeRobotDataset(made.write()).read(1))
    assert f"episode 1: column 'observation.state': {value} at row 3, dimension [2]" in line


def test_rows_of_unequal_length_and_missing_values_are_refused(tmp_path):
    made = Set2(tmp_path / "set")
    made.write()
    for cells, expected in (
        ([[0.0] * 3] * 6 + [[0.0] * 4], "a list of 4 at row 6"),
        ([[0.0] * 3] * 6 + [None], "no value at row 6"),
    ):
        table = table_of(made.rows[0]).drop_columns(["observation.state"])
        table = table.append_column("observation.state", pa.array(cells, pa.list_(pa.float32())))
        pq.write_table(table, made.data(0))
        assert expected in error_of(lambda: LeRobotDataset(made.path).read(0))


def test_rate_rewards_selection_and_bounds(tmp_path):
    made = Set2(tmp_path / "set")
    for rows in made.rows:
        rows["next.reward"] = np.arange(len(rows["index"]), dtype=np.float32)
        rows["next.success"] = np.arange(len(rows["index"])) == 4
    for name, dtype in (("next.reward", "float32"), ("next.success", "bool")):
        made.features[name] = {"dtype": dtype, "shape": [1], "names": None}
    data = LeRobotDataset(made.write())
    assert data.read(0, 3, 6).reward.tolist() == [3, 4, 5]
    assert data.read(0, 3, 6).success.tolist() == [False, True, False]
    assert error_of(lambda: data.select(["nothing"])).endswith("choices: state")
    assert "no episode 7" in error_of(lambda: data.select(episodes=[7]))
    for episode in (3, -1):
        with pytest.raises(IndexError):
            data.read(episode)
    for start, stop in ((0, 8), (4, 4), (-1, 2)):
        assert "of episode 0, which has 7" in error_of(lambda start=start, stop=stop: data.read(0, start, stop))


def test_statistics_are_those_of_the_rows(tmp_path, monkeypatch):
    made = Set3(tmp_path / "set")
    data = LeRobotDataset(made.write())
    rows = np.concatenate([part["observation.state"] for part in made.rows]).astype(np.float64)
    for most in (2**28, 300):  # all at once, and in many passes
        monkeypatch.setattr("flowhand.demos.statistics.MOST_BYTES", most)
        found = data.statistics()["state"]
        assert found.count == 31
        for name, expected in (
            ("mean", rows.mean(0)),
            ("std", rows.std(0)),
            ("low", rows.min(0)),
            ("high", rows.max(0)),
        ):
            np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-12)
        expected = np.quantile(rows, QUANTILES, axis=0, method="nearest")
        np.testing.assert_array_equal(found.quantiles, expected)


def test_the_fingerprint_changes_with_the_data(tmp_path):
    made = Set2(tmp_path / "set")
    first = LeRobotDataset(made.write()).fingerprint
    assert LeRobotDataset(made.path).fingerprint == first
    made.rows[1]["action"][0] += 1
    pq.write_table(table_of(made.rows[1]), made.data(1))
    assert LeRobotDataset(made.path).fingerprint != first


@pytest.mark.parametrize(
    "template",
    [
        "../../etc/{chunk_index:03d}.parquet",
        "/etc/passwd",
        "data/{chunk_index:0999999999d}",
        "data/{chunk_index.__class__}",
        "data/{0}",
        "data/{chunk_index!r}",
        "data/{unknown:03d}",
        "data/{chunk_index:03d",
        "a\0b",
        7,
    ],
)
def test_templates_lead_nowhere_else(tmp_path, template):
    made = Set3(tmp_path / "set")
    made.info["data_path"] = template
    assert "data_path" in error_of(lambda: LeRobotDataset(made.write())) or "template" in error_of(
        lambda: LeRobotDataset(made.path)
    )


def test_a_video_key_may_not_climb_either(tmp_path):
    with pytest.raises(ValueError, match="no path in the data set"):
        fill("videos/{video_key}/x.mp4", {"video_key": "../../../etc"})


def complaint(path) -> str:
    """What reading all of a set leads to; "" if it can be read."""
    try:
        data = LeRobotDataset(path)
        for episode in range(len(data)):
            data.read(episode)
    except ValueError as error:
        return str(error)
    return ""


def test_damaged_files_are_one_line_each(tmp_path):
    made = Set3(tmp_path / "set", video_files={"front": ((0, 1, 2, 3, 4),)})
    made.write()
    files = [file for file in made.path.rglob("*") if file.is_file()]
    random = np.random.default_rng(0)
    tried = failed = 0
    for file in files:
        content = file.read_bytes()
        for attempt in range(12):
            damaged = bytearray(content)
            if attempt < 4:
                damaged = damaged[: int(random.integers(0, len(damaged)))]
            else:
                for place in random.integers(0, len(damaged), 1 + attempt):
                    damaged[place] ^= int(random.integers(1, 256))
            file.write_bytes(bytes(damaged))
            tried += 1
            line = complaint(made.path)
            failed += line != ""
            assert "\n" not in line
            assert line == "" or str(made.path) in line
        file.write_bytes(content)
    assert failed > tried / 3


def test_no_pipe_is_waited_for(tmp_path):
    made = Set2(tmp_path / "set")
    made.write()
    made.data(0).unlink()
    os.mkfifo(made.data(0))
    data = LeRobotDataset(made.path)
    assert "missing" in error_of(lambda: data.read(0))


def test_an_old_version_says_so(tmp_path):
    made = Set2(tmp_path / "set", version="v1.6")
    assert "codebase_version is 'v1.6', expected one of v2.0, v2.1, v3.0" in error_of(
        lambda: LeRobotDataset(made.write())
    )


def test_json_that_is_none(tmp_path):
    made = Set2(tmp_path / "set")
    made.write()
    for content in ("", "[]", "{" * 100000, "[" * 100000, json.dumps({"codebase_version": "v2.1"}), '{"fps": NaN}'):
        (made.path / "meta" / "info.json").write_text(content)
        error_of(lambda: LeRobotDataset(made.path))


def test_a_video_that_is_a_playlist_is_not_followed(tmp_path):
    made = Set2(tmp_path / "set", cameras=("front",))
    made.write()
    secret = tmp_path / "secret.mp4"
    write_video(secret, made.frames["front"][0])
    for text in (f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n", f"ffconcat version 1.0\nfile '{secret}'\n"):
        made.video("front", 0).write_text(text)
        made.video("front", 1).write_text(text)
        made.video("front", 2).write_text(text)
        assert "the video cannot be read" in error_of(lambda: LeRobotDataset(made.path))
