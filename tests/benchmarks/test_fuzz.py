"""The fuzzer finds nothing in what is there, and finds what is put there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import fuzz, fuzz_wire
from deploy.server import PolicyServer
from deploy.session import Session

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("name", "cases"), [("request", 600), ("answer", 400)])
def test_nothing_is_found(name, cases):
    result = fuzz.fuzz(name, range(cases), seed=11)
    assert result["examples"] == []
    assert sum(result["outcomes"].values()) == cases
    assert min(result["outcomes"].get(kind, 0) for kind in ("taken", "refused")) > 0  # both sides are reached


@pytest.mark.slow
def test_the_program_says_what_it_did(tmp_path):  # of its own, for the annotations checked here change the errors
    targets = "checkpoint_config,checkpoint_tensors,manifest,model,overrides"
    words = ["--only", targets, "--scale", "0.02", "--out", str(tmp_path / "fuzz.json")]
    done = subprocess.run([sys.executable, "-m", "benchmarks.fuzz", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    result = json.loads((tmp_path / "fuzz.json").read_text())
    assert result["cases"] == 244
    assert [target["findings"] for target in result["targets"].values()] == [0, 0, 0, 0, 0]


def test_a_crash_and_a_chatty_error_are_found(monkeypatch):
    for error in (IndexError("no such index"), ValueError("one\ntwo"), ValueError("")):

        def read(self, request, error=error):
            raise error

        monkeypatch.setattr(Session, "read", read)
        result = fuzz.fuzz("request", range(200), seed=11)
        assert 0 < result["findings"] < 200


@pytest.mark.slow
def test_the_live_server_holds(monkeypatch):
    monkeypatch.setattr(fuzz_wire, "CROWD", 300)
    result = fuzz_wire.run(300, seed=11)
    assert result["examples"] == []
    assert result["good_client"]["failures"] == 0
    assert result["good_client"]["requests"] > 20
    assert result["outcomes"]["messages: invalid"] > 20
    assert result["outcomes"]["keys: 401"] > 5


def test_a_key_that_is_compared_letter_by_letter_would_show(monkeypatch):
    honest = fuzz_wire.key_timing(3000)
    assert 0.4 < honest["chance"] < 0.6

    def knows_key(self, request) -> bool:
        right = f"Api-Key {fuzz_wire.KEY}"
        return all(a == b for a, b in zip(request.get_all("Authorization")[0], right, strict=True))

    monkeypatch.setattr(PolicyServer, "_knows_key", knows_key)
    assert fuzz_wire.key_timing(1000)["chance"] > 0.8
