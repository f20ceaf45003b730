"""The benchmark of the data path: its sets, its arithmetic, its own side; the large set under its limit."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import data, data_large
from flowhand.demos.formats import open_dataset


@pytest.mark.slow
def test_our_side_counts_what_it_draws(tmp_path):
    path = data.made(tmp_path / "set", 3, 20)
    peer, opened, memory = data.ours(path, tmp_path / "cache", tmp_path / "log", ["data.memory_gb=0"])
    assert (opened["windows"], opened["kind"]) == (60, "Stream")
    assert 0 < memory[0] < memory[1]
    answer = peer.ask("measure", seconds=0, least=3)
    peer.close()
    assert answer["windows"] == 3 * 256
    assert data.rate({"windows": 10, "seconds": 4}) == 2.5


def test_memory_is_that_of_children_too():
    code = (
        "import subprocess, sys; held = bytearray(100 * 10**6); subprocess.run([sys.executable, '-c', '"
        + ('held = bytearray(100 * 10**6); print("there", flush=True); input()')
        + "'])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        with data.peak_memory(process.pid) as found:
            assert 200 < data.memory_mb(process.pid) < 300
        process.communicate(b"\n")
    assert found["peak_mb"] > 200
    assert data.memory_mb(process.pid) == 0


def test_a_first_pass_counts_the_decoding():
    found = {"lerobot": {"windows_per_s": 50}, "ours": {"ready_s": 9, "windows": 1000, "windows_per_s": 1000}}
    assert data.first_pass(found, "ours") == {"windows_per_s": 100, "ratio": 2}


def test_the_large_set_is_links_to_one_video(tmp_path, monkeypatch):
    monkeypatch.setattr(data_large, "STEPS", 12)
    monkeypatch.setattr(data_large, "SIZE", (64, 96))
    path, count = data_large.made(tmp_path / "set", 4e5)
    recorded = open_dataset(path)
    videos = list((path / "videos").rglob("*.mp4"))
    assert len(recorded) == len(videos) == count > 3
    assert {os.stat(file).st_ino for file in videos} == {os.stat(videos[0]).st_ino}
    np.testing.assert_array_equal(recorded.read(1).observation["front"], recorded.read(3).observation["front"])


@pytest.mark.slow
def test_200_gb_open_from_their_metadata_and_train_in_2_gb(tmp_path):
    found = data_large.measure(tmp_path)
    assert found["videos_gb"] >= 200
    assert found["on_the_fly"]
    assert found["rss_anon_peak_mb"] < 2000
