"""The GPU kit: what it wants, how it goes on, and a whole dry run on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import kit, steps

ROOT = Path(__file__).parents[2]


def step(folder: Path, body: str) -> list[str]:
    """A command that is a step of its own."""
    program = folder / "step.py"
    program.write_text("import json, pathlib, sys, time\nfile = pathlib.Path(sys.argv[-1])\n" + body)
    return [sys.executable, str(program)]


@pytest.mark.parametrize(
    ("body", "limit_s", "status"),
    [
        ("file.write_text('{\"a\": 1}')", 60.0, "finished"),
        ("file.write_text('{\"a\": 1}'); sys.exit(3)", 60.0, "failed with exit status 3"),
        ("file.write_text('{\"a\": 1}'); time.sleep(100)", 2.0, "stopped after its limit of 2 s"),
    ],
)
def test_a_step_keeps_what_it_found_however_it_ends(tmp_path, body, limit_s, status):
    file = tmp_path / "found.json"
    found = kit.run_step(step(tmp_path, body), file, limit_s)
    assert found["status"] == status
    assert json.loads(file.read_text()) == found
    assert found["a"] == 1


def test_a_finished_step_is_not_run_again_and_another_is(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(
        kit, "run_step", lambda command, *_: ran.append(command[3]) or {"status": "finished", "seconds": 0}
    )
    kit.store(tmp_path / "machine.json", {"status": "finished"})
    kit.store(tmp_path / "parity.json", {"status": "stopped after its limit of 2 s", "all_within": True})
    monkeypatch.setattr(sys, "argv", ["kit", "--out", str(tmp_path), "--only", "machine", "parity"])
    with pytest.raises(SystemExit) as ended:
        kit.main()
    assert (ran, ended.value.code) == (["parity"], 0)
    monkeypatch.setattr(sys, "argv", ["kit", "--out", str(tmp_path), "--only", "tests", "--seconds", "5"])
    with pytest.raises(SystemExit) as ended:
        kit.main()
    assert (ran, ended.value.code) == (["parity"], 1)
    assert kit.load(tmp_path / "summary.json")["steps"] == {"tests": "not begun, the time is over"}


@pytest.mark.parametrize("good", [True, False])
def test_what_is_wanted_is_judged(tmp_path, good):
    one = {
        "captured-fp32": {"p99_ms": 1.5},
        "captured-bf16": {"p99_ms": 0.9 if good else 1.1},
        "eager-fp32": {"p99_ms": 0.1},
    }
    many = {"captured-bf16": {"p99_ms": 9.0, "share_of_matmul_rate": 0.41 if good else 0.39}}
    cells = {"transformer-20m 1": {"programs": one}, "transformer-20m 4096": {"programs": many}}
    assert {found["met"] for found in kit.judge(tmp_path).values()} == {None}
    kit.store(tmp_path / "decisions.json", {"cells": cells})
    kit.store(tmp_path / "training.json", {"captured_step": {"over_matmul_time": 2.9 if good else 3.1}})
    kit.store(tmp_path / "parity.json", {"all_within": good})
    kit.store(tmp_path / "tests.json", {"failures": 0 if good else 1})
    kit.store(tmp_path / "processes.json", {"weights_differ_by": {"flow": 1e-7, "mip": 1e-7 if good else 1e-3}})
    assert [found["met"] for found in kit.judge(tmp_path).values()] == [good] * 6


def test_the_wanted_net_has_20_million_parameters():
    policy = steps.random_policy([*steps.FLOW_10, *steps.LARGE_NET])
    assert 19e6 < sum(p.numel() for p in policy.parameters()) < 21e6
    assert policy.head.evaluations == 10


def test_draws_are_the_cpu_s_whatever_computes():
    def drawn() -> list[torch.Tensor]:
        draw = torch.Generator().manual_seed(3)
        on = {"generator": draw, "device": torch.device("cpu")}
        return [torch.randn(4, **on), torch.rand(4, **on), torch.randint(9, (4,), **on), torch.randperm(9, **on)]

    expected = drawn()
    with steps.DrawnOnCpu():
        for value, same in zip(drawn(), expected, strict=True):
            assert torch.equal(value, same)
        there = torch.randn(4, generator=torch.Generator().manual_seed(3), device="meta")  # elsewhere, as to a GPU
    assert there.device.type == "meta"


def test_a_weight_that_differs_shows_in_the_comparison(monkeypatch):
    policy = steps.random_policy([*steps.FLOW_10, *steps.TINY])
    assert steps.compared(policy, torch.device("cpu"))["sample_differs_by"] == 0
    other = steps.copy.deepcopy(policy)
    other.net.outlet.weight.mul_(1.01)
    monkeypatch.setattr(steps, "copy", SimpleNamespace(deepcopy=lambda policy: other))
    found = steps.compared(policy, torch.device("cpu"))
    assert found["loss_differs_by"] > steps.LOSS_WITHIN
    assert found["sample_differs_by"] > steps.SAMPLE_WITHIN


@pytest.mark.slow
def test_a_dry_run_on_the_cpu(tmp_path):
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable}
    command = ["benchmarks/gpu/run.sh", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    found = {name: kit.load(tmp_path / "gpu" / f"{name}.json") for name in kit.LIMITS_S}
    assert {name: each.get("status") for name, each in found.items()} == dict.fromkeys(kit.LIMITS_S, "finished"), (
        done.stdout + done.stderr
    )
    assert done.returncode == 0
    assert len(list((tmp_path / "gpu").iterdir())) <= 10
    assert set(found["decisions"]["cells"]) == {"mlp 1", "mlp 4"}
    assert set(found["training"]["cells"]) == {"eager 8", "compiled 8"}
    assert found["parity"]["all_within"]
    assert found["task"]["runs"]["detour"]["wall_s"] > 0
    assert [each["task"] for each in found["many_tasks"]["metrics"]["tasks"]] == ["left", "right"]
    assert set(found["tests"]["count"]) == ({"passed"} if torch.cuda.is_available() else {"skipped"})
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert again.stdout.count("finished earlier") == len(kit.LIMITS_S)
