"""The mean-flow head against Gaussians, whose average velocity is known, and its derivative against differences."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate as quadrature
from torch import Tensor, nn

from policies.heads.mean_flow import TIME_SCALE, MeanFlowConfig, MeanFlowHead
from policies.nets import NETS, Net

SHAPE = (3, 2)  # of a chunk
SIZE = SHAPE[0] * SHAPE[1]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class LastPlace(nn.Module):
    """Stands in for the embedding of an interval's length: leaves it readable, at the end of the conditioning."""

    def forward(self, length: Tensor) -> Tensor:
        return torch.cat([torch.zeros(*length.shape, SIZE), length[..., None]], dim=-1)


class AverageNet(Net):
    """Average velocity of the flow from noise to N(mean, Q diag(variances) Q^T), plus a bias and a gain to learn.

    The flow keeps every principal axis at the same quantile: x_t = t mean + sd(t) z with sd(t)^2 = t^2 var + (1-t)^2.
    """

    def __init__(self, axes: Tensor, variances: Tensor):
        super().__init__()
        self.axes, self.variances = axes, variances
        self.bias, self.gain = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def prepare(self, t: Tensor, cond: Tensor, per_action: bool = False) -> Tensor:
        return torch.cat([t[..., None], cond.expand(*t.shape, -1)], dim=-1)

    def sd(self, t: Tensor) -> Tensor:
        return (t**2 * self.variances + (1 - t) ** 2).sqrt()

    def forward(self, x_BTA: Tensor, modulation: Tensor) -> Tensor:
        t, mean, length = modulation[:, :1] / TIME_SCALE, modulation[:, 1:-1], modulation[:, -1:] / TIME_SCALE
        s, y = t + length, (x_BTA.flatten(1) - t * mean) @ self.axes
        # (sd(s) - sd(t)) / (s - t) / sd(t), without the cancellation
        growth = ((s + t) * self.variances - (2 - s - t)) / ((self.sd(s) + self.sd(t)) * self.sd(t))
        return (mean + self.bias + ((growth + self.gain) * y) @ self.axes.T).view_as(x_BTA)


def gaussian(rows: int, variances: Tensor | None = None, **options) -> tuple[MeanFlowHead, AverageNet, Tensor, Tensor]:
    """A head with its optimal net, conditioning, and chunks from the Gaussian that the conditioning names."""
    axes = torch.linalg.qr(torch.randn(SIZE, SIZE))[0]
    variances = torch.rand(SIZE) * 2 + 0.1 if variances is None else variances
    head = MeanFlowHead(MeanFlowConfig(**options), SIZE + 1)
    head.length = LastPlace()  # pyright: ignore[reportAttributeAccessIssue]
    mean = torch.randn(rows, SIZE)
    x1 = mean + (torch.randn(rows, SIZE) * variances.sqrt()) @ axes.T
    return head, AverageNet(axes, variances), torch.cat([mean, torch.zeros(rows, 1)], dim=-1), x1.view(rows, *SHAPE)


@pytest.mark.parametrize("improved", [True, False])
def test_the_exact_average_velocity_fulfils_the_identity(improved):
    """u = v + (s - t) du/dt, with the sign of this convention (t=0 noise)."""
    head, net, cond, x = gaussian(200, improved=improved)
    t, s = torch.rand(2, 200).sort(dim=0)[0]
    zero = torch.zeros_like(t)
    with torch.no_grad():
        average, velocity = (net(x, head.prepare(net, t, length, cond)) for length in (s - t, zero))
    given = zero[:, None, None].expand_as(x) if improved else velocity  # the improved head asks the net
    moved = (s - t)[:, None, None] * head.derivative(net, x, given, t, s - t, cond)
    torch.testing.assert_close(average, velocity + moved, atol=2e-4, rtol=1e-3)
    assert (average - velocity + moved).abs().max() > 0.5  # the other sign


@pytest.mark.parametrize("steps", [1, 3])
def test_one_jump_of_the_optimum_gives_the_gaussian(steps):
    """mean + covariance^(1/2) noise, each sample by itself, hence the exact mean and covariance."""
    head, net, cond, _ = gaussian(4000, steps=steps)
    cond = cond[:1].expand(4000, -1)
    noise = torch.randn(4000, *SHAPE)
    chunks = head.sample(net, noise, cond).flatten(1).detach()
    root = net.axes @ net.variances.sqrt().diag() @ net.axes.T
    torch.testing.assert_close(chunks, cond[:, :-1] + noise.flatten(1) @ root, atol=1e-4, rtol=0)
    spread = net.variances.max().item()
    torch.testing.assert_close(chunks.mean(dim=0), cond[0, :-1], atol=4 * math.sqrt(spread / 4000), rtol=0)
    torch.testing.assert_close(chunks.T.cov(), root @ root, atol=0.12 * spread, rtol=0)


def least_loss(improved: bool, flow_share: float, var: float) -> float:
    """Variance of the target given x_t, over the draws of t and s: those two are U(0, 1), the smaller is t.

    It is Var(x1 - x0 | x_t) = var / sd(t)^2, and where the drawn velocity also moves the derivative that variance is
    multiplied by (1 + (s - t) du/dx)^2 = (sd(s) / sd(t))^2.
    """

    def sd2(t: float) -> float:
        return t**2 * var + (1 - t) ** 2

    flow = quadrature.quad(lambda t: 2 * (1 - t) * var / sd2(t), 0, 1)[0]
    if improved:
        return flow
    moved = quadrature.dblquad(lambda s, t: 2 * var * sd2(s) / sd2(t) ** 2, 0, 1, lambda t: t, 1)[0]
    return flow_share * flow + (1 - flow_share) * moved


@pytest.mark.parametrize(("improved", "flow_share"), [(True, 0.5), (False, 0.5), (False, 0.2)])
def test_the_loss_of_the_optimum_is_its_closed_form(improved, flow_share):
    var, rows = 0.25, 20_000
    options = {"improved": improved, "flow_share": flow_share, "weight_power": 0.0}
    head, net, cond, x1 = gaussian(rows, torch.full((SIZE,), var), **options)
    loss = head.loss(net, x1, cond, torch.ones(rows, SHAPE[0], dtype=torch.bool), seeded(0)).item()
    assert loss == pytest.approx(least_loss(improved, flow_share, var), rel=0.02)


@pytest.mark.parametrize(("improved", "weight_power"), [(True, 0.0), (True, 1.0), (False, 0.0)])
def test_the_exact_average_velocity_is_a_fixed_point(improved, weight_power):
    """At the optimum the gradient is noise around 0; a little beside it, it points back."""
    rows = 20_000
    head, net, cond, x1 = gaussian(rows, improved=improved, weight_power=weight_power)
    mask = torch.ones(rows, SHAPE[0], dtype=torch.bool)
    for parameter, noise in ((net.bias, 0.03), (net.gain, 0.03)):
        gradients = []
        for value in (-0.3, 0.0, 0.3):
            parameter.data.fill_(value)
            loss = head.loss(net, x1, cond, mask, seeded(0))
            gradients.append(torch.autograd.grad(loss, parameter)[0].item())
        parameter.data.zero_()
        assert abs(gradients[1]) < noise
        assert gradients[0] < -0.1 < 0.1 < gradients[2]


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
    t, end = torch.rand(2, 6, dtype=torch.float64).sort(dim=0)[0]

    def average(x: Tensor, t: Tensor, end: Tensor = end) -> Tensor:
        return net(x, head.prepare(net, t, end - t, cond))

    derivative = head.derivative(net, x, velocity, t, end - t, cond)
    assert not derivative.requires_grad
    with torch.no_grad():
        direction = average(x, t, t) if improved else velocity
        h = 1e-5
        differences = (average(x + h * direction, t + h) - average(x - h * direction, t - h)) / (2 * h)
    torch.testing.assert_close(derivative, differences, atol=1e-6, rtol=1e-5)
    assert differences.abs().max() > 0.1
    other = head.derivative(net, x, velocity + 1, t, end - t, cond)
    assert torch.equal(derivative, other) == improved  # then nothing of the drawn noise is left in it


class Ask(nn.Module):
    """Notes the lengths it was asked to embed."""

    def __init__(self):
        super().__init__()
        self.lengths: list[Tensor] = []

    def forward(self, length: Tensor) -> Tensor:
        self.lengths.append(length)
        return length[..., None]


@pytest.mark.parametrize(("flow_share", "flow_rows"), [(0.75, 75), (0.5, 50), (0.001, 0), (0.999, 99)])
def test_the_share_of_the_batch_without_an_interval(tiny, flow_share, flow_rows):
    head = MeanFlowHead(MeanFlowConfig(flow_share=flow_share, improved=False), 1)
    net = NETS["mlp"][1](tiny(NETS, "mlp"), SHAPE, 1)
    head.length = ask = Ask()  # pyright: ignore[reportAttributeAccessIssue]
    head.loss(net, torch.randn(100, *SHAPE), torch.zeros(100, 1), torch.ones(100, 3, dtype=torch.bool), seeded(0))
    everything, intervals = ask.lengths
    assert (everything == 0).sum() == flow_rows
    assert (everything >= 0).all()
    assert len(intervals) == 100 - flow_rows


class Wavy(Net):
    """A fixed smooth function without random numbers."""

    def prepare(self, t: Tensor, cond: Tensor, per_action: bool = False) -> Tensor:
        return torch.cat([t[..., None] / TIME_SCALE, cond.expand(*t.shape, -1)], dim=-1)

    def forward(self, x_BTA: Tensor, modulation: Tensor) -> Tensor:
        return torch.sin(x_BTA + modulation.sum(dim=-1)[:, None, None])


@pytest.mark.parametrize(
    ("options", "golden"),
    [
        ({}, 2.93620),
        ({"improved": False, "flow_share": 0.75, "weight_power": 0.0}, 3.24452),
        ({"time": "beta", "weight_power": 0.5}, 3.13637),
    ],
)
def test_golden_loss(options, golden):
    """Same draws, same loss, from release to release: what resumed and repeated runs rely on."""
    head = MeanFlowHead(MeanFlowConfig(**options), SIZE + 1)
    head.length = LastPlace()  # pyright: ignore[reportAttributeAccessIssue]
    x1 = torch.linspace(-1, 1, 8 * SIZE).view(8, *SHAPE)
    mask = torch.arange(3) < 1 + torch.arange(8)[:, None] % 3
    loss = head.loss(Wavy(), x1, torch.zeros(8, SIZE + 1), mask, seeded(0))
    assert loss.item() == pytest.approx(golden, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": "cosine"}, "head.time='cosine' is unknown; choices: uniform, beta, logit_normal"),
        ({"flow_share": 1.0}, r"head.flow_share=1.0 must lie inside \(0, 1\)"),
        ({"flow_share": 0.0}, r"head.flow_share=0.0 must lie inside \(0, 1\)"),
        ({"weight_power": -1.0}, r"head.weight_power=-1.0 must lie in 0\.\.2"),
        ({"weight_power": math.nan}, r"head.weight_power=nan must lie in 0\.\.2"),
        ({"steps": 0}, r"head.steps=0 must lie in 1\.\.1000"),
    ],
)
def test_a_wrong_option_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        MeanFlowConfig(**options)
