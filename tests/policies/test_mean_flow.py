"""The mean-flow head against Gaussians, whose average velocity is known, and its derivative against differences."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from scipy import integrate as quadrature
from torch import Tensor, nn

from policies.conditioning import Conditioning
from policies.heads.mean_flow import PREDICTIONS, TIME_SCALE, MeanFlowConfig, MeanFlowHead
from policies.nets import NETS
from policies.nets.base import Modulation, Net

SHAPE = (3, 2)  # of a chunk
SIZE = SHAPE[0] * SHAPE[1]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class LastPlace(nn.Module):
    """Stands in for the embedding of an interval's length: leaves it readable, at the end of the conditioning."""

    def forward(self, length: Tensor) -> Tensor:
        return torch.cat([torch.zeros(*length.shape, SIZE), length[..., None]], dim=-1)


class AverageNet(Net):
    """The net whose average velocity is that of the flow to N(mean, Q diag(variances) Q^T), with a bias and a gain.

    The flow keeps every principal axis at the same quantile: x_t = t mean + sd(t) z with sd(t)^2 = t^2 var + (1-t)^2.
    """

    def __init__(self, prediction: str, axes: Tensor, variances: Tensor):
        super().__init__()
        self.prediction, self.axes, self.variances = prediction, axes, variances
        self.bias, self.gain = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        return Modulation(torch.cat([t[..., None], cond.vector_BE.expand(*t.shape, -1)], dim=-1))

    def sd(self, t: Tensor) -> Tensor:
        return (t**2 * self.variances + (1 - t) ** 2).sqrt()

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        t, mean, length = (
            modulation.timed[:, :1] / TIME_SCALE,
            modulation.timed[:, 1:-1],
            modulation.timed[:, -1:] / TIME_SCALE,
        )
        s, y = t + length, (x_BTA.flatten(1) - t * mean) @ self.axes
        # (sd(s) - sd(t)) / (s - t) / sd(t), without the cancellation
        growth = ((s + t) * self.variances - (2 - s - t)) / ((self.sd(s) + self.sd(t)) * self.sd(t))
        average = (mean + self.bias + ((growth + self.gain) * y) @ self.axes.T).view_as(x_BTA)
        return average if self.prediction == "velocity" else x_BTA + (1 - t[..., None]) * average


def gaussian(rows: int, variances: Tensor | None = None, **options) -> tuple[MeanFlowHead, AverageNet, Tensor, Tensor]:
    """A head with its optimal net, conditioning, and chunks from the Gaussian that the conditioning names."""
    axes = torch.linalg.qr(torch.randn(SIZE, SIZE))[0]
    variances = torch.rand(SIZE) * 2 + 0.1 if variances is None else variances
    head = MeanFlowHead(MeanFlowConfig(**options), SIZE + 1)
    head.length = LastPlace()  # pyright: ignore[reportAttributeAccessIssue]
    mean = torch.randn(rows, SIZE)
    x1 = mean + (torch.randn(rows, SIZE) * variances.sqrt()) @ axes.T
    return (
        head,
        AverageNet(head.config.prediction, axes, variances),
        torch.cat([mean, torch.zeros(rows, 1)], dim=-1),
        x1.view(rows, *SHAPE),
    )


@pytest.mark.parametrize("improved", [True, False])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_exact_average_velocity_fulfils_the_identity(prediction, improved):
    """u = v + (s - t) du/dt, with the sign of this convention (t=0 noise)."""
    head, net, cond, x = gaussian(200, prediction=prediction, improved=improved)
    t, s = (0.98 * torch.rand(2, 200)).sort(dim=0)[0]
    zero = torch.zeros_like(t)
    with torch.no_grad():
        average, velocity = (head.average(net, x, t, length, Conditioning(cond)) for length in (s - t, zero))
    given = torch.zeros_like(x) if improved else velocity  # the improved head asks the net
    moved = (s - t)[:, None, None] * head.derivative(net, x, given, t, s - t, Conditioning(cond))
    torch.testing.assert_close(average, velocity + moved, atol=1e-3, rtol=1e-3)
    assert (average - velocity + moved).abs().max() > 0.5  # the other sign


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 3])
def test_one_jump_of_the_optimum_gives_the_gaussian(prediction, steps):
    """mean + covariance^(1/2) noise, each sample by itself, hence the exact mean and covariance."""
    head, net, cond, _ = gaussian(4000, prediction=prediction, steps=steps)
    cond = cond[:1].expand(4000, -1)
    noise = torch.randn(4000, *SHAPE)
    chunks = head.sample(net, noise, Conditioning(cond)).flatten(1).detach()
    root = net.axes @ net.variances.sqrt().diag() @ net.axes.T
    torch.testing.assert_close(chunks, cond[:, :-1] + noise.flatten(1) @ root, atol=1e-4, rtol=0)
    spread = net.variances.max().item()
    torch.testing.assert_close(chunks.mean(dim=0), cond[0, :-1], atol=4 * math.sqrt(spread / 4000), rtol=0)
    torch.testing.assert_close(chunks.T.cov(), root @ root, atol=0.12 * spread, rtol=0)


def least_loss(config: MeanFlowConfig, var: float) -> float:
    """Variance of the target given x_t, averaged over the draws of t and s.

    It is Var(x1 - x0 | x_t) = var / sd(t)^2, and where the drawn velocity also moves the derivative that variance is
    multiplied by (1 + (s - t) du/dx)^2 = (sd(s) / sd(t))^2. Two uniform draws sorted have density 2.
    """

    def sd2(t: float) -> float:
        return t**2 * var + (1 - t) ** 2

    def variance(t: float, s: float) -> float:
        moved = 1 if config.improved else sd2(s) / sd2(t)
        return var / sd2(t) * moved * ((1 - t) ** 2 if config.prediction == "data" else 1)

    flow = quadrature.quad(lambda t: 2 * (1 - t) * variance(t, t), 0, 1)[0]
    anywhere = quadrature.dblquad(lambda s, t: 2 * variance(t, s), 0, 1, lambda t: t, 1)[0]
    to_data = quadrature.quad(lambda t: variance(t, 1), 0, 1)[0]
    interval = config.to_data * to_data + (1 - config.to_data) * anywhere
    return config.flow_share * flow + (1 - config.flow_share) * config.interval_weight * interval


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    "options",
    [{}, {"improved": False}, {"improved": False, "flow_share": 0.2, "to_data": 0.0, "interval_weight": 0.5}],
    ids=str,
)
def test_the_loss_of_the_optimum_is_its_closed_form(prediction, options):
    var, rows = 0.25, 20_000
    options = {"prediction": prediction, "weight_power": 0.0, **options}
    head, net, cond, x1 = gaussian(rows, torch.full((SIZE,), var), **options)
    loss = head.loss(net, x1, Conditioning(cond), torch.ones(rows, SHAPE[0], dtype=torch.bool), seeded(0)).item()
    assert loss == pytest.approx(least_loss(head.config, var), rel=0.02)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("improved", "weight_power"), [(True, 0.0), (True, 1.0), (False, 0.0)])
def test_the_exact_average_velocity_is_a_fixed_point(prediction, improved, weight_power):
    """At the optimum the gradient is noise around 0; a little beside it, it points back."""
    rows = 20_000
    head, net, cond, x1 = gaussian(rows, prediction=prediction, improved=improved, weight_power=weight_power)
    mask = torch.ones(rows, SHAPE[0], dtype=torch.bool)
    for parameter in (net.bias, net.gain):
        gradients = []
        for value in (-0.3, 0.0, 0.3):
            parameter.data.fill_(value)
            loss = head.loss(net, x1, Conditioning(cond), mask, seeded(0))
            gradients.append(torch.autograd.grad(loss, parameter)[0].item())
        parameter.data.zero_()
        assert gradients[0] < -0.05 < 0.05 < gradients[2]
        assert abs(gradients[1]) < 0.1 * min(-gradients[0], gradients[2])


@pytest.mark.parametrize("improved", [True, False])
@pytest.mark.parametrize("net", NETS)
def test_the_derivative_is_that_of_finite_differences(tiny, randomize, net, improved):
    head = MeanFlowHead(MeanFlowConfig(improved=improved), 5)
    net = NETS[net][1](tiny(NETS, net), (4, 3), 5)
    for part in (head, net):
        randomize(part)
        part.double()
    x, velocity = torch.randn(2, 6, 4, 3, dtype=torch.float64)
    cond = torch.randn(6, 5, dtype=torch.float64)
    t, end = 0.9 * torch.rand(2, 6, dtype=torch.float64).sort(dim=0)[0]

    def average(x: Tensor, t: Tensor, end: Tensor = end) -> Tensor:
        return head.average(net, x, t, end - t, Conditioning(cond))

    derivative = head.derivative(net, x, velocity, t, end - t, Conditioning(cond))
    assert not derivative.requires_grad
    with torch.no_grad():
        direction = average(x, t, t) if improved else velocity
        h = 1e-5
        differences = (average(x + h * direction, t + h) - average(x - h * direction, t - h)) / (2 * h)
    torch.testing.assert_close(derivative, differences, atol=1e-6, rtol=1e-5)
    assert differences.abs().max() > 0.1
    other = head.derivative(net, x, velocity + 1, t, end - t, Conditioning(cond))
    assert torch.equal(derivative, other) == improved  # then nothing of the drawn noise is left in it


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_derivative_in_bf16_is_rounded_only(tiny, randomize, prediction):
    """What an autocast training step sees is the double-precision derivative within a few roundings of 2^-8."""
    head, net = MeanFlowHead(MeanFlowConfig(prediction=prediction), 5), NETS["mlp"][1](tiny(NETS, "mlp"), (4, 3), 5)
    randomize(head)
    randomize(net)
    x, t, cond = torch.randn(50, 4, 3), 0.8 * torch.rand(50), torch.randn(50, 5)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = head.derivative(net, x, x, t, 1 - t, Conditioning(cond.bfloat16()))
    cond = cond.bfloat16().double()
    derivative = head.double().derivative(
        net.double(), x.double(), x.double(), t.double(), 1 - t.double(), Conditioning(cond)
    )
    assert 0 < (rounded - derivative).square().mean().sqrt() / derivative.square().mean().sqrt() < 0.05


@pytest.mark.parametrize(("flow_share", "flow_rows"), [(0.75, 75), (0.5, 50), (0.001, 0), (0.999, 99)])
@pytest.mark.parametrize("to_data", [0.0, 0.5, 1.0])
def test_the_shares_of_the_batch(flow_share, flow_rows, to_data):
    """Of 100 rows so many have no interval; of the others so many have one that ends at the data; all lie in [0, 1]."""
    head = MeanFlowHead(MeanFlowConfig(flow_share=flow_share, to_data=to_data), 1)
    t, length, rows = head.intervals(torch.zeros(100, *SHAPE), seeded(0))
    others = torch.ones(100, dtype=torch.bool).index_fill(0, rows, False)
    assert others.sum() == flow_rows
    assert (length[others] == 0).all()
    assert (length[rows] > 0).all()
    assert (t >= 0).all()
    assert (t + length <= 1).all()
    assert (t + length == 1).sum() == round(to_data * (100 - flow_rows))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "noise"}, "head.prediction='noise' is unknown; choices: velocity, data"),
        ({"time": "cosine"}, "head.time='cosine' is unknown; choices: uniform, beta, logit_normal"),
        ({"flow_share": 1.0}, r"head.flow_share=1.0 must lie inside \(0, 1\)"),
        ({"flow_share": 0.0}, r"head.flow_share=0.0 must lie inside \(0, 1\)"),
        ({"weight_power": -1.0}, r"head.weight_power=-1.0 must lie in 0\.\.2"),
        ({"weight_power": math.nan}, r"head.weight_power=nan must lie in 0\.\.2"),
        ({"interval_weight": 0.0}, "head.interval_weight=0.0 must be positive and at most 1000"),
        ({"to_data": 1.5}, r"head.to_data=1.5 must lie in \[0, 1\]"),
        ({"to_data": 1.0, "steps": 2}, "head.steps=2 jumps end before the data too; use head.to_data below 1"),
        ({"steps": 0}, r"head.steps=0 must lie in 1\.\.1000"),
    ],
)
def test_a_wrong_option_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        MeanFlowConfig(**options)


def test_a_configuration_from_before_the_data_prediction_means_velocity():
    before = {f.name: f.metadata["before"] for f in fields(MeanFlowConfig) if "before" in f.metadata}
    assert before == {"prediction": "velocity", "to_data": 0.0, "interval_weight": 1.0, "length_on_tokens": True}
