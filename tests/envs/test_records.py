"""Records survive the disk, bad lines are named, and the interval is Wilson's."""

import dataclasses
import math

import numpy as np
import pytest

from flowhand.evaluation.records import EpisodeRecord, RecordWriter, read_records, write_records
from flowhand.evaluation.statistics import summarize, wilson


def record(seed: int = 0, success: bool = True, final: bool = True) -> EpisodeRecord:
    first, failure = (7, "") if success else (None, "time limit")
    return EpisodeRecord("reach-v3", seed, success, success and final, failure, "", first, 9, 1.5, 0.25)


def test_records_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "new folder" / "records.jsonl"
    records = [record(0), record(1, success=False), record(2, final=False)]
    write_records(path, records[:1])
    write_records(path, records[1:])
    assert read_records(path) == records


def test_each_record_is_on_disk_before_the_writer_is_closed(tmp_path):
    path = tmp_path / "records.jsonl"
    with RecordWriter(path) as writer:
        for seed in range(3):
            writer.write(record(seed))
            assert len(path.read_bytes().splitlines()) == seed + 1


def corrupt(line: str, old: str, new: str) -> str:
    assert old in line
    return line.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"seed": 0', '"seed": "0"', "seed is '0', expected int"),
        ('"seed": 0', '"seed": true', "seed is True, expected int"),
        ('"success": true', '"success": 1', "success is 1, expected bool"),
        ('"steps": 9', '"steps": 9.0', "steps is 9.0, expected int"),
        ('"steps": 9, ', "", "expected an object with exactly the keys"),
        ('"steps": 9', '"steps": 9, "extra": 1', "expected an object with exactly the keys"),
        ('"first_success_step": 7', '"first_success_step": null', "contradict each other"),
        ('"first_success_step": 7', '"first_success_step": 10', "expected 1 to steps=9"),
        ('"return_": 1.5', '"return_": NaN', "must be finite"),
        ("}", "", "not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, old, new, message):
    path = tmp_path / "records.jsonl"
    write_records(path, [record(0), record(0)])
    good, bad = path.read_text().splitlines()
    path.write_text(f"{good}\n{corrupt(bad, old, new)}\n")
    with pytest.raises(ValueError, match=f"records.jsonl, line 2: .*{message}"):
        read_records(path)


def test_a_record_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_records(tmp_path / "records.jsonl", [dataclasses.replace(record(), return_=math.nan)])


@pytest.mark.parametrize(
    "change",
    [
        {"seed": np.int64(3)},
        {"success": np.True_},
        {"final_success": 1},
        {"first_success_step": 7.0},
        {"steps": True},
        {"return_": np.float32(1)},
        {"failure": None},
        {"first_success_step": 10},
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path, change):
    path = tmp_path / "records.jsonl"
    with RecordWriter(path) as writer:
        with pytest.raises(ValueError, match="the record of seed"):
            writer.write(dataclasses.replace(record(), **change))
        writer.write(record(1))
    assert read_records(path) == [record(1)]


def test_a_record_from_before_began_unsolved(tmp_path):
    path = tmp_path / "records.jsonl"
    write_records(path, [record(0)])
    path.write_text(corrupt(path.read_text(), ', "solved_before": false', ""))
    assert read_records(path) == [record(0)]
    assert summarize([record(0), dataclasses.replace(record(1), solved_before=True)]).solved_before == 1


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (37, 50), (1, 1)])
def test_the_bounds_solve_wilsons_equation(successes, n):
    # Wilson's bounds are the rates p at which the observed rate lies z standard errors of p away.
    z, rate = 1.959963984540054, successes / n
    for bound in wilson(successes, n):
        assert abs(rate - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-9)


def test_any_time_and_final_success_are_counted_apart():
    summary = summarize([record(0), record(1, final=False), record(2, success=False), record(3)])
    assert (summary.n, summary.successes, summary.final_successes) == (4, 3, 2)
    assert (summary.rate, summary.final_rate) == (0.75, 0.5)
    assert (summary.wilson_low, summary.wilson_high) == wilson(3, 4)
    assert (summary.final_wilson_low, summary.final_wilson_high) == wilson(2, 4)


def test_a_wider_confidence_gives_a_wider_interval():
    narrow, wide = summarize([record()] * 5, confidence=0.9), summarize([record()] * 5, confidence=0.99)
    assert wide.wilson_low < narrow.wilson_low


def test_no_records_no_rate():
    with pytest.raises(ValueError, match="no episode records"):
        summarize([])
