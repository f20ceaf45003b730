"""Classifier-free guidance in the flow head: Gaussians in closed form, and what it may not change."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from policies.conditioning import Conditioning
from policies.heads.flow import PREDICTIONS, FlowConfig, FlowHead
from policies.nets import NETS
from policies.nets.base import Modulation, Net
from tests.cases import some

COND = 32  # as in test_heads.py
WITH = (2.0, 0.5)  # mean and deviation of the data given the condition
WITHOUT = (-1.0, 1.5)  # and of all the data


class TwoGaussians(Net):
    """The optimal prediction for data N(mean, deviation^2), of which there is one pair for the null condition."""

    def __init__(self, prediction: str):
        super().__init__()
        self.prediction, self.rows = prediction, []

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        null = cond.vector_BE[:, 0] == 7.0
        numbers = torch.where(null[:, None], torch.tensor(WITHOUT), torch.tensor(WITH))
        return Modulation(torch.cat([t[..., None], numbers.expand(*t.shape, 2)], dim=-1))

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        self.rows.append(len(x_BTA))
        t, mean, deviation = (part[..., None] for part in modulation.timed.split(1, dim=-1))
        size = (t**2 + (1 - t) ** 2).sqrt()
        x = x_BTA * size if self.prediction == "preconditioned" else x_BTA
        whitened = (x - t * mean) / (t**2 * deviation**2 + (1 - t) ** 2)
        data = mean + t * deviation**2 * whitened
        answers = {"data": data, "velocity": data - (1 - t) * whitened}
        answers["preconditioned"] = (1 - t) * (data - t * whitened) / size
        return answers[self.prediction]


def guided(weight: float) -> tuple[float, float]:
    """Mean and deviation of v_without + weight (v_with - v_without) at t=1.

    The velocity for N(m, s^2) is m + g (x - t m) with g the logarithmic derivative of sqrt(t^2 s^2 + (1-t)^2). The
    guided one is linear in x too: a deviation grows by the weighted exponents, the mean follows its own equation.
    """
    parts = ((1 - weight, *WITHOUT), (weight, *WITH))

    def rate(t: float, x):
        g = [(t * s**2 - (1 - t)) / (t**2 * s**2 + (1 - t) ** 2) for _, _, s in parts]
        return sum(w * (m + growth * (x - t * m)) for (w, m, _), growth in zip(parts, g, strict=True))

    mean = solve_ivp(rate, (0, 1), [0.0], rtol=1e-8, atol=1e-8).y[0, -1]
    return mean, math.prod(s**w for w, _, s in parts)


def flow(
    prediction: str, weight: float, steps: int = 60, solver: str = "midpoint", grid: str = "uniform"
) -> tuple[FlowHead, TwoGaussians]:
    options = {"solver": solver, "grid": grid, "guidance": weight, "condition_dropout": 0.1}
    config = FlowConfig(prediction=prediction, steps=steps, **options)
    head = FlowHead(config, COND)
    assert head.null is not None
    head.null.data.fill_(7.0)
    return head, TwoGaussians(prediction)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weight", some([0.0, 0.5, 1.0, 2.0, 3.0], [0.0, 1.0, 3.0]))
@pytest.mark.parametrize(("solver", "grid"), [("midpoint", "uniform"), ("multistep", "power")])
def test_guidance_of_gaussians_is_its_closed_form(prediction, weight, solver, grid):
    head, net = flow(prediction, weight, 60, solver, grid)
    noise = torch.randn(100, 2, 3)
    found = head.sample(net, noise, Conditioning(torch.zeros(100, COND)))
    mean, deviation = guided(weight)
    torch.testing.assert_close(found, mean + deviation * noise, atol=0.02, rtol=0.01)
    if weight in (0.0, 1.0):  # the distributions themselves
        assert (mean, deviation) == pytest.approx(WITH if weight else WITHOUT, abs=1e-5)


@pytest.mark.parametrize(("weight", "rows", "evaluations"), [(1.0, 5, 6), (0.0, 10, 12), (2.0, 10, 12)])
def test_guidance_costs_a_doubled_batch_and_weight_one_nothing(weight, rows, evaluations):
    head, net = flow("data", weight, steps=3)
    head.sample(net, torch.randn(5, 2, 3), Conditioning(torch.zeros(5, COND)))
    assert net.rows == [rows] * 6
    assert head.evaluations == evaluations == sum(net.rows) // 5


@pytest.fixture
def make(tiny, randomize):
    def make(net: str = "mlp", **options):
        head, module = FlowHead(FlowConfig(**options), COND), NETS[net][1](tiny(NETS, net, width=32), (4, 4), COND)
        torch.manual_seed(1)
        for part in (module, head):
            randomize(part)
        return head, module, torch.randn(6, COND), torch.randn(6, 4, 4)

    return make


@pytest.mark.parametrize("net", NETS)
def test_weight_one_is_the_plain_sampler_bit_for_bit_and_others_mix_it_with_that_of_the_null(make, net):
    head, net, cond, noise = make(net, condition_dropout=0.2, steps=1)  # one step from noise is linear in the velocity
    plain = FlowHead(FlowConfig(steps=1), COND)
    with torch.no_grad():
        conditional = plain.sample(net, noise, Conditioning(cond))
        unconditional = plain.sample(net, noise, Conditioning(head.null.expand_as(cond)))
        assert torch.equal(head.sample(net, noise, Conditioning(cond)), conditional)
        for weight in (0.0, 2.5):
            head.config.guidance = weight
            mixed = unconditional + weight * (conditional - unconditional)
            torch.testing.assert_close(head.sample(net, noise, Conditioning(cond)), mixed, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("net", NETS)
def test_a_guided_row_gives_the_same_chunk_wherever_it_stands(make, net):
    head, net, cond, noise = make(net, condition_dropout=0.2, guidance=2.0)
    with torch.no_grad():
        chunks, order = head.sample(net, noise, Conditioning(cond)), torch.randperm(6)
        assert torch.equal(head.sample(net, noise[order], Conditioning(cond[order])), chunks[order])


class Recorder(Net):
    """Keeps the conditions it is shown and predicts zero."""

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        self.cond = cond.vector_BE
        return Modulation(t[..., None])

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        return torch.zeros_like(x_BTA)


def test_training_replaces_the_condition_of_so_many_rows_by_the_null(make):
    head, _, _, _ = make(condition_dropout=0.2)
    net, cond, x1 = Recorder(), torch.randn(5000, COND), torch.randn(5000, 1, 1)
    head.loss(net, x1, Conditioning(cond), torch.ones(5000, 1, dtype=torch.bool), torch.Generator().manual_seed(0))
    dropped = (net.cond == head.null).all(dim=1)
    assert torch.equal(net.cond, torch.where(dropped[:, None], head.null, cond))
    assert dropped.float().mean().item() == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / 5000))


def test_only_a_head_that_drops_conditions_has_a_null_vector(make):
    assert list(make()[0].state_dict()) == []
    assert list(make(condition_dropout=0.1)[0].state_dict()) == ["null"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition_dropout": 1.0}, r"head.condition_dropout=1.0 must lie in \[0, 1\)"),
        ({"condition_dropout": -0.1}, r"head.condition_dropout=-0.1 must lie in \[0, 1\)"),
        ({"guidance": -1.0, "condition_dropout": 0.1}, "head.guidance=-1.0 must lie in 0..100"),
        ({"guidance": 2.0}, "head.guidance=2.0 needs a policy that was also trained .* head.condition_dropout above 0"),
        ({"guidance": 0.0}, "head.guidance=0.0 needs a policy that was also trained without conditions"),
    ],
)
def test_a_wrong_option_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        FlowConfig(**options)
