"""The hostile data sets of `benchmarks/fuzz_readers.py`, some of each format; and that a fault would be found."""

from __future__ import annotations

import logging

import pytest

from benchmarks import fuzz_readers
from flowhand.demos.reader import Reader


@pytest.fixture
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", fuzz_readers.SHARES)
def test_hostile_sets_are_refused_or_read(tmp_path, quiet, name):
    cases = fuzz_readers.Fuzz(name, tmp_path, seed=1)
    ended = [cases.case(number) for number in range(25)]
    assert set(ended) <= {"read", "read in part", "refused"}
    assert "refused" in ended


def test_a_crash_and_a_file_outside_are_found(tmp_path, quiet, monkeypatch):
    cases = fuzz_readers.Fuzz("zarr", tmp_path, seed=1)
    monkeypatch.setattr(
        fuzz_readers, "open_dataset", lambda path: (tmp_path / fuzz_readers.SECRET).read_bytes() and 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        cases.case(0)

    def outside(path):
        (tmp_path / fuzz_readers.SECRET).read_bytes()
        raise ValueError("refused")

    monkeypatch.setattr(fuzz_readers, "open_dataset", outside)
    with pytest.raises(AssertionError, match="a file outside the data set was opened"):
        cases.case(0)


def test_what_is_not_finite_is_found(tmp_path, quiet, monkeypatch):
    cases, read = fuzz_readers.Fuzz("lerobot2", tmp_path, seed=1), Reader.read

    def spoilt(self, *arguments):
        episode = read(self, *arguments)
        episode.action[0] = float("nan")
        return episode

    monkeypatch.setattr(Reader, "read", spoilt)
    with pytest.raises(ValueError, match="action is nan at step 0"):
        [cases.case(number) for number in range(25)]
