"""What a recorder leaves: whole after every step of its own, whoever stops it, and as LeRobot counts it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from flowhand.contracts import durable
from flowhand.contracts.features import Feature, Spec
from flowhand.demos.lerobot.dataset import LeRobotDataset
from flowhand.demos.lerobot.sink import Sink
from flowhand.demos.native import Store
from flowhand.demos.recording import compaction
from flowhand.demos.recording.config import RecorderConfig
from flowhand.demos.recording.queue import FrameQueue, QueueFull, Room
from flowhand.demos.recording.recorder import Recorder
from flowhand.demos.recording.stats import joined

SIDE = 64


def spec(rate_hz: float = 10, camera: bool = False) -> Spec:
    observation = {"state": Feature((2,), "float32", "rad", names=("shoulder", "elbow"))}
    if camera:
        observation["front"] = Feature((SIDE, SIDE, 3), "uint8", "", camera="front")
    return Spec(observation, Feature((2,), "float32", "rad"), 1 / rate_hz)


def picture(level: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), level, np.uint8)


def take(recorder: Recorder, number: int, steps: int = 5, camera: bool = False, task: str = "") -> int | None:
    """Records an episode that can be told by its numbers."""
    recorder.begin(task, seed=number)
    for step in range(steps):
        observation = {"state": np.array([step, number], np.float32)}
        if camera:
            observation["front"] = picture(20 * number + step)
        sent = np.array([step, number], np.float32)
        recorder.add(observation, sent, asked=sent + 1, intervention=step >= 3, reward=step, success=step == steps - 1)
    return recorder.end()


def recorded(path: Path, episodes: int, **options) -> LeRobotDataset:
    with Recorder(path, spec(**options), task="push", judged=True, robot="arm") as recorder:
        for number in range(episodes):
            take(recorder, number, 5 + number, options.get("camera", False))
    return LeRobotDataset(path)


def require_whole(path: Path, episodes: int, camera: bool = False) -> None:
    """Opened as it lies there: what `info.json` counts is all there, to the last frame."""
    info = json.loads((path / "meta" / "info.json").read_text())
    data = LeRobotDataset(path)
    assert info["total_episodes"] == episodes
    for number in range(episodes):
        episode = data.read(number)
        assert episode.observation["state"].tolist() == [[step, number] for step in range(len(episode))]
        if camera:
            levels = episode.observation["front"].reshape(len(episode), -1).mean(1)
            assert np.abs(levels - (20 * number + np.arange(len(episode)))).max() < 4


def test_what_was_recorded_is_read_again(tmp_path):
    data = recorded(tmp_path / "set", 3, camera=True)
    require_whole(tmp_path / "set", 3, camera=True)
    assert (list(data.lengths), list(data.tasks), data.meta.robot) == ([5, 6, 7], ["push"] * 3, "arm")
    assert data.warnings == []
    rows = pq.read_table(tmp_path / "set/data/chunk-000/file-000.parquet").to_pydict()
    assert rows["index"] == list(range(18))
    assert rows["action_asked"][1] == [2.0, 1.0]
    assert rows["intervention"][:5] == [False, False, False, True, True]
    episode = data.read(1)
    assert episode.intervention is not None
    assert episode.intervention.tolist() == [False] * 3 + [True] * 3
    assert episode.reward.tolist() == [0, 1, 2, 3, 4, 5]
    assert episode.success.tolist() == [False] * 5 + [True]


def test_statistics_are_those_of_all_rows(tmp_path):
    data = recorded(tmp_path / "set", 3)
    stats = json.loads((tmp_path / "set/meta/stats.json").read_text())["observation.state"]
    rows = np.concatenate([data.read(i).observation["state"] for i in range(3)]).astype(np.float64)
    assert stats["count"] == [18]
    np.testing.assert_allclose(stats["mean"], rows.mean(0))
    np.testing.assert_allclose(stats["std"], rows.std(0))
    assert (stats["min"], stats["max"]) == (rows.min(0).tolist(), rows.max(0).tolist())


def test_joined_quantiles_are_weighted_means_as_in_lerobot():
    parts = [{"mean": [m], "std": [0.0], "min": [m], "max": [m], "count": [n], "q50": [m]} for m, n in ((1, 1), (4, 3))]
    assert joined(parts)["q50"] == [3.25]


def test_a_set_is_extended_and_files_are_joined(tmp_path):
    recorded(tmp_path / "set", 2, camera=True)
    with Recorder(tmp_path / "set", spec(camera=True), task="push", judged=True, robot="arm") as recorder:
        assert recorder.episodes == 2
        assert [take(recorder, number, 5, True) for number in (2, 3)] == [2, 3]
        assert len(list((tmp_path / "set/data").rglob("*.parquet"))) == 3  # the joined one, and two
    assert len(list((tmp_path / "set/data").rglob("*.parquet"))) == 1
    assert len(list((tmp_path / "set/videos").rglob("*.mp4"))) == 1
    assert [one.name for one in tmp_path.iterdir()] == ["set"]
    require_whole(tmp_path / "set", 4, camera=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: Spec({"state": Feature((3,), "float32", "rad")}, Feature((2,), "float32", "rad"), 0.1), "shape of"),
        (lambda: Spec({"other": Feature((2,), "float32", "rad")}, Feature((2,), "float32", "rad"), 0.1), "has no col"),
        (lambda: spec(rate_hz=20), "10 Hz, and this is 20 Hz"),
    ],
)
def test_another_set_is_not_extended(tmp_path, change, words):
    recorded(tmp_path / "set", 1)
    with pytest.raises(ValueError, match=words), Recorder(tmp_path / "set", change(), judged=True):
        pass
    require_whole(tmp_path / "set", 1)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no LeRobot data set"), Recorder(tmp_path / "set", spec()):
        pass
    assert (tmp_path / "set/notes.txt").read_text() == "mine"


def test_two_recorders_do_not_share_a_set(tmp_path):
    with Recorder(tmp_path / "set", spec()), pytest.raises(ValueError, match="another process"):
        Recorder(tmp_path / "set", spec()).__enter__()


def test_dropped_and_empty_episodes_leave_nothing(tmp_path):
    with Recorder(tmp_path / "set", spec(camera=True)) as recorder:
        take(recorder, 0, camera=True)
        recorder.begin()
        recorder.add({"state": np.zeros(2), "front": picture(9)}, np.zeros(2))
        recorder.drop()
        recorder.begin()
        assert recorder.end() is None
        take(recorder, 1, camera=True)
    require_whole(tmp_path / "set", 2, camera=True)


class Killed(BaseException):
    """Stands in for a kill: nothing is tidied up after it."""


@pytest.mark.parametrize("camera", [False, True])
def test_after_a_kill_between_any_two_renames_earlier_episodes_are_whole(tmp_path, monkeypatch, camera):
    """At each moment the folder is copied as it is and opened there; then recording goes on in it."""
    moments: list[Path] = []
    replace = Path.replace

    def photographed(self, target):
        found = replace(self, target)
        if "set/" in str(target):
            moments.append(tmp_path / f"copy{len(moments)}" / "set")
            shutil.copytree(tmp_path / "set", moments[-1])
        return found

    with Recorder(tmp_path / "set", spec(camera=camera), task="push", judged=True) as recorder:
        take(recorder, 0, camera=camera)
        monkeypatch.setattr(Path, "replace", photographed)
        take(recorder, 1, camera=camera)
        monkeypatch.undo()
    assert len(moments) == (5 if camera else 4)  # rows, (video,) episodes, statistics, info
    for number, path in enumerate(moments):
        is_last = number == len(moments) - 1
        require_whole(path, 2 if is_last else 1, camera)
        with Recorder(path, spec(camera=camera), task="push", judged=True) as recorder:
            assert bool(recorder.lines) != is_last
            take(recorder, recorder.episodes, camera=camera)
        require_whole(path, 3 if is_last else 2, camera)
        stats = json.loads((path / "meta/stats.json").read_text())
        assert stats["action"]["count"] == [15 if is_last else 10]


@pytest.mark.parametrize("stage", ["_join_tables", "_join_videos", "_require_same", "exchange"])
def test_joining_that_is_stopped_leaves_the_set_as_it_was(tmp_path, monkeypatch, stage):
    recorder = Recorder(tmp_path / "set", spec(camera=True), task="push", judged=True).__enter__()
    for number in range(2):
        take(recorder, number, camera=True)
    monkeypatch.setattr(compaction, stage, lambda *_: (_ for _ in ()).throw(Killed()))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as after a kill
        with pytest.raises(Killed):
            recorder.__exit__(None, None, None)
    monkeypatch.undo()
    require_whole(tmp_path / "set", 2, camera=True)
    with Recorder(tmp_path / "set", spec(camera=True), task="push", judged=True) as recorder:
        take(recorder, 2, camera=True)
    require_whole(tmp_path / "set", 3, camera=True)
    assert [one.name for one in tmp_path.iterdir()] == ["set"]


def test_without_an_exchange_files_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(compaction, "exchange", lambda *_: False)
    with Recorder(tmp_path / "set", spec(), task="push", judged=True) as recorder:
        for number in range(2):
            take(recorder, number)
    assert "cannot exchange" in recorder.lines[-1]
    require_whole(tmp_path / "set", 2)


@pytest.mark.parametrize("lost", ["sync", "write"])
def test_a_full_disk_loses_the_episode_alone(tmp_path, monkeypatch, lost):
    full = OSError(28, "No space left on device")
    recorder = Recorder(tmp_path / "set", spec(), judged=True).__enter__()
    take(recorder, 0)
    if lost == "sync":
        monkeypatch.setattr("flowhand.demos.recording.files.sync", lambda *_: (_ for _ in ()).throw(full))
    else:
        monkeypatch.setattr(pq, "write_table", lambda *_, **__: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="No space"):
        take(recorder, 1)
    recorder.__exit__(OSError, full, None)
    monkeypatch.undo()
    require_whole(tmp_path / "set", 1)


def test_a_video_on_a_full_disk_is_an_error_and_no_crash(tmp_path, monkeypatch):
    sink = Sink(tmp_path / "video.mp4")
    real = sink._file

    class Full:
        name = real.name

        def write(self, data):
            raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(real, name)

    monkeypatch.setattr(sink, "_file", Full())
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = SIDE
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(3), format="rgb24")))
        container.mux(stream.encode())
    with pytest.raises(OSError, match="No space"):
        sink.close()


def test_frames_wait_on_the_disk_and_none_is_dropped_without_a_word(tmp_path):
    bytes_of_one = SIDE * SIDE * 3
    queue = FrameQueue(tmp_path / "queue", (SIDE, SIDE, 3), "uint8", room := Room(3 * bytes_of_one))
    for level in range(3):
        queue.put(picture(level))
    with pytest.raises(QueueFull, match="wait for the encoder"):
        queue.put(picture(9))
    taken = iter(queue)
    assert next(taken)[0, 0, 0] == 0
    queue.put(picture(3))  # there is room again
    queue.close()
    assert [frame[0, 0, 0] for frame in taken] == [1, 2, 3]
    assert room.taken == 0
    assert not list((tmp_path / "queue").iterdir())


def test_too_many_waiting_frames_end_the_episode(tmp_path, monkeypatch):
    monkeypatch.setattr("flowhand.demos.recording.camera.Camera._work", lambda self: None)  # an encoder that hangs
    config = RecorderConfig(queue_gb=2.5 * SIDE * SIDE * 3 / 2**30)
    with Recorder(tmp_path / "set", spec(camera=True), config) as recorder:
        recorder.begin()
        for level in range(2):
            recorder.add({"state": np.zeros(2), "front": picture(level)}, np.zeros(2))
        with pytest.raises(QueueFull):
            recorder.add({"state": np.zeros(2), "front": picture(9)}, np.zeros(2))
    assert not (tmp_path / "set").exists()


def test_a_camera_slower_than_the_control_repeats_its_frame(tmp_path):
    with Recorder(tmp_path / "set", spec(camera=True)) as recorder:
        recorder.begin()
        for frame in (picture(0), picture(40)):
            for _ in range(3):
                recorder.add({"state": np.zeros(2), "front": frame}, np.zeros(2))
        recorder.end()
    levels = LeRobotDataset(tmp_path / "set").read(0).observation["front"].reshape(6, -1).mean(1)
    assert np.abs(levels - [0, 0, 0, 40, 40, 40]).max() < 3


@pytest.mark.parametrize(
    ("observation", "action", "words"),
    [
        ({"state": np.array([0, np.nan])}, np.zeros(2), "not finite"),
        ({"state": np.zeros(2)}, np.array([np.inf, 0]), "'action' is not finite"),
        ({"state": np.zeros(3)}, np.zeros(2), "shape"),
        ({}, np.zeros(2), "is missing"),
    ],
)
def test_what_does_not_fit_is_not_recorded(tmp_path, observation, action, words):
    with Recorder(tmp_path / "set", spec()) as recorder:
        recorder.begin()
        with pytest.raises(ValueError, match=words):
            recorder.add(observation, action)
        recorder.drop()
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (Spec({"state": Feature((2,), "float32", "rad")}, Feature((2,), "float32", "rad"), 0.08), "12.5 Hz"),
        (Spec({"state": Feature((2,), "float32", "rad")}, Feature((2,), "float32", "rad"), None), "wait for events"),
        (
            Spec(
                {"state": Feature((2,), "float32", "rad"), "things": Feature((4, 3), "float32", "", kind="elements")},
                Feature((2,), "float32", "rad"),
                0.1,
            ),
            "elements",
        ),
    ],
)
def test_what_lerobot_has_no_place_for_is_recorded_natively(tmp_path, made, words):
    with Recorder(tmp_path / "set", made, task="push") as recorder:
        assert recorder.format == "native"
        assert words in recorder.lines[0]
        recorder.begin()
        values = {name: np.zeros(feature.shape, np.float32) for name, feature in made.observation.items()}
        recorder.add(values, np.ones(2), asked=np.full(2, 2.0), intervention=True)
        recorder.end()
    episode = Store.open(tmp_path / "set")[0]
    assert episode.action.tolist() == [[1, 1]]
    assert episode.task == "push"
    assert episode.asked is not None
    assert episode.asked.tolist() == [[2, 2]]
    assert episode.intervention is not None
    assert episode.intervention.tolist() == [True]


def test_pictures_can_be_kept_to_the_last_bit(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    with Recorder(tmp_path / "set", spec(camera=True), RecorderConfig(images="png")) as recorder:
        recorder.begin()
        for frame in noise:
            recorder.add({"state": np.zeros(2), "front": frame}, np.zeros(2))
        recorder.end()
    assert np.array_equal(LeRobotDataset(tmp_path / "set").read(0).observation["front"], noise)


def test_a_killed_recorder_is_followed_by_another(tmp_path):
    """A real kill -9, once; benchmarks/recorder_kills.py does it by the hundred, and asks LeRobot."""
    note = tmp_path / "note"
    child = os.fork()
    if child == 0:
        with Recorder(tmp_path / "set", spec(), judged=True) as recorder:
            for number in range(10**6):
                take(recorder, number, 3)
                note.write_text(f"{recorder.episodes}")
    while not note.exists() or int(note.read_text() or 0) < 3:
        pass
    os.kill(child, 9)
    os.waitpid(child, 0)
    least = int(note.read_text() or 0)
    count = json.loads((tmp_path / "set/meta/info.json").read_text())["total_episodes"]
    assert count in (least, least + 1)
    require_whole(tmp_path / "set", count)
    with Recorder(tmp_path / "set", spec(), judged=True) as recorder:
        take(recorder, count, 3)
    require_whole(tmp_path / "set", count + 1)


def test_the_exchange_of_two_folders_is_the_house_s_own(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert durable.exchange(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "one" / "other").exists()


@pytest.mark.slow
@pytest.mark.skipif("FLOWHAND_LEROBOT" not in os.environ, reason="FLOWHAND_LEROBOT names no Python with lerobot 0.6.1")
def test_lerobot_itself_trains_on_a_recorded_set(tmp_path):
    recorded(tmp_path / "set", 3, camera=True)
    side = Path(__file__).parents[1] / "real" / "lerobot_trains.py"
    words = [os.environ["FLOWHAND_LEROBOT"], str(side), str(tmp_path / "set")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    frames, inputs, loss = done.stdout.split()[-3:]
    assert (frames, inputs) == ("18", "2")
    assert np.isfinite(float(loss))
