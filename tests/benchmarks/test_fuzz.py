"""The fuzzer finds nothing in what is there, and finds what is put there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fuzz, fuzz_onnx, fuzz_wire
from flowhand.deploy.server.server import PolicyServer
from flowhand.deploy.server.session import Session

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "cases", "ends"),
    [
        ("request", 600, ("taken", "refused")),
        ("answer", 400, ("taken", "refused")),
        ("store", 400, ("taken", "refused")),
        ("journal", 300, ("read, replayed", "read, another decision", "read in part, another decision", "refused")),
        ("onnx", 400, ("taken, and run", "taken, and refused by the runtime", "refused")),
        ("train_state", 200, ("taken", "refused", "not read")),
    ],
)
def test_nothing_is_found(name, cases, ends):
    result = fuzz.fuzz(name, range(cases), seed=11)
    assert result["examples"] == []
    assert sum(result["outcomes"].values()) == cases
    assert min(result["outcomes"].get(end, 0) for end in ends) > 0  # all ends are reached


@pytest.mark.slow
def test_the_program_says_what_it_did(tmp_path):  # of its own, for the annotations checked here change the errors
    targets = "checkpoint_config,checkpoint_tensors,manifest,model,monitor,overrides"
    words = ["--only", targets, "--scale", "0.02", "--out", str(tmp_path / "fuzz.json")]
    done = subprocess.run([sys.executable, "-m", "benchmarks.fuzz", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    result = json.loads((tmp_path / "fuzz.json").read_text())
    assert result["cases"] == 340
    assert [target["findings"] for target in result["targets"].values()] == [0] * 6


def test_the_document_says_how_much_is_run():
    counts = {name: count for name, (_, count) in fuzz.TARGETS.items()}
    messages = counts.pop("request") + counts.pop("answer")
    page = " ".join((ROOT / "docs" / "deploy_reference.md").read_text().split())
    assert f"gives {messages:,} hostile messages" in page
    assert f"and {sum(counts.values()):,} hostile files and command lines" in page
    assert f"then {fuzz_wire.CASES:,} hostile peers, and {fuzz_wire.CROWD:,} connections at once" in page


def test_a_crash_and_a_chatty_error_are_found(monkeypatch):
    for error in (IndexError("no such index"), ValueError("one\ntwo"), ValueError("")):

        def read(self, request, error=error):
            raise error

        monkeypatch.setattr(Session, "read", read)
        result = fuzz.fuzz("request", range(200), seed=11)
        assert 0 < result["findings"] < 200


def test_an_inspection_that_looks_away_and_a_runtime_that_opens_files_are_found(monkeypatch, tmp_path):
    monkeypatch.setattr(fuzz_onnx, "require_self_contained", lambda data: None)
    examples = fuzz.fuzz("onnx", range(200), seed=11)["examples"]
    assert any("the official parser writes other bytes" in example for example in examples)
    (tmp_path / "file").write_bytes(b"1")
    touched = fuzz_onnx.watch(tmp_path / "file")
    assert not touched()
    (tmp_path / "file").read_bytes()
    assert touched()
    assert not touched()


@pytest.mark.parametrize("leaves", [True, False])
def test_memory_that_is_left_behind_or_taken_for_a_moment_is_found(monkeypatch, leaves):
    kept, calls = [], []

    def read(self, request):
        calls.append(request)
        if len(calls) == 30:  # of 53
            taken = np.ones(2**23)  # 64 MiB, which no allocator has lying about
            kept.extend([taken] if leaves else [])
        raise ValueError("refused")

    monkeypatch.setattr(Session, "read", read)
    result = fuzz.fuzz("request", range(200), seed=11)
    assert result["findings"] == 1
    assert "memory grew by" in result["examples"][0]


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
    assert fuzz_wire.key_findings(honest) == []

    def knows_key(self, request) -> bool:
        right = f"Api-Key {fuzz_wire.KEY}"
        return all(a == b for a, b in zip(request.get_all("Authorization")[0], right, strict=True))

    monkeypatch.setattr(PolicyServer, "_key_number", knows_key)
    (finding,) = fuzz_wire.key_findings(fuzz_wire.key_timing(1000))
    assert "tells how much of it is right" in finding
    assert fuzz_wire.key_findings({"chance": 0.52, "p": 0.0}) == []  # sure, and too small to be heard
    assert fuzz_wire.key_findings({"chance": 0.6, "p": 0.01}) == []  # of too few rounds
    assert len(fuzz_wire.key_findings({"chance": 0.44, "p": 0.0})) == 1
