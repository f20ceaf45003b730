"""Each form of a policy decides as it says, and is compared with the checkpoint on the seeds that both have run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from jaxtyping import config as annotations

import policies
from benchmarks import cells, precision
from benchmarks.precision import FORMS, PLAN, Cell
from flowhand.commands.export import of_checkpoint
from flowhand.deploy.runner import Runner
from policies.export import tracing

# The tracer cannot follow the checked annotations of the other heads.
SMALL = [
    "head=regression",
    "net.width=32",
    "net.blocks=1",
    "encoder.width=32",
    "data.episodes=2",
    "train.steps=3",
    "train.warmup_steps=1",
]


def keep(folder, cell, outcomes, error=None):
    told = {**vars(cell), "first_seed": 0, "n": len(outcomes), "outcomes": outcomes, "max_error": error}
    (folder / f"{cell.name}.json").write_text(json.dumps(told))


def test_a_form_is_compared_on_the_tasks_that_both_have_finished(tmp_path):
    keep(tmp_path, Cell("soccer", "eager"), "1101")
    keep(tmp_path, Cell("soccer", "onnx-int8"), "1010", 0.05)
    keep(tmp_path, Cell("stick-pull", "onnx-int8"), "1111", 0.9)  # with nothing to compare it with
    result = precision.summarize(tmp_path)
    eager, int8 = result["rows"]
    assert (eager["form"], eager["successes"], eager["against_eager"]["difference"]) == ("eager", 3, 0)
    assert (int8["form"], int8["tasks"], int8["successes"], int8["n"]) == ("onnx-int8", ["soccer"], 2, 4)
    assert int8["max_error"] == 0.05
    assert (int8["against_eager"]["a_only"], int8["against_eager"]["b_only"]) == (1, 2)
    assert int8["against_eager"]["difference"] == -0.25
    assert precision.table(result).splitlines()[1].startswith("all    onnx-int8      10 evaluations 2/4, -25.00 points")


def test_the_tasks_that_shaped_int8_are_told_from_those_that_did_not(tmp_path):
    for task, evaluations, outcomes in (("soccer", 10, "1100"), ("hand-insert", 10, "1111"), ("soccer", 4, "1000")):
        keep(tmp_path, Cell(task, "eager", evaluations), outcomes)
    rows = precision.summarize(tmp_path)["rows"]
    assert [(row["which"], row["evaluations"], row["tasks"], row["successes"]) for row in rows] == [
        ("all", 10, ["soccer", "hand-insert"], 6),
        ("all", 4, ["soccer"], 1),
        ("unseen", 10, ["hand-insert"], 4),
    ]


def test_nothing_finished_is_an_empty_table(tmp_path):
    assert precision.summarize(tmp_path)["rows"] == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    policy = cells.trained(folder, "reach", cells.configure(["env.task=reach-v3", *SMALL], 1))
    assert policy is not None
    return folder


SLOW = {"onnx-fp32", "onnx-int8"}  # that an export decides as its checkpoint: tests/deploy/test_export.py


@pytest.mark.parametrize(
    "form",
    [pytest.param(f, marks=[pytest.mark.slow] * (f in SLOW)) for f in FORMS if f != "compiled-bf16"],
)
def test_a_form_decides_nearly_as_the_checkpoint_does(form, trained, monkeypatch):
    """Compiling is tested in tests/policies/test_compiled.py."""
    monkeypatch.setattr(annotations, "jaxtyping_disable", True)  # the tracer follows every call, checks included
    monkeypatch.setattr(tracing, "NARROW", 4)  # the policy is small
    policy, golden, _ = of_checkpoint(trained / "reach")
    decides, error = precision.formed(policies.load(trained / "reach"), Cell("reach", form), trained)
    noise = golden.pop("noise").numpy()
    observation = {name.removeprefix("observation."): value.numpy() for name, value in golden.items()}
    spread = policy.action_normalizer.scale.numpy()
    off = (np.abs(decides.plan(observation, noise) - policy.plan(observation, noise)) / spread).max()
    assert isinstance(decides, Runner) == form.startswith("onnx")
    assert (error is None) == (form == "eager")
    bounds = {"eager": (0, 0), "onnx-fp32": (0, 1e-5), "onnx-int8": (1e-6, 0.5)}[form]
    assert bounds[0] <= off <= bounds[1]


def test_every_cell_has_its_own_name():
    assert len({cell.name for cell in PLAN}) == len(PLAN) == len(precision.TASKS) * (len(FORMS) + 2)
