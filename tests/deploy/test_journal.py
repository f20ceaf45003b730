"""The journal: what was written is read, whatever ended the writer; a replay finds every difference."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from flowhand.contracts.features import Feature, Spec
from flowhand.control.journal import FIELDS, MAGIC, Journal, observation_of, read
from flowhand.control.limits.config import SafetyConfig
from flowhand.control.replay import open_journal, replay
from flowhand.control.runtime import REASONS
from flowhand.control.safety import CLAMPS, Safety

ROOT = Path(__file__).parents[2]
SPEC = Spec(
    {"state": Feature((3,), "float32", "m"), "image": Feature((2, 2, 1), "uint8", "")},
    Feature((2,), "float32", "", (-1.0, -1.0), (1.0, 1.0)),
    0.05,
)


def values(step: int) -> dict:
    return {
        "step": step,
        "seed": 2**32 - 1,
        "asked": True,
        "due_ns": 50_000_000 * step,
        "observation.state": np.array([step, -0.0, 1e-45], np.float32),
        "observation.image": np.full((2, 2, 1), 255, np.uint8),
        "action": np.array([step, math.pi]),
        "safe": np.array([step, 1.0]) if step else None,
        "start": None,
        "refused": REASONS.index("alarm") if step == 2 else 0,
    }


def write(path: Path, steps: int = 4) -> Journal:
    journal = open_journal(path, SPEC, {"note": "a test"})
    for step in range(steps):
        journal.append(values(step), {"velocity": (0, 1), "bounds": (1,)} if step == 3 else {}, f"step {step}")
    return journal


def test_what_was_written_is_read(tmp_path):
    write(tmp_path / "deep" / "journal").close()
    recording = read(tmp_path / "deep" / "journal")
    assert recording.header["note"] == "a test"
    assert Spec.from_dict(recording.header["spec"]) == SPEC
    assert (recording.header["refusals"], recording.header["clamps"]) == (list(REASONS), list(CLAMPS))
    assert (len(recording.records), recording.lost_bytes) == (4, 0)
    for step, record in enumerate(recording.records):
        for name, value in values(step).items():
            if value is not None:
                assert record[name].tobytes() == np.asarray(value, record[name].dtype).tobytes()
        assert (record["acted"], record["told"], record["started"]) == (1, step > 0, 0)
        assert record["message"] == f"step {step}".encode()
        assert observation_of(record).keys() == {"state", "image"}
        assert observation_of(record)["state"].tobytes() == values(step)["observation.state"].tobytes()
    bits = [[CLAMPS[i] for i in range(len(CLAMPS)) if bits >> i & 1] for bits in recording.records[3]["clamps"]]
    assert bits == [["velocity"], ["bounds", "velocity"]]


def test_a_journal_can_be_read_without_flowhand(tmp_path):
    """The documented layout, in five lines."""
    write(tmp_path / "journal").close()
    data = (tmp_path / "journal").read_bytes()
    length = int.from_bytes(data[8:12], "little")
    header = json.loads(data[12 : 12 + length])
    kind = np.dtype([(name, form, tuple(shape)) for name, form, shape in header["record"]])
    records = np.frombuffer(data[12 + length :], kind)
    assert records["action"][:, 0].tolist() == [0, 1, 2, 3]
    assert [name for name, _, _ in header["record"]][: len(FIELDS)] == [name for name, _ in FIELDS]


@pytest.mark.parametrize("cut", [1, 100, 3])
def test_what_is_cut_off_costs_one_record(tmp_path, cut):
    write(tmp_path / "journal").close()
    data = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(data[:-cut])
    recording = read(tmp_path / "journal")
    size = recording.records.dtype.itemsize
    assert recording.records["step"].tolist() == [0, 1, 2]
    assert recording.lost_bytes == size - cut


def test_reading_stops_before_a_damaged_record(tmp_path):
    write(tmp_path / "journal").close()
    data = bytearray((tmp_path / "journal").read_bytes())
    size = read(tmp_path / "journal").records.dtype.itemsize
    for place in (len(data) - 3 * size, len(data) - 2 * size - 1):  # first byte and last byte of record 1
        damaged = bytearray(data)
        damaged[place] ^= 1
        (tmp_path / "journal").write_bytes(damaged)
        recording = read(tmp_path / "journal")
        assert recording.records["step"].tolist() == [0]
        assert recording.lost_bytes == 3 * size


def with_header(header: bytes) -> bytes:
    return MAGIC + len(header).to_bytes(4, "little") + header


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "is no journal of a run, or is cut off in its header"),
        (lambda data: b"x" + data[1:], "is no journal of a run"),
        (lambda data: data[:100], "is cut off in its header"),
        (lambda data: MAGIC + b"\xff" * 4 + data[12:], "is no journal of a run"),
        (lambda data: data.replace(b'{"format_version"', b'["format_version"'), "has a damaged header"),
        (lambda data: data.replace(b'"format_version": 1', b'"format_version": 9'), "has format version 9"),
        (lambda data: data.replace(b'["crc", "<u4"', b'["crc", "|O8"'), "has a damaged header"),
        (lambda data: data.replace(b'"<f8"', b'"|O8"'), "has a damaged header"),
        (lambda data: data.replace(b'"<f8"', b'"f4,"'), "has a damaged header (the field 'observation_age_s' has the"),
        (lambda data: data.replace(b'["crc", "<u4", []]', b'["crc", "<u4", 22]'), "has a damaged header"),
        (
            lambda data: data.replace(b'["crc", "<u4", []]', b'["crc", "<u4",[2]]'),
            "that end in [('crc', '<u4', (2,))])",
        ),
        (
            lambda data: with_header(b'{"format_version": 1, "record": []}'),
            "has a damaged header ('refusals')",
        ),
        (lambda data: with_header(b"[" * 100_000), "has a damaged header"),
    ],
)
def test_what_is_no_journal_is_an_error(tmp_path, change, message):
    write(tmp_path / "journal").close()
    (tmp_path / "journal").write_bytes(change((tmp_path / "journal").read_bytes()))
    with pytest.raises(ValueError, match=re.escape(message)):
        read(tmp_path / "journal")


def test_a_journal_is_never_overwritten(tmp_path):
    write(tmp_path / "journal").close()
    with pytest.raises(ValueError, match="exists already; give another name, or move it"):
        write(tmp_path / "journal")


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    journal = write(tmp_path / "journal")
    monkeypatch.setattr(os, "write", lambda file, data: len(data) - 1)
    with pytest.raises(OSError, match="the disk is full"):
        journal.append(values(4), {}, "")


@pytest.mark.parametrize("place", ["file/journal", "folder", "/proc/flowhand/journal", "x" * 300])
def test_a_place_where_nothing_can_be_written_is_told_in_one_line(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"^journal \S+ (cannot be written \(.+\)|exists already); give") as told:
        write(tmp_path / place)
    assert "\n" not in str(told.value)


def test_a_journal_that_finds_no_room_for_its_header_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", lambda file, data: len(data) - 1)
    with pytest.raises(ValueError, match=r"cannot be written \(.*the disk is full\); give the name of a file"):
        write(tmp_path / "journal")
    assert not (tmp_path / "journal").exists()


def test_a_record_for_which_there_is_no_room_leaves_whole_ones(tmp_path):
    """A real limit of the system on the file's size, a third of a record short."""
    journal = write(tmp_path / "journal")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = os.path.getsize(tmp_path / "journal") + journal.size - journal.size // 3
    caught = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        with pytest.raises(OSError, match=r"the disk is full|too large"):
            journal.append(values(4), {}, "")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, caught)
    assert read(tmp_path / "journal").lost_bytes == 0
    journal.append(values(4), {}, "")
    journal.close()
    assert read(tmp_path / "journal").records["step"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device", "below a file"])
def test_what_is_no_file_is_told_in_one_line(tmp_path, kind):
    path = {"device": Path("/dev/zero"), "below a file": tmp_path / "file" / "journal"}.get(kind, tmp_path / "journal")
    (tmp_path / "file").write_text("")
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(ValueError, match=r"(is no file|cannot be read \(.+\)); give the journal of a run$"):
        read(path)


def test_a_file_without_end_is_read_as_far_as_it_is_a_journal(tmp_path):
    """Ten GiB of nothing behind four records, and none of it in memory."""
    write(tmp_path / "journal").close()
    size = os.path.getsize(tmp_path / "journal")
    os.truncate(tmp_path / "journal", size + 10 * 2**30)
    recording = read(tmp_path / "journal")
    assert (len(recording.records), recording.lost_bytes) == (4, 10 * 2**30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.replace(b'"late", "u1"', b'"latf", "u1"'), "the journal's field 'late' is missing"),
        (
            lambda data: data.replace(b'["action", "<f8", [2]]', b'["action", "<f4", [4]]'),
            "'action' is .* <f8",
        ),
        (lambda data: data.replace(b'"clamps": [', b'"clamps": [], "c": ['), "the journal names no clamps"),
        (
            lambda data: data.replace(b'"refusals": [', b'"refusals": [], "r": ['),
            r"has the refusal \d+, and names only 0",
        ),
    ],
)
def test_a_journal_of_another_layout_is_not_replayed(tmp_path, change, message):
    record_run(tmp_path / "journal", CONFIG)
    data = (tmp_path / "journal").read_bytes()
    length = int.from_bytes(data[8:12], "little")
    header = change(data[12 : 12 + length])
    assert header != data[12 : 12 + length]
    (tmp_path / "journal").write_bytes(with_header(header) + data[12 + length :])
    with pytest.raises(ValueError, match=message):
        replay(read(tmp_path / "journal"), Double(), Safety.for_spec(SPEC, CONFIG))


def test_a_message_is_cut_to_what_fits(tmp_path):
    journal = open_journal(tmp_path / "journal", SPEC, {})
    journal.append({}, {}, "ä" * 500)
    journal.close()
    journal.close()  # nothing happens
    assert read(tmp_path / "journal").records["message"][0].decode() == "ä" * 80


KILLED = """
import sys, numpy as np
sys.path[:0] = [{root!r}, {tests!r}]
import test_journal
journal = test_journal.open_journal({path!r}, test_journal.SPEC, dict())
step = 0
while True:
    journal.append(test_journal.values(step), dict(), "")
    step += 1
    if step == 200:
        print("many", flush=True)
"""


def test_a_killed_writer_leaves_every_record_that_was_over(tmp_path):
    path = tmp_path / "journal"
    code = KILLED.format(root=str(ROOT), tests=str(Path(__file__).parent), path=str(path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "many\n"
        process.send_signal(signal.SIGKILL)
    recording = read(path)
    assert len(recording.records) >= 200
    assert recording.records["step"].tolist() == list(range(len(recording.records)))
    assert recording.lost_bytes < recording.records.dtype.itemsize


class Double:
    """The policy of the journals below."""

    def reset(self, *, seed):
        self.seed = seed

    def step(self, observation):
        return np.float32(0.1) * observation["state"][:2] + np.float32(self.seed)


def record_run(path: Path, config: SafetyConfig) -> None:
    journal, safety, policy = open_journal(path, SPEC, {}), Safety.for_spec(SPEC, config), Double()
    policy.reset(seed=0)
    random = np.random.default_rng(0)
    for step in range(30):
        observation = {"state": random.normal(0, 9, 3).astype(np.float32), "image": np.zeros((2, 2, 1), np.uint8)}
        action = policy.step(observation)
        verdict = safety.step(action, observation, chunk_start=step % 4 == 0) if step % 9 else safety.refuse("alarm")
        entry = {"step": step, "asked": 1, "observed_ns": 1, "action": action, "safe": verdict.action, "sent": 1}
        entry |= {f"observation.{name}": value for name, value in observation.items()}
        entry |= {"chunk_start": step % 4 == 0, "refused": REASONS.index(verdict.refused), "restarted": step == 0}
        journal.append(entry, verdict.clamps, "")
    journal.close()


CONFIG = SafetyConfig(velocity=[3.0], acceleration=[40.0], chunk_jump=[0.1])


def test_a_replay_of_what_happened_is_equal(tmp_path):
    record_run(tmp_path / "journal", CONFIG)
    done = replay(read(tmp_path / "journal"), Double(), Safety.for_spec(SPEC, CONFIG))
    assert (done.steps, done.actions, done.commands, done.lost_bytes) == (
        30,
        30,
        29,
        0,
    )  # the first had nothing to hold
    assert done.line().startswith("30 actions of the policy and 29 commands of safety in 30 steps are equal")


@pytest.mark.parametrize(
    ("field", "what"),
    [("action", "action"), ("safe", "command"), ("observation.state", "action"), ("clamps", "clamps")],
)
def test_one_changed_bit_is_found(tmp_path, field, what):
    path = tmp_path / "journal"
    record_run(path, CONFIG)
    recording = read(path)
    records = recording.records.copy()
    raw = records[field][13].view(np.uint8)
    raw[0 if field == "clamps" else 2] ^= 1
    for record in records:
        record["crc"] = zlib.crc32(record.tobytes()[:-4])
    path.write_bytes(path.read_bytes()[: -records.nbytes] + records.tobytes())
    with pytest.raises(ValueError, match=f"episode 0, step 13: the {what} was .*, and now it is"):
        replay(read(path), Double(), Safety.for_spec(SPEC, CONFIG))


@pytest.mark.parametrize("change", [{"velocity": [3.1]}, {"chunk_jump": None}, {"safe_action": "zero"}])
def test_other_limits_are_found(tmp_path, change):
    record_run(tmp_path / "journal", CONFIG)
    other = SafetyConfig(**{**vars(CONFIG), **change})
    with pytest.raises(ValueError, match=r"episode 0, step \d+: the (command|clamps) was"):
        replay(read(tmp_path / "journal"), Double(), Safety.for_spec(SPEC, other))
