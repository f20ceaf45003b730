"""A time for each action of the chunk: what is already decided has t=1 while the rest is still noise."""

from __future__ import annotations

import pytest
import torch
from scipy.fft import dct
from torch import Tensor

from policies.conditioning import Conditioning, split
from policies.nets import NETS
from policies.nets.base import Net
from policies.nets.mlp import cosines
from policies.nets.unet1d import UNet1D, coarsen
from tests.cases import some

COND = 5
SIZES = [(5, 3, 2), (2, 5, 3), (4, 4, 4), (3, 3, 2), (2, 7, 1), (3, 1, 2), (1, 8, 8)]  # B, T, A; some coincide
KINDS = [*NETS, "attending"]
SHARED = some(
    [(kind, *size) for kind in KINDS for size in SIZES], [(kind, *size) for kind in KINDS for size in SIZES[:5:2]]
)


@pytest.fixture
def make_net(tiny, randomize):
    def make(kind: str, horizon: int, action: int, random_weights: bool = True, **options) -> Net:
        if kind == "attending":
            kind, options, tokens = "transformer", {"cross_attention": True, **options}, (2, 2)
        else:
            tokens = (0, 0)
        net = NETS[kind][1](tiny(NETS, kind, **options), (horizon, action), COND - 2 * tokens[0], tokens)
        if random_weights:
            randomize(net)
        return net

    return make


def inputs(rows: int, horizon: int, action: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(rows, horizon, action), torch.rand(rows, horizon), torch.randn(rows, COND)


def given(net: Net, cond: Tensor) -> Conditioning:
    """Of which the last numbers are the tokens of a net that attends."""
    return split(cond, getattr(net, "tokens", (0, 0)))


@pytest.mark.parametrize(("kind", "rows", "horizon", "action"), SHARED)
def test_equal_times_are_one_time(make_net, kind, rows, horizon, action):
    net = make_net(kind, horizon, action)
    x, _, cond = inputs(rows, horizon, action)
    t = torch.rand(4, rows)  # four solver steps; as many as rows and actions in one case
    one, each = (
        net.prepare(t, given(net, cond)),
        net.prepare(t[..., None].expand(4, rows, horizon), given(net, cond), per_action=True),
    )
    for k in range(4):
        torch.testing.assert_close(net(x, each[k]), net(x, one[k]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "rows", "horizon", "action"), SHARED)
def test_each_row_sees_its_own_times(make_net, kind, rows, horizon, action):
    net = make_net(kind, horizon, action)
    x, t, cond = inputs(rows, horizon, action)
    output = net(x, net.prepare(t, given(net, cond), per_action=True))
    assert output.shape == x.shape
    for i in range(rows):
        row = slice(i, i + 1)
        alone = net(x[row], net.prepare(t[row], given(net, cond[row]), per_action=True))
        torch.testing.assert_close(alone, output[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "rows", "horizon", "action"), SHARED)
def test_preparing_all_steps_at_once_is_preparing_them_one_by_one(make_net, kind, rows, horizon, action):
    net = make_net(kind, horizon, action)
    x, _, cond = inputs(rows, horizon, action)
    t = torch.rand(4, rows, horizon)
    prepared = net.prepare(t, given(net, cond), per_action=True)
    one = given(net, cond)
    each = Conditioning(one.vector_BE.expand(4, -1, -1), one.tokens_BNW)
    together = net(x.repeat(4, 1, 1), net.prepare(t, each, per_action=True).flatten())
    for k in range(4):
        expected = net(x, net.prepare(t[k], given(net, cond), per_action=True))
        torch.testing.assert_close(net(x, prepared[k]), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together[k * rows : (k + 1) * rows], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("horizon", [3, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_it_matters_which_action_has_which_time(make_net, kind, horizon):
    """Chunks of equal actions, one of which is said to be decided: another one, another output."""
    net = make_net(kind, horizon, 2)
    t = torch.full((horizon, horizon), 0.3).fill_diagonal_(1.0)
    modulation = net.prepare(t, given(net, torch.ones(horizon, COND)), per_action=True)
    outputs = net(torch.ones(horizon, horizon, 2), modulation).flatten(1)
    distance = torch.cdist(outputs, outputs).fill_diagonal_(torch.inf)
    assert distance.min() > 1e-2


@pytest.mark.parametrize(("rows", "horizon"), [(3, 4), (4, 4), (2, 5), (1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_time_and_every_weight(make_net, kind, rows, horizon):
    net = make_net(kind, horizon, 3)
    x, t, cond = inputs(rows, horizon, 3)
    t.requires_grad_()
    net(x, net.prepare(t, given(net, cond), per_action=True)).square().sum().backward()
    for name, p in [*net.named_parameters(), ("t", t)]:
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert (p.grad != 0).any(), name
    assert (t.grad != 0).all()


@pytest.mark.parametrize("kind", [k if k == "mlp" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_a_net_learns_to_rely_on_what_is_decided(make_net, kind):
    """One action of each chunk is decided, the others are noise of the same size: only the times tell which."""
    rows, horizon = 64, 4
    net = make_net(kind, horizon, 1, random_weights=False, width=32)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)
    losses = []
    for _ in range(150):
        x, decided = torch.randn(rows, horizon, 1), torch.randint(horizon, (rows,))
        t = torch.zeros(rows, horizon).scatter_(1, decided[:, None], 1.0)
        target = x[torch.arange(rows), decided][:, None].expand_as(x)
        loss = (net(x, net.prepare(t, given(net, torch.zeros(rows, COND)), per_action=True)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.1  # 0.75 for the mean of all four, which is the best without the times


def test_the_waves_of_the_mlp_are_the_cosine_transform():
    """Orthogonal, so that no difference of times is lost; in every feature another wave, then the same ones again."""
    expected = torch.from_numpy(dct(torch.eye(6).double().numpy(), norm="ortho"))
    torch.testing.assert_close(cosines(6, 6).double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(cosines(6, 15), torch.cat([cosines(6, 6)] * 3, dim=1)[:, :15])


def test_the_unet_modulates_a_coarse_step_by_the_mean_of_its_actions(make_net):
    net = make_net("unet1d", 7, 2, down_dims=[8, 16, 16])
    assert isinstance(net, UNet1D)
    _, t, cond = inputs(3, 7, 2)
    films = net._unpack(net.prepare(t, given(net, cond), per_action=True).timed)
    alone = [net._unpack(net.prepare(t[:, i], given(net, cond)).timed) for i in range(7)]
    means = {0: [[i] for i in range(7)], 1: [[0, 1], [2, 3], [4, 5], [6]]}
    for level, members in means.items():
        for stage, film in enumerate(films[level]):
            for step, actions in enumerate(members):
                expected = sum(alone[i][level][stage][..., 0] for i in actions) / len(actions)
                torch.testing.assert_close(film[..., step], expected)
    assert films[2][0].shape == (3, 4 * 16, 2)


def test_an_odd_step_is_its_own_neighbour():
    x = torch.arange(10.0).view(1, 5, 2)
    assert coarsen(x).tolist() == [[[1.0, 2.0], [5.0, 6.0], [8.0, 9.0]]]
    assert coarsen(coarsen(x)).tolist() == [[[3.0, 4.0], [8.0, 9.0]]]
