"""What ranks.py and memory.py make of what they measure, beside numbers worked out by hand."""

import json

import pytest

from benchmarks import memory, ranks


def test_bytes_for_rows_are_linear_in_width_and_blocks():
    law = memory.Law("mlp", bf16=False)
    assert law(96, 3) == pytest.approx(memory.kept_bytes("mlp", 96, 3, False), rel=1e-6)


def test_what_a_training_needs_is_its_weights_and_its_rows():
    law, count = memory.Law("mlp", bf16=True), memory.weights("mlp", 128, 2)
    assert count == sum(p.numel() for p in memory.policy_of("mlp", 128, 2).parameters())
    assert memory.need(law, 128, 2, 10, shared=True) == pytest.approx(26 * count + 10 * law(128, 2))
    found = memory.largest(law, 1e9, 256, shared=False)
    wider = memory.need(law, found["width"] + 64, found["blocks"] + 1, 256, shared=False)
    assert memory.need(law, found["width"], found["blocks"], 256, shared=False) <= 0.9e9 < wider


def test_the_figures_that_are_wanted(tmp_path):
    def cell(name, /, **content):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))

    cell("weights-flow-fp32", precision="fp32", differs=3e-7)
    cell("weights-mip-fp32", precision="fp32", differs=2e-7)
    cell("weights-flow-bf16", precision="bf16", differs=1e-3)
    median = {"linked": 90.0, "whole batch each": 100.0, "half the batch each": 120.0}
    cell("speed-mlp", name="mlp", median=median, checkpoint_s={"linked": [3.0, 2.2], "alone": [2.0, 2.5]})
    cell("kill-00", same_as_unkilled=True)
    cell("kill-01", same_as_unkilled=False)
    cell("kill-none", step=3)
    cell("sweep", seconds={"joblib": [22.0, 21.0], "by hand": [20.0, 25.0]})
    wanted = list(ranks.summary(tmp_path)["wanted"].values())
    assert wanted[:-1] == pytest.approx([3e-7, 0.9, 0.75, 1.1, 1.05])
    assert wanted[-1] == "1 of 2"
