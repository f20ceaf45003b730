"""Minibatch optimal transport: the exact assignment, and what it does to a conditional distribution."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from policies.conditioning import Conditioning
from policies.generation.coupling import assignment, chunk_distance, couple
from policies.heads.flow import FlowConfig, FlowHead
from policies.nets.base import Modulation, Net


def costs(x0: Tensor, x1: Tensor, cond: Tensor, mask: Tensor, weight: float) -> np.ndarray:
    """The cost of every pairing, entry by entry from its definition."""
    B, size = len(x0), x0[0].numel()
    apart = np.array([[float((a - b).square().sum()) for b in cond.double()] for a in cond.double()])
    cost = weight * apart / max(apart.mean(), 1e-30)
    for i, j in itertools.product(range(B), range(B)):
        cost[i, j] += float(((x0[i] - x1[j]).double().square() * mask[j][:, None]).sum()) / size
    return cost


def random_batch(rows: int, horizon: int = 4, action: int = 4, width: int = 3):
    x0, x1 = torch.randn(2, rows, horizon, action), torch.randn(rows, horizon, action)
    mask = torch.arange(horizon) < 1 + torch.arange(rows)[:, None] % horizon
    return x0, x1, torch.randn(rows, width), mask


@pytest.mark.parametrize("rows", [1, 2, 4, 6])  # 4: as many rows as steps, actions
@pytest.mark.parametrize("weight", [0.0, 0.3, 100.0])
def test_the_assignment_is_the_best_of_all_permutations(rows, weight):
    x0, x1, cond, mask = random_batch(rows)
    paired = couple(x0, x1, cond, mask, weight)
    assert paired.shape == x0.shape
    for noise, taken in zip(x0, paired, strict=True):
        order = [int((noise == row).flatten(1).all(dim=1).nonzero()) for row in taken]  # row j took noise order[j]
        assert sorted(order) == list(range(rows))
        cost = costs(noise, x1, cond, mask, weight)
        least = min(sum(cost[i, j] for j, i in enumerate(p)) for p in itertools.permutations(range(rows)))
        assert sum(cost[i, j] for j, i in enumerate(order)) == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.1, 3.0])
def test_noise_is_only_reordered_and_never_at_a_higher_cost_than_before(weight):
    x0, x1, cond, mask = random_batch(64)
    paired = couple(x0, x1, cond, mask, weight)
    before, after = (torch.stack([chunk_distance(draw, x1, mask).diagonal().sum() for draw in n]) for n in (x0, paired))
    assert (after < before).all()  # moving noise costs condition distance, so chunk distance must more than pay for it
    for noise, taken in zip(x0.flatten(2), paired.flatten(2), strict=True):
        assert sorted(noise.tolist()) == sorted(taken.tolist())
    assert (paired[0] != x0[0]).any()
    assert (paired[0] != paired[1]).any()


def test_steps_that_do_not_count_have_no_say():
    x0, x1, cond, mask = random_batch(16)
    expected = couple(x0, x1, cond, mask, 1.0)
    assert torch.equal(couple(x0, torch.where(mask[..., None], x1, 1e3), cond, mask, 1.0), expected)
    assert not torch.equal(couple(x0, torch.where(mask[..., None], 1e3, x1), cond, mask, 1.0), expected)


def test_noise_stays_with_its_condition_when_that_counts_enough_and_goes_anywhere_among_equal_ones():
    x0, x1, cond, mask = random_batch(40)  # above 25 rows torch would by itself compute distances that are never 0
    assert torch.equal(couple(x0, x1, cond, mask, 1e9), x0)
    free = couple(x0, x1, cond, mask, 0.0)
    assert torch.equal(couple(x0, x1, cond[:1].expand(40, -1), mask, 1e9), free)
    halves = cond[:2].repeat(20, 1)  # two conditions, row by row in turn
    paired = couple(x0, x1, halves, mask, 1e9)
    for half in (slice(0, None, 2), slice(1, None, 2)):
        assert torch.equal(paired[:, half], couple(x0[:, half], x1[half], cond[half], mask[half], 0.0))


def test_low_precision_and_non_finite_rows_do_not_stop_training():
    x0, x1, cond, mask = random_batch(16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(couple(x0, x1, cond, mask, 1.0), couple(x0, x1, cond, mask, 1.0).float())
        found = chunk_distance(x0[0], x1, mask).double()
    expected = torch.from_numpy(costs(x0[0], x1, cond, mask, 0.0))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    cond[3], x1[5] = torch.nan, torch.inf  # the loss will say so; scipy would raise an error that names nothing
    assert sorted(couple(x0, x1, cond, mask, 1.0)[0].flatten().tolist()) == sorted(x0[0].flatten().tolist())
    assert sorted(assignment(torch.full((4, 4), torch.nan)).tolist()) == [0, 1, 2, 3]


SIDES = {-1.0: 0.2, 1.0: 0.8}  # condition: share of the chunks at +1; the others are at -1


def learned_shares(weight: float, steps: int, rows: int = 128, batches: int = 60) -> dict[float, float]:
    """Share of samples near +1 for each condition, by the best predictor of data that pairs of a coupling allow.

    The predictor is the mean of x1 over the pairs of one condition whose x_t fall into the same of 200 bins.
    """
    pairs = []
    for _ in range(batches):
        cond = torch.where(torch.rand(rows) < 0.5, -1.0, 1.0)
        share = torch.where(cond > 0, SIDES[1.0], SIDES[-1.0])
        x1 = torch.where(torch.rand(rows) < share, 1.0, -1.0)
        x0 = couple(torch.randn(1, rows, 1, 1), x1[:, None, None], cond[:, None], torch.ones(rows, 1) > 0, weight)
        pairs.append(torch.stack([cond, x0.flatten(), x1]))
    cond, x0, x1 = torch.cat(pairs, dim=1).numpy().astype(np.float64)
    shares = {}
    for side in SIDES:
        noise, data = x0[cond == side], x1[cond == side]
        x, edges = np.random.default_rng(0).standard_normal(4000), np.linspace(-4, 4, 201)
        for k in range(steps):
            t = k / steps
            place = np.digitize(t * data + (1 - t) * noise, edges)
            count = np.bincount(place, minlength=202)
            known = np.flatnonzero(count)
            mean = np.bincount(place, data, minlength=202)[known] / count[known]
            x += (np.interp(np.digitize(x, edges), known, mean) - x) / (1 - t) / steps
        shares[side] = float((x > 0).mean())
    return shares


def test_conditions_in_the_cost_keep_the_conditional_distribution_and_leaving_them_out_biases_it():
    """The shares 0.2 and 0.8 come out with the default weight; with weight 0 both conditions get the mixture's."""
    right, naive = (learned_shares(weight, steps=10) for weight in (FlowConfig().coupling_condition, 0.0))
    assert right == pytest.approx(SIDES, abs=0.03)
    assert naive == pytest.approx({-1.0: 0.5, 1.0: 0.5}, abs=0.1)


def test_the_flow_gets_straighter():
    """One step of the independent coupling ends at the mean of the ways; coupled it reaches one of them."""
    cond, mask = torch.zeros(256, 1), torch.ones(256, 1) > 0
    x0, x1 = torch.randn(8, 256, 1, 1), torch.where(torch.rand(256, 1, 1) < 0.5, -1.0, 1.0)
    for noise, least, most in ((x0, 0.0, 0.15), (couple(x0, x1, cond, mask, 100.0), 0.9, 1.0)):
        above = x1.expand_as(noise)[noise > 0.2].mean().item()  # E[x1 | x0], where one step from such noise ends
        assert least <= abs(above) <= most


class Recorder(Net):
    """Predicts zero and keeps what it was shown."""

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        self.t, self.cond = t, cond.vector_BE
        return Modulation(t[..., None])

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        self.x = x_BTA
        return torch.zeros_like(x_BTA)


@pytest.mark.parametrize("weight", [0.0, 100.0])
def test_the_flow_head_trains_on_the_coupled_noise(weight):
    _, x1, cond, mask = random_batch(12)
    noise = {}
    for coupling in ("independent", "optimal_transport"):
        head, net = FlowHead(FlowConfig(coupling=coupling, coupling_condition=weight, draws=2), 3), Recorder()
        head.loss(net, x1, Conditioning(cond), mask, torch.Generator().manual_seed(0))
        t = net.t[..., None, None]
        noise[coupling] = (net.x.unflatten(0, (2, 12)) - t * x1) / (1 - t)
    expected = couple(noise["independent"], x1, cond, mask, weight)
    torch.testing.assert_close(noise["optimal_transport"], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coupling": "sinkhorn"}, "head.coupling='sinkhorn' is unknown; choices: independent, optimal_transport"),
        ({"coupling_condition": -1.0}, r"head.coupling_condition=-1.0 must lie in 0..1e\+09"),
    ],
)
def test_a_wrong_option_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        FlowConfig(**options)
