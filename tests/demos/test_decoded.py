"""Rows that are decoded once: equal to what the readers give, whole or absent, bounded, shared."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowhand.contracts.data.rows import Rows, RowSet
from flowhand.contracts.data.statistics import QUANTILES
from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.planner import learnable
from flowhand.contracts.resize import resized
from flowhand.demos.decoded import arrays
from flowhand.demos.decoded.arrays import ArrayFolder, EpisodeArray
from flowhand.demos.decoded.rows import KeptRows, LiveRows, TrainingRows, as_read, read_features, row_bytes
from flowhand.demos.formats import open_dataset
from flowhand.demos.hdf5_files.robomimic import RobomimicDataset
from flowhand.demos.lerobot.dataset import LeRobotDataset
from flowhand.demos.lerobot.write import LeRobotWriter
from flowhand.demos.native import Store
from flowhand.demos.states import StateEpisodes
from tests.demos.recorded import Set2, Set3, write_video
from tests.demos.test_recorded_hdf5 import minari, robomimic
from tests.demos.test_replay_zarr import make as replay_zarr
from tests.demos.test_store import META, make_episode

GB = 10**9


def lerobot_png(path: Path) -> Path:
    store = Store.create(path.with_name("origin"), META)
    for seed in range(3):
        store.append(make_episode(seed, 4 + seed))
    spec = store.spec
    features = {"state": spec.observation["state"], "image": Feature((16, 20, 3), "uint8", "")}
    with LeRobotWriter(path, type(spec)(features, spec.action, 0.05), images="png") as writer:
        for episode in store:
            episode.observation["image"] = np.random.default_rng(len(episode)).integers(
                256, size=(len(episode), 16, 20, 3), dtype=np.uint8
            )
            writer.append(episode)
    return path


def native(path: Path) -> Path:
    store = Store.create(path, META)
    for seed in range(3):
        store.append(make_episode(seed, 4 + seed))
    return path


def float_zarr(path: Path) -> Path:
    return replay_zarr(path, np.random.default_rng(0).integers(0, 256, (21, 16, 20, 3)).astype(np.float32))


MAKERS: dict[str, Callable[[Path], Path]] = {
    "lerobot 3.0": lambda path: Set3(
        path, video_files={"front": ((0, 1), (2, 3, 4)), "top": ((0, 1, 2, 3, 4),)}
    ).write(),
    "lerobot 2.1": lambda path: Set2(path, cameras=("front",)).write(),
    "lerobot png": lerobot_png,
    "zarr": float_zarr,
    "robomimic": lambda path: robomimic(path.with_suffix(".hdf5"), control_freq=20),
    "minari": minari,
    "minari jpeg": lambda path: minari(path, jpeg=True),
    "native": native,
}


@pytest.fixture(scope="module", params=list(MAKERS))
def data(tmp_path_factory, request):
    return open_dataset(MAKERS[request.param](tmp_path_factory.mktemp("set") / "set"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return MAKERS["lerobot 3.0"](tmp_path_factory.mktemp("videos") / "set")


def features_of(data: Any, size: tuple[int, int] = (6, 9)) -> dict[str, Feature]:
    """What a policy reads of the set: images at this size, vectors of float32."""
    flat = {
        name: feature if feature.kind == "image" else Feature((feature.size,), "float32", "")
        for name, feature in learnable(data.spec).observation.items()
        if feature.kind in ("image", "state")
    }
    spec = type(data.spec)(flat, Feature((data.spec.action.size,), "float32", ""), data.spec.control_dt_s)
    return read_features(spec, {name: size for name, feature in flat.items() if feature.kind == "image"})


def rows_of(data: Any, folder: Path, episodes: Sequence[int] | None = None, most: int = GB, **options) -> TrainingRows:
    episodes = range(len(data.lengths)) if episodes is None else episodes
    return TrainingRows(data, episodes, features_of(data, **options), ArrayFolder(folder, most))


def expected(data: Any, name: str, episodes: Sequence[int], size: tuple[int, int] = (6, 9)) -> np.ndarray:
    """The rows, by the reader's own way to read an episode."""
    read = [data.read(episode) for episode in episodes]
    values = np.concatenate([each.action if name == "action" else each.observation[name] for each in read])
    is_image = name != "action" and data.spec.observation[name].kind == "image"
    return (
        np.stack([resized(image, size) for image in values])
        if is_image
        else values.reshape(len(values), -1).astype(np.float32)
    )


def taken(rows: Rows, steps: Any) -> np.ndarray:
    out = np.empty((len(steps), *rows.feature.shape), rows.feature.dtype)
    rows.take(np.asarray(steps), out)
    return out


@pytest.mark.parametrize("most", [GB, 0])
def test_rows_of_every_format_are_what_the_reader_reads(tmp_path, data, most):
    """Kept on the disk, and decoded on the fly where there is no room."""
    episodes = [len(data.lengths) - 1, 0]
    rows = rows_of(data, tmp_path / "cache", episodes, most)
    assert isinstance(rows, RowSet)
    assert {type(each) for each in rows.rows.values()} == {KeptRows if most else LiveRows}
    for name, each in rows.rows.items():
        whole = expected(data, name, episodes)
        steps = np.random.default_rng(0).integers(0, len(whole), 40)
        np.testing.assert_array_equal(taken(each, steps), whole[steps])
        np.testing.assert_array_equal(taken(each, range(len(whole))), whole)
        with pytest.raises(IndexError, match=f"there are {len(whole)}"):
            taken(each, [0, len(whole)])
    for got, episode in zip(rows, episodes, strict=True):
        for name, values in {**got.observation, "action": got.action}.items():
            np.testing.assert_array_equal(values, expected(data, name, [episode]))
    assert list(rows.tasks) == [data.tasks[episode] for episode in episodes]


def test_statistics_are_those_of_the_chosen_rows_and_are_measured_once(tmp_path, data, monkeypatch):
    episodes = [0, len(data.lengths) - 1]
    rows = rows_of(data, tmp_path / "cache", episodes)
    measured = rows.statistics()
    assert {name for name, each in rows.rows.items() if each.feature.kind != "image"} == set(measured)
    for name, each in measured.items():
        values = expected(data, name, episodes).astype(np.float64)
        np.testing.assert_allclose(each.mean, values.mean(0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(each.std, values.std(0), rtol=1e-9, atol=1e-12)
        places = [round(q * (len(values) - 1)) for q in QUANTILES]
        np.testing.assert_array_equal(each.quantiles, np.sort(values, 0)[places])
    again = rows_of(data, tmp_path / "cache", episodes)
    monkeypatch.setattr(TrainingRows, "_measured", lambda self: pytest.fail("they were measured again"))
    for name, each in again.statistics().items():
        assert [getattr(each, field).tobytes() for field in ("mean", "std", "low", "high", "quantiles")] == [
            getattr(measured[name], field).tobytes() for field in ("mean", "std", "low", "high", "quantiles")
        ]
    file = next((tmp_path / "cache").glob("*.stats.json"))
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ValueError, match=r"holds no statistics .*; delete it"):
        again.statistics()


def test_a_value_is_decoded_once_for_all_runs_and_subsets(tmp_path, videos, monkeypatch):
    data = LeRobotDataset(videos)
    rows_of(data, tmp_path / "cache", [1, 3])
    decoded = []
    blocks = LeRobotDataset.blocks
    monkeypatch.setattr(
        LeRobotDataset, "blocks", lambda s, name, e, *o: decoded.append((name, e)) or blocks(s, name, e)
    )
    everything = rows_of(data, tmp_path / "cache")
    assert sorted(set(decoded)) == sorted((name, e) for name in everything.rows for e in (0, 2, 4))
    decoded.clear()
    again = rows_of(data.select(episodes=[4, 1]), tmp_path / "cache")  # numbered by what the files hold
    for name, each in again.rows.items():
        np.testing.assert_array_equal(taken(each, range(sum(again.lengths))), expected(data, name, [4, 1]))
    assert decoded == []
    rows_of(data, tmp_path / "cache", size=(5, 5))
    assert {name for name, _ in decoded} == {"front", "top"}  # at another size they are other rows


def test_a_changed_set_is_decoded_again(tmp_path):
    made = Set2(tmp_path / "set", cameras=("front",))
    made.write()
    before = taken(rows_of(LeRobotDataset(made.path), tmp_path / "cache").rows["front"], [0])
    write_video(made.video("front", 0), 255 - made.frames["front"][0])
    after = taken(rows_of(LeRobotDataset(made.path), tmp_path / "cache").rows["front"], [0])
    assert np.abs(after.astype(int) - before).max() > 50


def test_episodes_that_a_filter_counts_otherwise_are_not_mixed_up(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", {"demo_0": True, "demo_2": False, "demo_10": True}, control_freq=20)
    for failed in ("keep", "leave", "only"):
        data = RobomimicDataset(path, failed=failed)
        rows = rows_of(data, tmp_path / "cache")
        np.testing.assert_array_equal(
            taken(rows.rows["object"], range(len(data.read(0)))), data.read(0).observation["object"]
        )


def test_the_folder_keeps_its_bound_with_one_line(tmp_path, videos, caplog):
    data = LeRobotDataset(videos)
    features = features_of(data)
    steps, vectors = sum(data.lengths), row_bytes({n: f for n, f in features.items() if f.kind != "image"})
    most = steps * vectors + steps * 6 * 9 * 3 + 6 * 24 * len(data)  # states, action and one camera
    rows = rows_of(data, tmp_path / "cache", most=most)
    kinds = {name: type(each) for name, each in rows.rows.items()}
    assert kinds == {"state": KeptRows, "action": KeptRows, "front": KeptRows, "top": LiveRows}
    assert sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) <= most
    [line] = [record.getMessage() for record in caplog.records if "data.cache_gb" in record.getMessage()]
    assert "decoded on the fly" in line
    np.testing.assert_array_equal(taken(rows.rows["top"], [3, 30, 3]), expected(data, "top", range(5))[[3, 30, 3]])


def test_a_full_disk_is_no_error(tmp_path, caplog, monkeypatch):
    data = open_dataset(native(tmp_path / "set"))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flowhand.demos.decoded.arrays.os.fdatasync", full)
    rows = rows_of(data, tmp_path / "cache")
    assert {type(each) for each in rows.rows.values()} == {LiveRows}
    assert "the disk is full; frames are decoded on the fly" in caplog.text


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    data = open_dataset(native(tmp_path / "set"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"data.cache_dir=.*file/cache cannot be written"):
        rows_of(data, tmp_path / "file" / "cache")


def test_data_that_cannot_be_written_is_left_as_it_is(tmp_path):
    path = MAKERS["lerobot 2.1"](tmp_path / "set")
    before = sorted((str(file), file.stat().st_mtime_ns) for file in path.rglob("*"))
    for folder in (path, *(entry for entry in path.rglob("*") if entry.is_dir())):
        folder.chmod(0o555)
    try:
        rows_of(LeRobotDataset(path), tmp_path / "cache").statistics()
        assert sorted((str(file), file.stat().st_mtime_ns) for file in path.rglob("*")) == before
    finally:
        for folder in (path, *(entry for entry in path.rglob("*") if entry.is_dir())):
            folder.chmod(0o755)


def test_a_corrupt_frame_is_refused_and_leaves_nothing_of_its_episode(tmp_path):
    made = Set2(tmp_path / "set", (40, 40, 40), cameras=("front",))
    file = made.write() / made.video("front", 1)
    content = bytearray(file.read_bytes())
    middle = content.index(b"mdat") + 400
    content[middle : middle + 2000] = bytes(2000)
    file.write_bytes(content)
    data = LeRobotDataset(made.path)
    with pytest.raises(
        ValueError, match=r"episode_000001.mp4: episode 1: camera 'observation.images.front': .*frame \d+"
    ):
        rows_of(data, tmp_path / "cache")
    with pytest.raises(ValueError, match=r"episode 1: camera 'observation.images.front': .*frame \d+"):
        taken(rows_of(data, tmp_path / "none", most=0).rows["front"], range(40, 80))
    rows = rows_of(data, tmp_path / "cache", [0, 2])
    np.testing.assert_array_equal(taken(rows.rows["front"], range(80)), expected(data, "front", [0, 2]))


@pytest.mark.parametrize("shape", [(8, 12), (8, 12, 1)])
def test_depth_is_resized_with_and_without_an_axis_of_channels(shape):
    values = np.random.default_rng(0).integers(0, 60000, (3, *shape), np.uint16)
    feature = read_features(
        Spec({"depth": Feature(shape, "uint16", "mm", kind="depth")}, Feature((1,), "float32", ""), 0.1),
        {"depth": (4, 6)},
    )["depth"]
    assert feature.shape == (4, 6, *shape[2:])
    rows = as_read(values, feature, "")
    np.testing.assert_array_equal(rows[1].reshape(4, 6, 1), resized(values[1].reshape(8, 12, 1), (4, 6)))
    with pytest.raises(ValueError, match="no image 'state' to be read at 4 x 6"):
        read_features(Spec({"depth": feature}, Feature((1,), "float32", ""), 0.1), {"state": (4, 6)})


def test_the_previous_action_is_a_row_too(tmp_path):
    data = LeRobotDataset(Set2(tmp_path / "set").write())
    spec = StateEpisodes(data, previous_action=True).spec
    for most in (GB, 0):
        folder = ArrayFolder(tmp_path / "cache", most)
        rows = TrainingRows(data, [2, 0], read_features(spec, {}), folder)
        whole = [each.observation["previous_action"] for each in StateEpisodes(data, [2, 0], previous_action=True)]
        steps = np.random.default_rng(0).permutation(sum(rows.lengths))
        np.testing.assert_array_equal(taken(rows.rows["previous_action"], steps), np.concatenate(whole)[steps])
        shutil.rmtree(tmp_path / "cache")


def test_values_that_float32_cannot_hold_are_refused(tmp_path):
    made = Set2(tmp_path / "set")
    for rows in made.rows:
        rows["observation.state"] = rows["observation.state"].astype(np.float64)
    made.rows[1]["observation.state"][2, 0] = 1e200
    made.features["observation.state"]["dtype"] = "float64"
    with pytest.raises(ValueError, match="episode 1: 'state' has values that float32 cannot hold"):
        rows_of(LeRobotDataset(made.write()), tmp_path / "cache")


def test_only_whole_episodes_count(tmp_path):
    """A writer that is killed leaves values without a line, or half a line."""
    folder = ArrayFolder(tmp_path, GB)
    array = EpisodeArray(folder, "a", (2,), "float32")
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    assert array.add({3: 4}, lambda number: [values[:1], values[1:4]])
    with array.file.open("ab") as file:
        file.write(b"half an episode")
    with array.index_file.open("ab") as file:
        file.write(b"half a line")
    assert array.places() == {3: (0, 4)}
    for count in (1, 3):
        with pytest.raises(ValueError, match=f"{count} rows were decoded, expected 2"):
            array.add({3: 4, 1: 2}, lambda number, count=count: [values[:count]])
    assert array.places() == {3: (0, 4)}
    assert array.add({1: 2}, lambda number: [values[4:]])
    assert array.places() == {3: (0, 4), 1: (4, 2)}
    np.testing.assert_array_equal(array.mapped(6), values)
    with array.file.open("r+b") as file:
        file.truncate(8 * 5)
    with pytest.raises(ValueError, match=r"a.index and a.rows do not fit together; delete both"):
        array.places()


def _decode(path: Path, cache: Path, queue: Any) -> None:
    rows = rows_of(open_dataset(path), cache)
    queue.put({name: int(taken(each, range(sum(rows.lengths))).sum()) for name, each in rows.rows.items()})


def test_processes_share_a_folder(tmp_path, videos):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_decode, args=(videos, tmp_path / "cache", queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    first, second = (queue.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    data = open_dataset(videos)
    features = features_of(data)
    assert first == second == {name: int(expected(data, name, range(5)).sum()) for name in features}
    size = sum(file.stat().st_size for file in (tmp_path / "cache").glob("*.rows"))
    assert size == row_bytes(features) * sum(data.lengths)  # nothing is there twice


def _decode_and_hang(path: Path, cache: Path, done: Any) -> None:
    write = EpisodeArray._write

    def hanging(blocks: Any) -> Any:
        for block in blocks:
            yield block[:1]
            done.send("in the middle")
            time.sleep(60)

    def slow(self: EpisodeArray, first: int, rows: int, blocks: Any) -> bool:
        return write(self, first, rows, hanging(blocks) if first > 0 and self.dtype == "uint8" else blocks)

    EpisodeArray._write, arrays.AT_ONCE = slow, 1  # each episode for itself
    rows_of(open_dataset(path), cache)


def test_a_process_killed_while_it_decodes_leaves_nothing_half(tmp_path, videos):
    cache, data = tmp_path / "cache", open_dataset(videos)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_decode_and_hang, args=(videos, cache, there))
    process.start()
    assert here.poll(60)
    process.kill()
    process.join()
    largest = max(cache.glob("*.rows"), key=lambda file: file.stat().st_size)
    assert largest.stat().st_size == 6 * 9 * 3 * sum(data.lengths[:2])  # one is there, and room for the second
    assert largest.with_suffix(".index").stat().st_size == 24
    rows = rows_of(data, cache)
    for name, each in rows.rows.items():
        np.testing.assert_array_equal(taken(each, range(sum(data.lengths))), expected(data, name, range(5)))
