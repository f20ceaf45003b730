"""The multistep sampler and its grids: against diffusers, closed forms, its order, and the script that made them."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from benchmarks.grids import CASES, Case, Exact, numbers_of, page, times_of
from benchmarks.result import FOLDER
from policies.conditioning import Conditioning
from policies.generation.grids import GRIDS, TABLE, power, tabulated, times_on, uniform
from policies.generation.paths import PATHS
from policies.generation.solvers import SOLVERS, ddim, stage_times
from policies.heads.flow import FlowConfig, FlowHead
from policies.nets.base import Modulation, Net
from tests.policies.test_diffusion import COND, Wavy

# What diffusers calls a prediction on the straight path, and how its output is ours.
THEIRS = {"velocity": ("flow_prediction", -1.0), "data": ("sample", 1.0)}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers calls np.array(tensor)
@pytest.mark.parametrize("shape", [(5, 3, 2), (4, 4, 4)])
@pytest.mark.parametrize(
    ("grid", "steps"), [("uniform", 1), ("uniform", 2), ("uniform", 7), ("power", 9), ("tabulated", 8)]
)
@pytest.mark.parametrize("prediction", THEIRS)
def test_multistep_is_that_of_diffusers_on_the_straight_path(prediction, grid, steps, shape):
    kind, sign = THEIRS[prediction]
    options = {"use_flow_sigmas": True, "prediction_type": kind, "final_sigmas_type": "zero", "solver_order": 2}
    scheduler: Any = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", lower_order_final=True, **options)
    times = times_on("linear", grid, steps)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = 1 - torch.tensor(times, dtype=torch.float64)  # theirs starts a little below pure noise
    config = FlowConfig(solver="multistep", grid=grid, steps=steps, prediction=prediction)
    head, net = FlowHead(config, COND).double(), Wavy(shape[1:]).double()
    noise, cond = torch.randn(shape, dtype=torch.float64), torch.randn(shape[0], COND, dtype=torch.float64)
    x = noise
    for k, t in enumerate(times[:-1]):
        output = net(x, net.prepare(torch.tensor(t, dtype=torch.float64).expand(len(x)), Conditioning(cond)))
        x = scheduler.step(sign * output, scheduler.timesteps[k], x).prev_sample
    expected = [*net.asked, x]
    net.asked.clear()
    ours = head.sample(net, noise, Conditioning(cond))
    assert len(net.asked) == head.evaluations == steps
    for mine, other in zip([*net.asked, ours], expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


class Line(Net):
    """The exact data of a mixture on the line, on any path."""

    def __init__(self, path: str, case: Case):
        super().__init__()
        self.path, self.exact = PATHS[path], Exact([case])

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        return Modulation(t[..., None])

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        c = self.path(modulation.timed[0].double())
        return self.exact.data(x_BTA.flatten()[None], c.alpha.item(), c.sigma.item()).view_as(x_BTA)


def gaussian_ratio(times: list[float], spread: float) -> float:
    """Spread found over spread, by the recursion that the walk is for a line: DPM-Solver++ 2M as published.

    In y = x / sigma and with lambda = ln(alpha / sigma), y' = e^lambda' (1 - e^(lambda - lambda')) D + y.
    """
    x, kept = 1.0, []
    for t, after in pairwise(times):
        kept.append(t * spread**2 / (t**2 * spread**2 + (1 - t) ** 2) * x)
        used = kept[-1]
        if after < 1 and len(kept) > 1 and times[len(kept) - 2] > 0:
            before, now, ahead = (math.log(s / (1 - s)) for s in times[len(kept) - 2 : len(kept) + 1])
            r = (now - before) / (ahead - now)
            used = (1 + 1 / (2 * r)) * kept[-1] - 1 / (2 * r) * kept[-2]
        shrink = (1 - after) / (1 - t)
        x = shrink * x + (after - t * shrink) * used
    return x / spread


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("grid", ["power", "tabulated"])
@pytest.mark.parametrize("spread", [0.05, 0.3, 1.0])
def test_a_gaussian_comes_out_with_the_spread_of_its_closed_recursion(path, grid, spread):
    """On every path the same, for a grid tells ratios of signal to noise."""
    for steps in (1, 2, 3, 8, 16):
        head = FlowHead(FlowConfig(solver="multistep", grid=grid, steps=steps, path=path), 1).double()
        net, cond, one = Line(path, Case((0.5,), (1.0,), spread)), torch.zeros(1, 1), torch.ones(1, 1, 1).double()
        found, nothing = head.sample(net, one, Conditioning(cond)), head.sample(net, 0 * one, Conditioning(cond))
        ratio = gaussian_ratio((power if grid == "power" else tabulated)(steps), spread)
        assert (found - nothing).item() / spread == pytest.approx(ratio, rel=2e-5)


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_the_error_falls_faster_than_that_of_euler(spread):
    """Nearly with the second order: the first two steps come from infinitely far, in the logarithm."""
    counts = np.array([32, 64, 128, 256])
    exact = Exact([Case((0.0,), (1.0,), spread)])
    orders = []
    for samples in (
        [exact.sample(power(int(n))) for n in counts],
        [exact.sample(power(int(n)), ddim) for n in counts],
    ):
        errors = [abs(float(exact.judge(sample)["ratio"][0]) - 1) for sample in samples]
        orders.append(-np.polyfit(np.log(counts), np.log(errors), 1)[0])
    assert orders[0] > 1.65
    assert orders[1] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("path", PATHS)
def test_grids_run_from_noise_to_data(path, kind):
    for steps in range(1, 17):
        times = times_on(path, kind, steps)
        assert len(times) == steps + 1
        assert (times[0], times[-1]) == (0, 1)
        assert (np.diff(times) > 0).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_equal_steps_are_those_of_old_to_the_last_bit(solver):
    """In single precision a step is 1 / K, and a stage where it was, however the ends of the step are rounded."""
    tableau = SOLVERS[solver]
    weights = [*tableau.b, *(weight for row in tableau.a for weight in row)]
    for steps in (*range(1, 101), 128, 200, 250, 500, 1000):
        h = np.diff(uniform(steps))
        for weight in weights:
            assert (np.float32(h * weight) == np.float32(1 / steps * weight)).all()
        old = [(k + c) / steps for k in range(steps) for c in tableau.c]
        assert np.array_equal(np.array(stage_times(tableau, uniform(steps)), "f4"), np.array(old, "f4"))


def test_the_tabulated_grids_are_those_that_the_script_found_and_measured():
    (file,) = FOLDER.glob("grids_*.json")
    result = json.loads(file.read_text())
    assert {int(steps): tuple(times[1:-1]) for steps, times in result["found"].items()} == {
        steps: times for steps, times in TABLE.items() if steps > 1
    }
    exact = Exact()
    samples = exact.sample(tabulated(8))
    (row,) = (r for r in result["rows"] if (r["solver"], r["grid"], r["evaluations"]) == ("multistep", "tabulated", 8))
    assert exact.judge(samples)["ratio"].tolist() == pytest.approx(row["ratio"], abs=1e-6)
    assert exact.objective(samples) == pytest.approx(row["objective"], abs=1e-6)
    assert page(result["rows"]) in (FOLDER.parents[1] / "docs" / "heads.md").read_text()
    # No search has got stuck far above that of one evaluation less.
    assert all(result["objectives"][str(k + 1)] < 1.05 * result["objectives"][str(k)] for k in range(2, 16))


def test_a_tabulated_grid_is_better_than_others_and_than_its_neighbours():
    exact = Exact()
    for steps in (4, 8, 16):
        best = exact.objective(exact.sample(tabulated(steps)))
        assert best < 0.8 * min(exact.objective(exact.sample(grid(steps))) for grid in (uniform, power))
        numbers = numbers_of(tabulated(steps))
        for i in range(len(numbers)):
            for change in (-0.3, 0.3):
                moved = numbers.copy()
                moved[i] += change
                assert exact.objective(exact.sample(times_of(moved))) > 0.99 * best


def test_the_exact_denoiser_is_the_posterior_mean():
    """By quadrature over the data."""
    exact = Exact()
    x1 = torch.linspace(-6, 6, 100_001, dtype=torch.float64)
    for t in (0.1, 0.5, 0.95):
        for k in (0, 6, 13):
            case, x = CASES[k], 0.7 * t
            prior = sum(
                p * torch.exp(-((x1 - m) ** 2) / (2 * case.spread**2))
                for m, p in zip(case.modes, case.shares, strict=True)
            )
            weight = prior * torch.exp(-((x - t * x1) ** 2) / (2 * (1 - t) ** 2))
            expected = float((weight * x1).sum() / weight.sum())
            found = exact.data(torch.full((len(CASES), 1), x, dtype=torch.float64), t, 1 - t)[k]
            assert float(found) == pytest.approx(expected, abs=1e-6)
