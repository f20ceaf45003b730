"""The benchmark of spreads and shares: its exact answers against sums written out, and its cells, table and picture."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from benchmarks import spread
from benchmarks.spread import ARMS, EXACT, Cell, ExactNet, draw, measure, run_cell, settings, summarize
from policies.conditioning import Conditioning
from policies.heads import HEADS


def written_out(x: Tensor, alpha: float, sigma: float, s: float) -> Tensor:
    """E[x1 | x] of one chunk (4, 2), from the two densities and the two conditional means."""
    total = alpha**2 * s**2 + sigma**2
    weights, means = [], []
    for way, share in ((1.0, 0.3), (-1.0, 0.7)):
        weights.append(math.log(share) - float(((x - alpha * way) ** 2).sum()) / (2 * total))
        means.append(way + alpha * s**2 / total * (x - alpha * way))
    first = 1 / (1 + math.exp(weights[1] - weights[0]))
    return first * means[0] + (1 - first) * means[1]


def head_of(kind: str, **options):
    config, head = HEADS[kind]
    return head(config(**options), 1)


@pytest.mark.parametrize("t", [0.02, 0.3, 0.9])
def test_the_exact_answer_is_the_posterior_mean_in_the_terms_of_the_head(t):
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    for kind, options in (
        ("flow", {}),
        ("flow", {"path": "cosine", "prediction": "preconditioned"}),
        ("diffusion", {}),
    ):
        head = head_of(kind, **options)
        net = ExactNet(head, 0.1)
        time = torch.full((3,), t, dtype=torch.float64)
        c = net.head.coefficients(time[:1])
        alpha, sigma = c.alpha.item(), c.sigma.item()
        size = math.hypot(alpha, sigma)  # of what a preconditioned net is shown
        scaled = options.get("prediction") == "preconditioned"
        answer = net(x / size if scaled else x, net.prepare(time, Conditioning(torch.ones(3, 1))))
        for row in range(3):
            data = written_out(x[row], alpha, sigma, 0.1)
            noise = (x[row] - alpha * data) / sigma
            expected = (sigma * data - alpha * noise) / size if scaled else data
            torch.testing.assert_close(answer[row], expected, atol=1e-9, rtol=1e-9)


def test_edm_is_asked_in_levels_of_noise():
    net, x = ExactNet(head_of("edm"), 0.3), torch.randn(1, 4, 2, dtype=torch.float64)
    level = 0.7
    answer = net(
        x / math.hypot(level, 1),
        net.prepare(torch.tensor([math.log(level) / 4]).double(), Conditioning(torch.ones(1, 1))),
    )
    data = written_out(x[0], 1.0, level, 0.3)
    torch.testing.assert_close(
        answer[0], (level * data - (x[0] - data) / level) / math.hypot(level, 1), atol=1e-6, rtol=1e-6
    )


def test_what_is_measured_of_the_data_themselves_is_right():
    for s in (0.05, 0.3):
        told = measure(draw(200_000, s, torch.Generator().manual_seed(0)), s)
        assert told["ratio"] == pytest.approx(1, abs=0.01)
        assert told["share"] == pytest.approx(0.3, abs=0.005)
        assert told["bias"] == pytest.approx(0, abs=0.01)
        assert told["between"] < 0.01
    assert measure(torch.zeros(10, 4, 2), 0.1)["between"] == 1


@pytest.mark.parametrize("arm", EXACT)
def test_with_the_exact_model_many_evaluations_are_right(arm, monkeypatch):
    monkeypatch.setattr(spread, "SAMPLES", 4000)
    many = {"flow": {"steps": 50}, "diffusion": {"steps": 50}, "edm": {"steps": 20}}[ARMS[arm][0]]
    monkeypatch.setattr(spread, "settings", lambda kind: iter([("many", many)]))
    (row,) = run_cell(Cell(arm, 0.3, None))["rows"]
    assert row["sampler"] == "many"
    assert row["ratio"] == pytest.approx(1, abs=0.1)
    assert row["share"] == pytest.approx(0.3, abs=0.03)
    assert abs(row["bias"]) < 0.06


def test_cells_are_run_once_and_make_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(spread, "SAMPLES", 50)
    monkeypatch.setattr(spread, "STEPS", 3)
    plan = [Cell(arm, 0.1, seed) for arm in ("flow data", "regression") for seed in (0, 1)]
    plan.append(Cell("flow data", 0.1, None))
    spread.sweep(tmp_path, plan)
    assert len(capsys.readouterr().out.splitlines()) == len(plan)
    spread.sweep(tmp_path, plan)
    assert not capsys.readouterr().out
    result = summarize(tmp_path)
    assert len(result["cells"]) == len(plan)
    learned = [row for row in result["table"] if not row["exact"]]
    assert all(row["seeds"] == 2 for row in learned)
    (euler,) = [r for r in learned if (r["arm"], r["sampler"], r["evaluations"]) == ("flow data", "euler", 4)]
    values = [
        row["ratio"]
        for cell in result["cells"]
        for row in cell["rows"]
        if cell["arm"] == "flow data"
        and cell["seed"] is not None
        and (row["sampler"], row["evaluations"]) == ("euler", 4)
    ]
    assert euler["ratio"] == pytest.approx(sum(values) / 2)
    assert euler["ratio_range"] == [min(values), max(values)]
    assert "| regression | one | 1 |" in spread.page(result, exact=False)
    assert "regression" not in spread.page(result, exact=True)
    spread.draw_picture(result, tmp_path / "spread.png")
    assert (tmp_path / "spread.png").read_bytes()[:4] == b"\x89PNG"


def test_every_head_has_an_arm_and_every_setting_is_one_of_its_head():
    assert {kind for kind, _ in ARMS.values()} == set(HEADS) - {"classification", "tokens"}  # which are for choices
    for kind, options in ARMS.values():
        told = [(name, head_of(kind, **{**options, **fields}).evaluations) for name, fields in settings(kind)]
        assert len(told) == len(set(told))
        assert all(evaluations <= 10 for _, evaluations in told)
