"""Hostile stores: every file in one is refused in one line, and costs no more time and memory than it may."""

import io
import json
import os
import signal
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from flowhand.demos.archive import ALWAYS_ALLOWED, MOST_DIRECTORY, read_arrays
from flowhand.demos.native import Store
from tests.demos.test_store import META, edit_meta, episode_file, make_episode

GOLDEN = Path(__file__).parents[1] / "golden" / "store"  # written by the first version, the second file compressed
GOLDEN_HASH = "aaf827f72ea2c0ad94244faf032be575cde06f356f11fc94824e6bb95a8e0bfb"


@pytest.fixture
def store(tmp_path):
    store = Store.create(tmp_path / "store", META)
    store.append(make_episode(0))
    return store


@pytest.fixture(autouse=True)
def _no_waiting():
    """What waits for ever, as reading a pipe would, fails."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waited"))
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refusal(act) -> str:
    with pytest.raises(ValueError) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1000
    return text


def rewrite(store, change):
    """The episode's file with other members: `change` takes and gives a list of (name, bytes)."""
    file = episode_file(store, 0)
    with zipfile.ZipFile(file) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in change(members):
            with archive.open(zipfile.ZipInfo(name), "w") as member:
                member.write(content)


def test_a_store_of_the_first_version_is_read():
    store = Store.open(GOLDEN)
    assert store.hash() == GOLDEN_HASH
    assert store.seeds == [0, 1]
    for seed, episode in enumerate(store):
        np.testing.assert_array_equal(episode.action, make_episode(seed, 4 + seed).action)
        assert episode.action.flags.writeable


@pytest.mark.parametrize("name", ["meta.json", "episodes/000000.npz", "writer.lock"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_only_regular_files_are_opened(store, name, make):
    (store.path / name).unlink()
    make(store.path / name)
    text = refusal(lambda: (Store.open(store.path)[0], store.append(make_episode(1))))
    assert "no regular file" in text or "Is a directory" in text


def test_a_small_file_never_takes_much_memory(store):
    zeros = np.zeros((ALWAYS_ALLOWED, 1), np.float32)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("action", "other"):
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(zeros))
            with archive.open(f"{name}.npy", "w") as member:
                member.write(header.getvalue())
                for _ in range(64):
                    member.write(bytes(2**16))
    content = bytearray(file.getvalue())
    episode_file(store, 0).write_bytes(content)
    assert "has 4194304 bytes, expected those of float32 of shape" in refusal(lambda: store[0])
    at = content.rfind(
        b"PK\x01\x02"
    )  # the second array's entry in the table of contents says what the file will not hold
    content[at + 24 : at + 28] = struct.pack("<I", 2**31)
    episode_file(store, 0).write_bytes(content)
    assert f"more than the {ALWAYS_ALLOWED}" in refusal(lambda: store[0])
    content[at + 24 : at + 28] = struct.pack("<I", 200)  # it inflates to more than its entry says
    episode_file(store, 0).write_bytes(content)
    tracemalloc.start()
    refusal(lambda: read_arrays(episode_file(store, 0)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_meta_data_has_a_size(store):
    with (store.path / "meta.json").open("r+b") as file:
        file.truncate(2**40)  # sparse
    assert "more than 8388608 bytes" in refusal(lambda: Store.open(store.path))
    with episode_file(store, 0).open("r+b") as file:
        file.truncate(2**40)
    assert "does not end as an npz archive" in refusal(lambda: store[0])


def test_a_long_table_of_contents_is_not_read(store):
    file = episode_file(store, 0)
    content = bytearray(file.read_bytes())
    content[-10:-6] = struct.pack("<I", MOST_DIRECTORY + 1)
    file.write_bytes(content)
    assert f"table of contents has {MOST_DIRECTORY + 1} bytes" in refusal(lambda: store[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: [*m, ("action", m[0][1])], "'action' is no array"),
        (lambda m: [*m, ("../x.npy", m[0][1])], "missing or unknown arrays"),
        (lambda m: [(n, c.replace(b"NUMPY\x01", b"NUMPY\x07")) for n, c in m], "does not begin as an npy file"),
        (lambda m: [(n, c.replace(b"'<f4'", b"'|O8'")) for n, c in m], "which numpy does not write"),
        (lambda m: [(n, c.replace(b"'<f4'", b"'f,f'")) for n, c in m], "which numpy does not write"),
        (lambda m: [(n, c.replace(b"(4, ", b"(9, ")) for n, c in m], "expected those of"),
        (lambda m: [(n, c.replace(b"(4, ", b"(((")) for n, c in m], "which numpy does not write"),
        (lambda m: [(n, c[:9]) for n, c in m], "does not begin as an npy file"),
        (lambda m: [(n, c[:40]) for n, c in m], "does not begin as an npy file"),
        (lambda m: [(n, c[:-1] + b"\2" if n == "success.npy" else c) for n, c in m], "neither 0 nor 1"),
    ],
)
def test_a_tampered_archive_is_refused(store, change, message):
    rewrite(store, change)
    assert message in refusal(lambda: store[0])


def test_an_array_there_twice_is_refused(store):
    with pytest.warns(UserWarning, match="Duplicate name"):
        rewrite(store, lambda members: [*members, members[0]])
    assert "there twice" in refusal(lambda: store[0])


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(store, method):
    file = episode_file(store, 0)
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert f"has compression {method}" in refusal(lambda: store[0])


NESTED = json.loads("[" * 200 + "]" * 200)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["features"].update(control_dt_s=10**400), "control_dt_s is 1000"),
        (lambda m: m["features"].update(control_dt_s=True), "control_dt_s is True"),
        (lambda m: m["features"].update(control_dt_s="1"), "control_dt_s is '1'"),
        (lambda m: m["features"].update(observation=["state"]), "observation is ['state']"),
        (lambda m: m.update(features=[1]), "the specification has [1], expected fields"),
        (lambda m: m["features"].update(action=["shape"]), "'action': a feature is ['shape'], expected"),
        (lambda m: m["features"]["action"].update(shape="2"), "'action': feature shape is '2'"),
        (lambda m: m["features"]["action"].update(shape=[True]), "feature shape (True,) must be"),
        (lambda m: m["features"]["action"].update(shape=[1] * 60), "feature shape (1, 1, 1, 1"),
        (lambda m: m["features"]["action"].update(dtype=None), "feature dtype None is unknown"),
        (lambda m: m["features"]["action"].update(dtype=["f4", [10**9]]), "feature dtype ['f4'"),
        (lambda m: m["features"]["action"].update(dtype="(99999,99999)f4"), "feature dtype '(99999"),
        (lambda m: m["features"]["action"].update(low=["a"]), "bound 'low' is 'a', expected a number"),
        (lambda m: m["features"]["action"].update(low="a"), "feature low is 'a', expected a list"),
        (lambda m: m["features"]["action"].update(high=[10**400]), "bound 'high' is 1000"),
        (lambda m: m["features"]["action"].update(high={"0": 1}), "feature high is {'0': 1}, expected a list"),
        (lambda m: m.update(task=["go"]), "task is ['go']"),
        (lambda m: m.update(task="\ud800"), "surrogates not allowed"),
        (lambda m: m.update(recipe=NESTED), "lists and dicts lie inside each other"),
        (lambda m: m.update(recipe={"a": float("nan")}), "must be plain JSON"),
        (lambda m: m.update(format_version=True), "format_version is True"),
        (lambda m: m.update({"x" * 100_000: 1}), "missing or unknown fields"),
    ],
)
def test_hostile_meta_data_is_refused(store, change, message):
    edit_meta(store, change)
    text = refusal(lambda: Store.open(store.path))
    assert message in text
    assert str(store.path / "meta.json") in text


def test_deep_json_is_refused(store):
    (store.path / "meta.json").write_text("[" * 10**6)
    assert "is damaged" in refusal(lambda: Store.open(store.path))


def test_refusals_leave_no_open_files(store):
    rewrite(store, lambda members: members[1:])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        refusal(lambda: store[0])
    assert len(os.listdir("/proc/self/fd")) <= before
