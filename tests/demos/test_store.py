import hashlib
import json
import os
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from flowhand.contracts.data.episode import Dataset, Episode
from flowhand.contracts.data.statistics import QUANTILES
from flowhand.demos import native
from flowhand.demos.meta import StoreMeta
from flowhand.demos.native import Store

FEATURES = {
    "observation": {
        "state": {"shape": [2], "dtype": "float32", "unit": "m", "low": [-1, -1], "high": [1, 1]},
        "image": {"shape": [2, 2, 3], "dtype": "uint8", "unit": "", "low": None, "high": None},
    },
    "action": {"shape": [1], "dtype": "float32", "unit": "N", "low": None, "high": None},
    "control_dt_s": 0.05,
}
META = StoreMeta(features=FEATURES, task="go", env="toy", env_version="toy 1", recipe={"seed": 0, "noise": 0.1})


def make_episode(seed, steps=4):
    rng = np.random.default_rng(seed)
    return Episode(
        observation={
            "state": rng.standard_normal((steps, 2)).astype(np.float32),
            "image": rng.integers(256, size=(steps, 2, 2, 3), dtype=np.uint8),
        },
        action=rng.standard_normal((steps, 1)).astype(np.float32),
        reward=rng.standard_normal(steps).astype(np.float32),
        success=rng.random(steps) > 0.5,
        task="g\N{LATIN SMALL LETTER O WITH DIAERESIS} to the \N{GREEK SMALL LETTER ALPHA}",
        seed=seed,
        control_dt_s=0.05,
    )


def arrays_of(episode):
    return {"action": episode.action, "reward": episode.reward, "success": episode.success, **episode.observation}


def assert_bit_equal(got, expected):
    assert (got.task, got.seed, got.control_dt_s) == (expected.task, expected.seed, expected.control_dt_s)
    assert arrays_of(got).keys() == arrays_of(expected).keys()
    for name, array in arrays_of(got).items():
        other = arrays_of(expected)[name]
        assert (array.dtype, array.shape, array.tobytes()) == (other.dtype, other.shape, other.tobytes())


@pytest.fixture
def store(tmp_path):
    """Three episodes, of 4, 5 and 6 steps."""
    store = Store.create(tmp_path / "store", META)
    for seed in range(3):
        store.append(make_episode(seed, steps=4 + seed))
    return store


def episode_file(store, index):
    return store.path / "episodes" / f"{index:06d}.npz"


def edit_meta(store, change):
    file = store.path / "meta.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_store_is_a_dataset_that_reads_what_is_asked_for(store, monkeypatch):
    dataset: Dataset = Store.open(store.path)
    task = store[0].task
    with monkeypatch.context() as patch:
        patch.setattr(native, "_unpack", None)  # no whole episode is read
        assert (list(dataset.lengths), set(dataset.tasks), len(dataset.fingerprint)) == ([4, 5, 6], {task}, 64)
        assert Store.open(store.path).seeds == [0, 1, 2]
    part = dataset.read(2, 1, 4)
    part.validate(dataset.spec)
    np.testing.assert_array_equal(part.observation["state"], store[2].observation["state"][1:4])
    assert len(dataset.read(1, 3)) == 2
    with pytest.raises(ValueError, match="steps 2 to 9 were asked for, the episode has steps 0 to 4"):
        dataset.read(0, 2, 9)
    assert repr(dataset).startswith(
        f"Store('{store.path}': 3 episodes of 'go', Spec(image uint8 (2, 2, 3), state float32"
    )


def test_the_fingerprint_changes_with_the_data(store):
    before = Store.open(store.path).fingerprint
    assert before == Store.open(store.path).fingerprint
    assert store.head(2).fingerprint != before
    os.utime(episode_file(store, 1), ns=(1, 1))
    assert Store.open(store.path).fingerprint != before
    before = store.fingerprint
    store.append(make_episode(9))
    assert store.fingerprint != before
    assert (store.lengths, store.seeds) == ([4, 5, 6, 4], [0, 1, 2, 9])


def test_statistics_are_those_of_all_rows_and_pixels(store):
    measured = store.statistics()
    assert measured.keys() == {"state", "image", "action"}
    columns = {
        "state": np.concatenate([e.observation["state"] for e in store]),
        "action": np.concatenate([e.action for e in store]),
        "image": np.concatenate([e.observation["image"].reshape(-1, 3) for e in store]),
    }
    for name, rows in columns.items():
        one = measured[name]
        assert one.count == len(rows)
        np.testing.assert_allclose(one.mean, rows.mean(0, dtype=np.float64))
        np.testing.assert_allclose(one.std, rows.std(0, dtype=np.float64))
        np.testing.assert_array_equal((one.low, one.high), (rows.min(0), rows.max(0)))
        expected = np.quantile(rows.astype(np.float64), QUANTILES, axis=0, method="nearest")
        np.testing.assert_array_equal(one.quantiles, expected)
    with pytest.raises(ValueError, match="there are no episodes to measure"):
        store.head(0).statistics()


def test_the_hash_comes_with_reading_everything(store, monkeypatch):
    expected, opened = store.hash(), Store.open(store.path)
    assert len(list(opened)) == 3
    monkeypatch.setattr(native, "_unpack", None)
    assert opened.hash() == expected


def test_round_trip_is_bit_equal(store):
    opened = Store.open(store.path)
    assert len(opened) == 3
    assert opened.meta == META
    assert opened.meta.features == FEATURES
    assert opened.seeds == [0, 1, 2]
    for seed, episode in enumerate(opened):
        assert_bit_equal(episode, make_episode(seed, steps=4 + seed))
    assert_bit_equal(opened[-1], opened[2])
    with pytest.raises(IndexError, match="episode 3 of 3"):
        opened[3]


def test_numpy_reads_the_files(store):
    with np.load(episode_file(store, 1), allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["observation/state"], store[1].observation["state"])
        assert arrays["seed"] == 1


def test_a_view_holds_the_first_episodes_only(store):
    view = store.head(2)
    assert view.seeds == [0, 1]
    with pytest.raises(IndexError, match="episode 2 of 2"):
        view[2]
    with pytest.raises(ValueError, match="view of the first 2 episodes is read-only"):
        view.append(make_episode(9))
    with pytest.raises(ValueError, match="4 episodes asked for, the store has 3"):
        store.head(4)


def test_an_invalid_episode_is_not_written(store):
    episode = make_episode(5)
    episode.action[1] = np.nan
    with pytest.raises(ValueError, match="action is nan at step 1"):
        store.append(episode)
    assert len(Store.open(store.path)) == 3


def test_hash_follows_the_contents(store, tmp_path):
    twin = Store.create(tmp_path / "twin", META)
    for episode in store:
        twin.append(episode)
    assert twin.hash() == store.hash() == Store.open(store.path).head(3).hash()
    assert len(bytes.fromhex(store.hash())) == hashlib.sha256().digest_size
    hashes = {store.hash(), store.head(2).hash()}
    changed = make_episode(2, steps=6)
    changed.reward[5] = np.nextafter(changed.reward[5], np.float32(9))
    for name, meta, last in [("value", META, changed), ("meta", replace(META, env_version="toy 2"), store[2])]:
        other = Store.create(tmp_path / name, meta)
        for episode in [store[0], store[1], last]:
            other.append(episode)
        hashes.add(other.hash())
    assert len(hashes) == 4


def test_hash_survives_a_rewritten_file(store):
    before = store.hash()
    with np.load(episode_file(store, 0)) as arrays:
        np.savez_compressed(episode_file(store, 0), **dict(arrays))
    assert store.hash() == before


@pytest.mark.parametrize("part", [0, 1, 30, 0.25, 0.5, 0.75, 0.99, -1])
def test_a_truncated_episode_is_refused_with_its_file(store, part):
    content = episode_file(store, 1).read_bytes()
    size = int(part * len(content)) if 0 < part < 1 else part
    episode_file(store, 1).write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"000001\.npz: episode 1 cannot be used: .*Restore the file"):
        list(Store.open(store.path))
    assert_bit_equal(store[0], make_episode(0))


def test_a_flipped_byte_never_changes_what_is_read(store):
    content = episode_file(store, 0).read_bytes()
    refusals = []
    for position in range(0, len(content), 5):
        damaged = bytearray(content)
        damaged[position] ^= 0x21
        episode_file(store, 0).write_bytes(damaged)
        try:
            episode = store[0]
        except ValueError as error:
            refusals.append(str(error))
        else:  # only bytes that carry no data, such as the dates of a zip file, may go unseen
            assert_bit_equal(episode, make_episode(0))
    assert len(refusals) > 0.5 * len(content) / 5
    assert all("000000.npz: episode 0 cannot be used" in refusal for refusal in refusals)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation/state": np.full((4, 2), np.nan, np.float32)}, r"'state' is nan at step 0, dimension 0"),
        ({"observation/state": np.zeros((3, 2), np.float32)}, r"'state' has 3 steps but action has 4"),
        ({"reward": np.zeros(4)}, r"reward has dtype float64"),
        ({"success": np.array([None] * 4)}, r"'success.npy' has the header .*which numpy does not write"),
        ({"seed": np.array(-4)}, r"seed is -4"),
        ({"seed": np.array([1, 2])}, r"can only convert an array of size 1"),
        ({"action": None}, r"missing or unknown arrays \['action'\]"),
        ({"surprise": np.zeros(4)}, r"missing or unknown arrays \['surprise'\]"),
        ({"observation/image": None}, r"observation misses key 'image'"),
    ],
)
def test_an_episode_with_wrong_contents_is_refused(store, change, message):
    with np.load(episode_file(store, 0)) as arrays:
        contents = {name: array for name, array in {**arrays, **change}.items() if array is not None}
    np.savez(episode_file(store, 0), **contents)
    with pytest.raises(ValueError, match=r"000000\.npz: episode 0 cannot be used: .*" + message):
        store[0]


def test_a_missing_episode_is_named(store):
    episode_file(store, 1).unlink()
    with pytest.raises(ValueError, match=r"episode 1 \(episodes/000001\.npz\) is missing.*restore it"):
        Store.open(store.path)
    with pytest.raises(ValueError, match=r"episode 1 .* is missing"):
        store.append(make_episode(4))


def test_an_episode_file_outside_the_numbering_is_refused(store):
    episode_file(store, 2).rename(store.path / "episodes" / "000002 (copy).npz")
    with pytest.raises(ValueError, match=r"episode 2 .* is missing"):
        Store.open(store.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("task"), r"missing or unknown fields \['task'\]"),
        (lambda m: m.update(owner="x"), r"missing or unknown fields \['owner'\]"),
        (lambda m: m.pop("format_version"), r"format_version is None, this program reads 1"),
        (lambda m: m.update(format_version=2), r"format_version is 2, this program reads 1: update"),
        (lambda m: m["recipe"].update(noise=0.2), r"recipe_hash is not that of the recipe"),
        (lambda m: m.update(env=3), r"env is 3: expected a str"),
        (lambda m: m["features"]["action"].update(dtype="float99"), r"'action': feature dtype 'float99' is unknown"),
    ],
)
def test_damaged_meta_data_is_refused(store, change, message):
    edit_meta(store, change)
    with pytest.raises(ValueError, match=r"meta\.json: .*" + message):
        Store.open(store.path)


def test_meta_data_that_is_not_json_is_refused(store):
    file = store.path / "meta.json"
    for content in [b"", file.read_bytes()[:40], b"\xff\xfe"]:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"meta\.json is damaged"):
            Store.open(store.path)
    file.write_text("[]")
    with pytest.raises(ValueError, match=r"format_version is None"):
        Store.open(store.path)


def test_a_folder_without_a_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a store of demonstrations"):
        Store.open(tmp_path)


def test_meta_data_that_json_cannot_hold_is_refused(tmp_path):
    for recipe in [{"noise": float("nan")}, {"path": tmp_path}]:
        with pytest.raises(ValueError, match="must be plain JSON"):
            Store.create(tmp_path / "store", replace(META, recipe=recipe))
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_writer_are_ignored_and_cleaned(store):
    leftover = store.path / "episodes" / ".000003.npz.tmp-77"
    leftover.write_bytes(b"half an epi")
    assert len(Store.open(store.path)) == 3
    assert leftover.exists()  # reading changes nothing
    store.append(make_episode(3))
    assert not leftover.exists()
    assert Store.open(store.path).seeds == [0, 1, 2, 3]


def test_create_never_overwrites(store):
    with pytest.raises(FileExistsError, match=r"exists: use Store\.open"):
        Store.create(store.path, META)
    assert len(Store.open(store.path)) == 3
    (store.path.parent / "file").touch()
    with pytest.raises(FileExistsError, match="file exists"):
        Store.create(store.path.parent / "file", META)


def test_of_several_creators_at_once_one_succeeds(tmp_path):
    outcomes = []
    barrier = threading.Barrier(8)

    def create():
        barrier.wait()
        try:
            outcomes.append(Store.create(tmp_path / "deep" / "store", META))
        except FileExistsError:
            outcomes.append(None)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome is not None for outcome in outcomes].count(True) == 1
    assert len(outcomes) == 8
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["store"]


def test_a_second_writer_waits_and_then_continues_the_numbering(store):
    second = Store.open(store.path)
    thread = threading.Thread(target=second.append, args=(make_episode(11),))
    with store.writing():
        thread.start()
        time.sleep(0.2)
        store.append(make_episode(10))
        assert thread.is_alive()
    thread.join(timeout=10)
    assert Store.open(store.path).seeds == [0, 1, 2, 10, 11]
    assert (len(store), len(second)) == (4, 5)


def test_a_store_can_be_moved(store, tmp_path):
    before = store.hash()
    shutil.move(store.path, tmp_path / "elsewhere")
    assert Store.open(tmp_path / "elsewhere").hash() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control_dt_s": np.float32(0.05)}, r"control_dt_s is 0\.0500000007\d* s, but the features say 0\.05"),
        ({"control_dt_s": "0.05"}, r"control_dt_s is '0\.05'"),
        ({"control_dt_s": True}, r"control_dt_s is True"),
        ({"seed": 1.7}, r"seed is 1\.7"),
        ({"seed": 2**70}, r"seed is 1180591620717411303424"),
        ({"task": "go\0"}, r"task is 'go\\x00': its last character would be lost"),
        ({"task": "\ud800"}, r"task is '\\ud800'"),
        ({"reward": np.ma.masked_array(np.zeros(4, np.float32), np.eye(4)[3] == 1)}, r"reward is a MaskedArray"),
        ({"success": np.full(4, 3, np.uint8).view(bool)}, r"success holds bytes that are neither 0 nor 1"),
    ],
)
def test_what_would_be_written_otherwise_is_not_appended(store, change, message):
    with pytest.raises(ValueError, match=message):
        store.append(replace(make_episode(3), **change))
    assert len(Store.open(store.path)) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"seed": np.int64(7)},
        {"control_dt_s": np.float64(0.05)},
        {"task": np.str_("go")},
        {"success": np.zeros(8, bool)[::2]},
        {"reward": np.asfortranarray(np.arange(4, dtype=np.float32))},
    ],
)
def test_what_is_appended_is_what_is_read(store, change):
    episode = replace(make_episode(3), **change)
    store.append(episode)
    read = Store.open(store.path)[3]
    assert_bit_equal(read, episode)
    assert [type(value) for value in (read.seed, read.control_dt_s, read.task)] == [int, float, str]


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("action", {"dtype": "complex64"}, r"'action': feature dtype 'complex64' is unknown"),
        ("action", {"shape": [1, 1]}, r"expected a vector"),
        ("action", {"choices": [1]}, r"choices \(1,\) must be 1 integers"),
        ("action", {"unit": None}, r"feature unit is None, expected a string"),
        ("image", {"low": [[[0] * 3] * 2] * 2, "high": None}, r"a feature bound 'low' is \[\["),
        ("state", {"choices": [0, 2]}, r"'state' has choices"),
        ("state", {"kind": "action"}, r"'state' is of kind 'action'"),
    ],
)
def test_a_store_takes_only_features_that_training_takes(tmp_path, part, change, message):
    features = json.loads(json.dumps(FEATURES))
    (features["action"] if part == "action" else features["observation"][part]).update(change)
    with pytest.raises(ValueError, match=message):
        Store.create(tmp_path / "store", replace(META, features=features))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["joint.pos", "forward", "_hidden", "action"])
def test_a_store_takes_only_names_that_training_takes(tmp_path, name):
    features = FEATURES | {"observation": {name: FEATURES["observation"]["state"]}}
    with pytest.raises(ValueError, match=f"observation name '{name}' is reserved or no identifier"):
        Store.create(tmp_path / "store", replace(META, features=features))


def test_meta_data_is_checked_as_it_will_be_read(tmp_path):
    """Keys that JSON makes strings, which sort otherwise: the file would not be what its hash says."""
    with pytest.raises(ValueError, match="recipe_hash is not that of the recipe"):
        Store.create(tmp_path / "store", replace(META, recipe={9: "a", 10: "b"}))
    features = FEATURES | {"action": FEATURES["action"] | {"shape": (1,)}}
    assert Store.create(tmp_path / "store", replace(META, features=features)).meta.features == FEATURES


def test_appending_does_not_read_the_folder(store, monkeypatch):
    store.append(make_episode(3))
    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, lambda *_: pytest.fail("the folder was read"))
    store.append(make_episode(4))
    monkeypatch.undo()
    assert Store.open(store.path).seeds == [0, 1, 2, 3, 4]


def test_an_episode_of_another_writer_is_never_overwritten(store):
    """Even where the clock of the file system is too coarse to show that somebody wrote."""
    other = Store.open(store.path)
    store.append(make_episode(10))
    folder = store.path / "episodes"
    before = folder.stat()
    other.append(make_episode(11))
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    store.append(make_episode(12))
    assert Store.open(store.path).seeds == [0, 1, 2, 10, 11, 12]


def test_a_failed_write_leaves_nothing(store, monkeypatch):
    monkeypatch.setattr("flowhand.demos.archive.MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="more than the"):
        store.append(make_episode(3))
    assert len(list((store.path / "episodes").iterdir())) == 3
