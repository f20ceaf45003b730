"""What a prefix may say, how strongly each step of it counts, and that a policy takes it in physical units."""

from __future__ import annotations

import math

import pytest
import torch

from policies import Policy
from policies.generation.paths import PATHS
from policies.generation.prefix import FORMS, Prefix, first, pull_strength, soft_mask
from policies.heads import HEADS


def count(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def weight(i: int, d: int, H: int, s: int) -> float:
    """The soft mask of Black 2025 (arXiv 2506.07339, Eq. 5), case by case."""
    if i < d:
        return 1.0
    if i >= H - s:
        return 0.0
    c = (d - 1 - i) / (H - s - d + 1) + 1
    return c * (math.exp(c) - 1) / (math.e - 1)


@pytest.mark.parametrize("horizon", [1, 4, 9])
def test_the_soft_mask_is_that_of_the_paper(horizon):
    pairs = [(d, overlap) for overlap in range(horizon + 1) for d in range(overlap + 1)]
    delay, overlap = torch.tensor(pairs).T
    found = soft_mask(delay, overlap, horizon)
    expected = [[weight(i, d, horizon, horizon - o) for i in range(horizon)] for d, o in pairs]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)
    assert torch.equal(found == 1, first(delay, horizon))  # exactly, so that nothing outside is touched
    assert torch.equal(found > 0, first(overlap, horizon))


def test_the_pull_is_that_of_the_paper_on_the_linear_path_and_bounded_at_both_ends():
    t = torch.tensor([0.1, 0.25, 0.5, 0.6, 0.9], dtype=torch.float64)
    expected = (1 - t) / t * (t**2 + (1 - t) ** 2) / (1 - t) ** 2
    torch.testing.assert_close(pull_strength(PATHS["linear"](t), 1000.0), expected)
    torch.testing.assert_close(pull_strength(PATHS["linear"](t), 3.0), expected.clamp(max=3.0))
    for path in PATHS.values():
        assert pull_strength(path(torch.tensor([0.0, 1e-6, 1.0])), 5.0).tolist() == [5.0] * 3


def test_values_past_the_overlap_may_be_anything():
    actions = torch.randn(2, 4, 2)
    actions[0, 3], actions[1, 1:] = torch.nan, torch.inf
    assert Prefix(actions, count(0, 1), count(3, 1)).longest == 1
    with pytest.raises(ValueError, match="NaN or infinity before the end of the overlap"):
        Prefix(actions, count(0, 1), count(4, 1))


@pytest.mark.parametrize(
    ("delay", "overlap", "form", "message"),
    [
        (count(1, 2), count(3, 3), "soft", "prefix.form='soft' is unknown; choices: exact, identity, trained"),
        (count(1), count(3, 3), "exact", r"prefix.delay_B is torch.int64 of shape \(1,\), expected integers \(2,\)"),
        (count(1, 2), count(3, 3).float(), "exact", "prefix.overlap_B is torch.float32 .* expected integers"),
        (count(1, 2) > 1, count(3, 3), "exact", "prefix.delay_B is torch.bool"),
        (count(1, -1), count(3, 3), "exact", "row 1 has delay -1 and overlap 3; expected 0 <= delay <= overlap <= 4"),
        (count(1, 2), count(3, 1), "exact", "row 1 has delay 2 and overlap 1"),
        (count(1, 2), count(5, 2), "exact", "row 0 has delay 1 and overlap 5"),
    ],
)
def test_a_wrong_prefix_is_an_error(delay, overlap, form, message):
    with pytest.raises(ValueError, match=message):
        Prefix(torch.zeros(2, 4, 3), delay, overlap, form)


def test_actions_of_another_rank_are_an_error():
    with pytest.raises(ValueError, match=r"prefix.actions_BTA has shape \(2, 4\), expected \(B, T, A\)"):
        Prefix(torch.zeros(2, 4), count(0, 0), count(0, 0))


def inputs(policy: Policy, rows: int = 4) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator, history = torch.Generator().manual_seed(0), policy.chunk.history
    shapes = {name: (rows, history, *feature.shape) for name, feature in policy.spec.observation.items()}
    observation = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return observation, torch.randn(rows, *policy.noise_shape, generator=generator)


def sample(policy: Policy, rows: int = 4, prefix: Prefix | None = None) -> torch.Tensor:
    with torch.no_grad():
        return policy.sample(*inputs(policy, rows), prefix)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_policy_takes_the_prefix_in_physical_units(make_policy, form, guidance):
    """It is the head's chunk for normalized actions; a row that continues nothing is as without a prefix."""
    policy = make_policy(prefix_max=3, guidance=guidance, condition_dropout=0.2)
    plain, normalizer = sample(policy), policy.action_normalizer
    actions = plain + torch.randn_like(plain)
    actions[0] = torch.nan
    prefix = Prefix(actions, count(0, 2, 1, 3), count(0, 4, 1, 3), form)
    continued = sample(policy, prefix=prefix)
    observation, noise = inputs(policy)
    normalized = Prefix((actions - normalizer.shift) / normalizer.scale, prefix.delay_B, prefix.overlap_B, form)
    with torch.no_grad():
        chunks = policy.head.continue_chunk(policy.net, noise, policy.encode(observation), normalized)
    torch.testing.assert_close(continued, chunks * normalizer.scale + normalizer.shift)
    torch.testing.assert_close(continued[0], plain[0])
    assert not torch.allclose(continued[1:], plain[1:])
    if form == "trained":
        held = first(prefix.delay_B, 4)
        torch.testing.assert_close(continued[held], actions[held])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [kind for kind in HEADS if kind != "flow"])
def test_a_head_that_cannot_continue_a_chunk_says_which_can(make_policy, kind, form):
    policy = make_policy(head=kind)
    if form in policy.head.continues:
        return
    with pytest.raises(
        ValueError, match=rf"head={kind} cannot continue .* prefix.form='{form}'; heads that can: .*flow"
    ):
        sample(policy, prefix=Prefix(torch.zeros(4, 4, 2), count(0, 0, 0, 0), count(4, 4, 4, 4), form))


@pytest.mark.parametrize("shape", [(3, 4, 2), (4, 5, 2), (4, 4, 3)])
def test_a_prefix_of_another_shape_is_an_error(make_policy, shape):
    none = torch.zeros(shape[0], dtype=torch.int64)
    with pytest.raises(
        ValueError, match=rf"prefix.actions_BTA has shape \({shape[0]}, {shape[1]}, {shape[2]}\), expected"
    ):
        sample(make_policy(), prefix=Prefix(torch.zeros(shape), none, none))


@pytest.mark.parametrize("form", ["exact", "identity"])
def test_a_pull_in_a_single_step_is_an_error(make_policy, form):
    none = count(0, 0, 0, 0)
    with pytest.raises(ValueError, match=rf"prefix.form='{form}' needs head.steps of at least 2, got 1"):
        sample(make_policy(steps=1), prefix=Prefix(torch.zeros(4, 4, 2), none, none, form))


def test_a_prefix_that_the_policy_was_not_trained_for_is_an_error(make_policy):
    prefix = Prefix(torch.zeros(4, 4, 2), count(0, 1, 2, 0), count(3, 3, 3, 3), "trained")
    with pytest.raises(ValueError, match=r"needs a policy trained with head.prefix_max above 0; .* exact, identity"):
        sample(make_policy(), prefix=prefix)
    with pytest.raises(
        ValueError, match=r"a delay of 2 steps, but the policy was trained for at most head.prefix_max=1"
    ):
        sample(make_policy(prefix_max=1), prefix=prefix)
