"""Real-time chunking in the flow head, against finite differences and against Gaussians in closed form."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from policies.conditioning import Conditioning
from policies.generation.prefix import FORMS, Prefix, first
from policies.heads.flow import PREDICTIONS, FlowConfig, FlowHead
from policies.nets import NETS
from policies.nets.base import Modulation, Net
from tests.cases import some

COND = 32  # as in test_heads.py
GUIDED = ("exact", "identity")
T, A = 4, 4
NONE, SOME, ALL = [0, 0, 0, 0, 0, 0], [0, 1, 2, 0, 3, 4], [0, 3, 2, 4, 4, 4]  # no step, delays, overlaps


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prefix_of(actions: Tensor, form: str, delay: list[int] = SOME, overlap: list[int] = ALL) -> Prefix:
    return Prefix(actions, torch.tensor(delay), torch.tensor(overlap), form)


@pytest.fixture
def make(tiny, randomize):
    """A flow head, a random net, and the conditioning, noise and previous chunks of six rows."""

    def make(net: str = "mlp", dtype: torch.dtype = torch.float32, **options):
        head, module = FlowHead(FlowConfig(**options), COND), NETS[net][1](tiny(NETS, net, width=32), (T, A), COND)
        for part in (head, module):
            randomize(part)
            part.to(dtype)
        return head, module, *(torch.randn(shape, dtype=dtype) for shape in ((6, COND), (6, T, A), (6, T, A)))

    return make


def reference(head: FlowHead, net: Net, noise: Tensor, cond: Tensor, known: Tensor, weight: Tensor) -> Tensor:
    """Real-time chunking on the linear path, its Jacobian from central differences.

    With Euler steps, or with the multistep ones of Lu 2022b (Algorithm 2), which see the data at the pull's end.
    """
    x, beta, width, prediction = noise, head.config.max_guidance, 1e-5, head.config.prediction
    times, kept = head.grid, []
    moves = width * torch.eye(T * A, dtype=x.dtype).view(-1, 1, T, A)

    def expected(x: Tensor, t: float) -> Tensor:
        rows = x.reshape(-1, T, A)
        n = (t**2 + (1 - t) ** 2) ** 0.5  # Karras 2022 for data of spread 1, on the linear path
        output = net(
            rows / n if prediction == "preconditioned" else rows,
            net.prepare(
                torch.full((len(rows),), t, dtype=x.dtype), Conditioning(cond.repeat(len(rows) // len(cond), 1))
            ),
        )
        data = {"data": output, "velocity": rows + (1 - t) * output}
        data["preconditioned"] = t / n**2 * rows + (1 - t) / n * output
        return data[prediction].view_as(x)

    for t, after in pairwise(times):
        x1 = expected(x, t)
        columns = (expected(x + moves, t) - expected(x - moves, t)) / (2 * width)  # d x1 / d x[i], for each i
        pull = (weight * (known - x1) * columns).sum(dim=(2, 3)).T.view_as(x)
        strength = min(beta, (1 - t) / t * (t**2 + (1 - t) ** 2) / (1 - t) ** 2) if t else beta
        velocity = (x1 - x) / (1 - t) + strength * pull
        if head.config.solver == "euler":
            x = x + (after - t) * velocity
            continue
        kept.append((math.log(t / (1 - t)) if t else -math.inf, x + (1 - t) * velocity))
        (now, data), ahead = kept[-1], math.log(after / (1 - after)) if after < 1 else math.inf
        if len(kept) > 1 and after < 1 and kept[-2][0] > -math.inf:
            before, earlier = kept[-2]
            data = data + (ahead - now) / (now - before) / 2 * (data - earlier)
        x = (1 - after) / (1 - t) * x + after * (1 - math.exp(now - ahead)) * data
    return x


GRIDS = [("euler", "uniform"), ("euler", "power"), ("multistep", "tabulated")]
EXACT = [(solver, grid, prediction, net) for solver, grid in GRIDS for prediction in PREDICTIONS for net in NETS]


@pytest.mark.parametrize(
    ("solver", "grid", "prediction", "net"),
    some(EXACT, [c for c in EXACT if c[3] == "mlp" or c[:3] == (*GRIDS[1], "data")]),
)
def test_exact_is_the_algorithm_with_a_finite_difference_jacobian(make, net, prediction, solver, grid):
    head, net, cond, noise, known = make(net, torch.float64, prediction=prediction, steps=4, solver=solver, grid=grid)
    head.times = torch.tensor(head.grid[:-1], dtype=torch.float64)  # as exact as the reference
    hard = torch.zeros(6, T, 1, dtype=torch.float64)
    hard[1:, :2] = 1  # delay and overlap 2: a weight of 1 or 0
    prefix = prefix_of(known, "exact", [0, 2, 2, 2, 2, 2], [0, 2, 2, 2, 2, 2])
    with torch.no_grad():
        found = head.continue_chunk(net, noise, Conditioning(cond), prefix)
        torch.testing.assert_close(found, reference(head, net, noise, cond, known, hard), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("net", NETS)
def test_the_jacobian_of_a_net_makes_a_difference(make, net):
    """Exact and identity differ by more than a tenth of what either changes."""
    head, net, cond, noise, known = make(net)
    with torch.no_grad():
        exact, identity = (
            head.continue_chunk(net, noise, Conditioning(cond), prefix_of(known, form)) for form in GUIDED
        )
        plain = head.sample(net, noise, Conditioning(cond))
    for changed in (exact, identity):
        assert (exact - identity).norm() > 0.1 * (changed - plain).norm() > 0


class Shift(Net):
    """Predicts the data as x plus something of the conditioning: its Jacobian is the identity."""

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        return Modulation(cond.vector_BE[:, :1].expand(*t.shape, 1))

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        return x_BTA + modulation.timed[..., None]


def test_where_the_jacobian_is_the_identity_the_forms_agree(make):
    head, _, cond, noise, known = make()
    exact, identity = (
        head.continue_chunk(Shift(), noise, Conditioning(cond), prefix_of(known, form)) for form in GUIDED
    )
    torch.testing.assert_close(exact, identity, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(exact, head.sample(Shift(), noise, Conditioning(cond)))


class GaussianNet(Net):
    """The optimum for chunks from N(0, covariance) along alpha x1 + sigma x0, at one time or one for each action."""

    def __init__(self, head: FlowHead, covariance: Tensor):
        super().__init__()
        self.head, self.covariance = head, covariance

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        return Modulation(t if per_action else t[..., None])

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        t = modulation.timed[..., None].expand_as(x_BTA).flatten(1)
        c = self.head.path(t)
        total = c.alpha[:, :, None] * self.covariance * c.alpha[:, None] + torch.diag_embed(c.sigma**2)
        size = (c.alpha**2 + c.sigma**2).sqrt()
        prediction = self.head.config.prediction
        x = x_BTA.flatten(1) * (size if prediction == "preconditioned" else 1)
        whitened = torch.linalg.solve(total, x)
        data = (c.alpha * whitened) @ self.covariance
        outputs = {"data": data, "velocity": c.d_alpha * data + c.d_sigma * c.sigma * whitened}
        outputs["preconditioned"] = c.sigma * (data - c.alpha * whitened) / size
        return outputs[prediction].view_as(x_BTA)


@pytest.mark.parametrize(
    ("path", "steps", "tolerance"), [("linear", 3, 1e-5), ("linear", 20, 1e-5), ("cosine", 40, 0.1)]
)
def test_for_independent_actions_of_variance_one_exact_hits_the_prefix(make, path, steps, tolerance):
    """There v' is the velocity (y - x) / (1 - t) of the path to y itself, and nothing else changes."""
    head, _, cond, noise, known = make(path=path, steps=steps, max_guidance=1000.0)
    net = GaussianNet(head, torch.eye(T * A))
    counts = [0, 1, 2, 0, 3, 4]
    found, plain = (
        head.continue_chunk(net, noise, Conditioning(cond), prefix_of(known, "exact", counts, counts)),
        head.sample(net, noise, Conditioning(cond)),
    )
    held = first(torch.tensor(counts), T)
    torch.testing.assert_close(found[held], known[held], atol=tolerance, rtol=0)
    assert torch.equal(found[~held], plain[~held])


def smooth_chunks(rows: int, horizon: int, length: float) -> tuple[Tensor, Tensor]:
    """Chunks (rows, horizon, 1) of a smooth Gaussian process of variance 1, and its covariance."""
    place = torch.arange(horizon, dtype=torch.float64)
    covariance = torch.exp(-((place[:, None] - place) ** 2) / (2 * length**2)) + 1e-4 * torch.eye(horizon)
    chunks = torch.randn(rows, horizon, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    return chunks.float()[..., None], covariance.float()


@pytest.mark.parametrize("form", GUIDED)
def test_the_stronger_the_pull_the_closer_to_the_prefix_and_the_earlier_the_step(form):
    """Ordered by strength, by the soft mask over the steps; and what follows continues what is held."""
    previous, covariance = smooth_chunks(400, 8, 2.0)
    noise, cond = torch.randn(400, 8, 1), torch.zeros(400, 1)
    delay, overlap = torch.full((400,), 2), torch.full((400,), 6)
    errors = []
    for strength in (0.0, 1.0, 5.0):
        head = FlowHead(FlowConfig(steps=8, max_guidance=strength), 1)
        chunks = head.continue_chunk(
            GaussianNet(head, covariance), noise, Conditioning(cond), Prefix(previous, delay, overlap, form)
        )
        errors.append((chunks - previous).square().mean(dim=(0, 2)).sqrt())
    assert errors[0].min() > 1  # two independent draws
    assert (errors[1][:6] < 0.95 * errors[0][:6]).all()
    assert (errors[2][:6] < 0.95 * errors[1][:6]).all()
    steps = errors[2]
    assert (steps[:2] < 0.25).all()
    assert steps[0] < steps[3] < steps[5] < steps[7]
    assert steps[6] < 0.98 * errors[0][6]  # past the overlap: a smooth chunk goes on from what was before


def test_too_strong_a_pull_makes_identity_diverge_and_exact_not():
    previous, covariance = smooth_chunks(50, 8, 2.0)
    head, four = FlowHead(FlowConfig(steps=4, max_guidance=1000.0), 1), torch.full((50,), 4)
    errors = {
        form: (
            head.continue_chunk(
                GaussianNet(head, covariance),
                torch.randn(50, 8, 1),
                Conditioning(torch.zeros(50, 1)),
                Prefix(previous, four, four, form),
            )
            - previous
        )[:, :4]
        .abs()
        .max()
        for form in GUIDED
    }
    assert errors["exact"] < 1
    assert errors["identity"] > 10


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("form", GUIDED)
def test_rows_are_independent_and_one_that_continues_nothing_is_the_plain_sampler_bit_for_bit(make, net, form):
    head, net, cond, noise, known = make(net)
    delay, overlap = torch.tensor(SOME), torch.tensor(ALL)
    with torch.no_grad():
        plain, found = (
            head.sample(net, noise, Conditioning(cond)),
            head.continue_chunk(net, noise, Conditioning(cond), prefix_of(known, form)),
        )
        order = torch.randperm(6)
        moved = Prefix(known[order], delay[order], overlap[order], form)
        assert torch.equal(head.continue_chunk(net, noise[order], Conditioning(cond[order]), moved), found[order])
        assert torch.equal(
            head.continue_chunk(net, noise, Conditioning(cond), prefix_of(known, form, NONE, NONE)), plain
        )
    assert found.isfinite().all()
    assert torch.equal(found[0], plain[0])
    assert all((found[row] != plain[row]).any() for row in range(1, 6))
    beyond = torch.where(first(overlap, T)[..., None], known, torch.nan)
    net.requires_grad_(False)  # as loaded: the derivative is one in x alone
    with torch.no_grad():
        assert torch.equal(head.continue_chunk(net, noise, Conditioning(cond), prefix_of(beyond, form)), found)


SOLVED = [
    ("velocity", "rk4", "uniform"),
    ("velocity", "heun", "uniform"),
    ("data", "midpoint", "uniform"),
    ("preconditioned", "heun", "power"),
    *((prediction, "multistep", grid) for prediction in PREDICTIONS for grid in ("uniform", "tabulated")),
]


@pytest.mark.parametrize(("prediction", "solver", "grid"), SOLVED)
@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("form", FORMS)
def test_every_solver_and_path_leads_to_the_prefix(prediction, solver, grid, path, form):
    known, covariance = smooth_chunks(50, T, 1.0)
    options = {"prediction": prediction, "solver": solver, "grid": grid, "path": path}
    head = FlowHead(FlowConfig(steps=8, prefix_max=3, **options), 1)
    counts = torch.arange(50) % 4
    found = head.continue_chunk(
        GaussianNet(head, covariance),
        torch.randn(50, T, 1),
        Conditioning(torch.zeros(50, 1)),
        Prefix(known, counts, counts, form),
    )
    assert found.isfinite().all()
    assert (found - known)[first(counts, T)].square().mean().sqrt() < 0.3


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("solver", ["midpoint", "multistep"])
def test_what_follows_a_held_prefix_is_drawn_from_the_conditional_distribution(prediction, solver):
    """The optimal flow given the prefix carries noise x0 to E + Cov^(1/2) x0 of the rest given the prefix."""
    known, covariance = smooth_chunks(30, 6, 1.5)
    head = FlowHead(FlowConfig(prediction=prediction, solver=solver, steps=100, prefix_max=4), 1)
    noise = torch.randn(30, 6, 1)
    for d in (0, 1, 4):
        delay = torch.full((30,), d)
        prefix = Prefix(known, delay, delay, "trained")
        found = head.continue_chunk(GaussianNet(head, covariance), noise, Conditioning(torch.zeros(30, 1)), prefix)[
            ..., 0
        ]
        gain = torch.linalg.solve(covariance[:d, :d], covariance[:d, d:])
        values, vectors = torch.linalg.eigh(covariance[d:, d:] - covariance[d:, :d] @ gain)
        root = vectors * values.clamp(min=0).sqrt() @ vectors.T
        expected = known[:, :d, 0] @ gain + noise[:, d:, 0] @ root
        torch.testing.assert_close(found[:, d:], expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("net", NETS)
def test_trained_holds_the_prefix_and_lets_the_rest_follow_from_it(make, net):
    head, net, cond, noise, known = make(net, prefix_max=3)
    counts = [0, 1, 2, 0, 3, 2]
    held = first(torch.tensor(counts), T)
    prefix = prefix_of(torch.where(held[..., None], known, 1e3), "trained", counts, ALL)
    with torch.no_grad():
        found, plain = (
            head.continue_chunk(net, noise, Conditioning(cond), prefix),
            head.sample(net, noise, Conditioning(cond)),
        )
        other = head.continue_chunk(net, noise, Conditioning(cond), prefix_of(known + 1, "trained", counts, ALL))
        order = torch.randperm(6)
        moved = Prefix(prefix.actions_BTA[order], prefix.delay_B[order], prefix.overlap_B[order], "trained")
        assert torch.equal(head.continue_chunk(net, noise[order], Conditioning(cond[order]), moved), found[order])
    assert torch.equal(found[held], known[held])
    torch.testing.assert_close(found[[0, 3]], plain[[0, 3]], atol=1e-5, rtol=1e-5)
    for row in (1, 2, 4, 5):
        assert not torch.allclose(found[row, counts[row] :], other[row, counts[row] :])
        assert not torch.allclose(found[row, counts[row] :], plain[row, counts[row] :])


class Recorder(Net):
    """Keeps what it is shown at every call and predicts a parameter (T, A)."""

    def __init__(self):
        super().__init__()
        self.answer, self.seen = nn.Parameter(torch.randn(T, A)), []

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        self.t, self.per_action = t, per_action
        return Modulation(t if per_action else t[..., None])

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        self.seen.append(x_BTA)
        return self.answer.expand_as(x_BTA)


def test_at_every_evaluation_the_net_sees_the_held_actions_at_time_one(make):
    head, _, cond, noise, known = make(prediction="velocity", solver="rk4", steps=2, prefix_max=3)
    counts, net = [0, 1, 2, 0, 3, 2], Recorder()
    held = first(torch.tensor(counts), T)
    head.continue_chunk(net, noise, Conditioning(cond), prefix_of(known, "trained", counts, ALL))
    assert net.per_action
    assert net.t[:, 0].tolist() == [[t] * T for t in (0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1)]
    assert (net.t[:, held] == 1).all()
    assert torch.equal(net.t[:, 1, 1:], net.t[:, 0, 1:])
    assert len(net.seen) == head.evaluations == 8
    assert all(torch.equal(x[held], known[held]) for x in net.seen)


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_training_shows_a_clean_prefix_and_learns_only_what_follows_it(make, path, prediction):
    rows, longest = 400, 2
    head, net = make(prefix_max=longest, path=path, prediction=prediction, draws=2)[0], Recorder()
    x1, cond, mask = (
        torch.randn(rows, T, A),
        torch.randn(rows, COND),
        torch.arange(T) < torch.tensor([[T], [T - 1]] * 200),
    )
    loss = head.loss(net, x1, Conditioning(cond), mask, seeded(0))
    assert net.per_action
    assert net.t.shape == (2, rows, T)
    counts = (net.t == 1).sum(dim=-1)
    assert torch.equal(net.t == 1, first(counts, T))
    assert (net.t[..., longest:] == net.t[..., -1:]).all()
    shares = torch.bincount(counts.flatten()) / counts.numel()
    torch.testing.assert_close(
        shares, torch.full((longest + 1,), 1 / 3), atol=4 * (2 / 9 / counts.numel()) ** 0.5, rtol=0
    )
    held = first(counts, T).flatten(0, 1)
    x, data = net.seen[0], x1.repeat(2, 1, 1)
    assert torch.equal(x[held], data[held])
    assert (x != data)[~held].all()
    counted = mask.repeat(2, 1) & ~held
    with torch.no_grad():
        net.answer[0] = 1e3  # wrong in the first step, which counts only where nothing is held
    changed = head.loss(net, x1, Conditioning(cond), mask, seeded(0))
    first_share = counted[:, 0].sum() / counted.sum()
    assert changed.item() == pytest.approx(1e6 * first_share.item(), rel=0.01)
    assert loss < 10


def test_the_loss_where_everything_learned_is_masked_is_zero_and_training_without_prefixes_is_unchanged(make):
    head, net, cond, noise, x1 = make(prefix_max=0)
    mask = torch.ones(6, T, dtype=torch.bool)
    assert head.null is None
    plain = FlowHead(FlowConfig(), COND).loss(net, x1, Conditioning(cond), mask, seeded(0))
    assert torch.equal(head.loss(net, x1, Conditioning(cond), mask, seeded(0)), plain)
    recorder = Recorder()
    head.loss(recorder, x1, Conditioning(cond), mask, seeded(0))
    head.sample(recorder, noise, Conditioning(cond))
    assert not recorder.per_action


@pytest.mark.parametrize("net", NETS)
def test_gradients_are_finite_and_reach_every_weight(make, net):
    head, net, cond, _, x1 = make(net, prefix_max=3, condition_dropout=0.3)
    cond.requires_grad_()
    head.loss(net, x1, Conditioning(cond), torch.ones(6, T, dtype=torch.bool), seeded(0)).backward()
    for name, value in [*head.named_parameters(), *net.named_parameters(), ("cond", cond)]:
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name
        assert (value.grad != 0).any(), name


def test_a_prefix_as_long_as_the_chunk_is_an_error(make):
    head, net, cond, _, x1 = make(prefix_max=T)
    with pytest.raises(
        ValueError, match=r"head.prefix_max=4 leaves nothing to predict of a chunk of 4 steps; .* most 3"
    ):
        head.loss(net, x1, Conditioning(cond), torch.ones(6, T, dtype=torch.bool), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix_max": -1}, "head.prefix_max=-1 must lie in 0..1000"),
        ({"max_guidance": float("nan")}, "head.max_guidance=nan must lie in 0..1000"),
    ],
)
def test_a_wrong_option_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        FlowConfig(**options)
