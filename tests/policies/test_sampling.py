"""Fields that a trained head may sample with otherwise: every head's, each proved to touch neither loss nor weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch

from policies import Policy
from policies.generation.coupling import COUPLINGS
from policies.generation.grids import GRIDS
from policies.generation.paths import PATHS, PREDICTIONS, TIMES
from policies.generation.prefix import Prefix
from policies.generation.solvers import SOLVERS
from policies.heads import HEADS
from policies.heads.diffusion import SAMPLERS, SPACINGS

# A configuration of the head in which all its fields matter.
MATTERING: dict[str, dict[str, Any]] = {
    "flow": {
        "coupling": "optimal_transport",
        "coupling_condition": 0.0,
        "condition_dropout": 0.2,
        "guidance": 1.5,
        "prefix_max": 2,
        "prediction": "preconditioned",
        "time": "log_normal",
    },
    "diffusion": {"prediction": "preconditioned", "time": "log_normal"},
}
# And where one field needs another.
ALONE: dict[tuple[str, str], dict[str, Any]] = {("diffusion", "least_alpha"): {"prediction": "noise", "clip": 1.0}}
# Other values to try; a number is also tried half as large, twice as large and by one larger.
NAMES = {"solver": (*SOLVERS, "multistep"), "sampler": SAMPLERS, "spacing": SPACINGS, "grid": GRIDS}
NAMES |= {"prediction": (*PREDICTIONS, "preconditioned"), "time": (*TIMES, "log_normal")}
NAMES |= {"path": PATHS, "coupling": COUPLINGS}
OTHERS: dict[str, list[Any]] = {name: list(choices) for name, choices in NAMES.items()}
OTHERS |= {"error": ["absolute"], "temperatures": [[0.5]], "improved": [False], "coupling_condition": [1e6]}
CHOOSING = ("choices", "temperature")  # fields that mean nothing without choices; see test_choice_heads.py
SAMPLING = [(kind, name) for kind, (config, _) in HEADS.items() for name in config.sampling if name not in CHOOSING]
TRAINING = [
    (kind, f.name)
    for kind, (config, _) in HEADS.items()
    for f in fields(config)
    if f.name
    not in (*config.sampling, *CHOOSING, "kind", "length_on_tokens")  # without tokens the last changes nothing
]


def others(config: Any, name: str) -> list[Any]:
    """Values to try in place of the configuration's own."""
    value, tried = getattr(config, name), list(OTHERS.get(name, []))
    if isinstance(value, int | float) and not isinstance(value, bool):
        tried += [type(value)(number) for number in (value / 2, 2 * value, value + 1)]
    return [other for other in tried if other != value and type(other) is type(value)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chunks(policy: Policy) -> Iterator[torch.Tensor]:
    """What it samples, plain and in each form of a prefix that it can continue."""
    observation = {n: torch.randn((4, 2, *f.shape), generator=seeded(0)) for n, f in policy.spec.observation.items()}
    noise = torch.randn((4, *policy.noise_shape), generator=seeded(1))
    yield policy.sample(observation, noise)
    delay = torch.full((4,), 1)
    for form in policy.continues:
        yield policy.sample(observation, noise, Prefix(torch.ones(4, 4, 2), delay, delay + 2, form))


def same(these: Iterator[torch.Tensor], those: Iterator[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(these, those, strict=False))


@pytest.mark.parametrize(("kind", "name"), SAMPLING)
def test_a_sampling_field_changes_actions_and_neither_loss_nor_weights(kind, name, make_policy, make_batch):
    policy = make_policy(head=kind, **ALONE.get((kind, name), MATTERING.get(kind, {})))
    batch, before = make_batch(policy), {n: value.clone() for n, value in policy.state_dict().items()}
    loss, accepted, changed = policy.loss(batch, seeded(3)), 0, 0
    for value in others(policy.config.head, name):
        try:
            other = policy.with_head(**{name: value})
        except ValueError:  # for example steps that are no power of two
            continue
        accepted += 1
        assert getattr(other.config.head, name) == value
        assert list(other.state_dict()) == list(before)
        for key, weight in other.state_dict().items():
            assert weight.dtype == before[key].dtype
            torch.testing.assert_close(weight, before[key], rtol=0, atol=0)
        assert torch.equal(other.loss(batch, seeded(3)), loss)
        changed += not same(chunks(other), chunks(policy))
    assert accepted, f"no value that was tried is one of head.{name}; add some to OTHERS"
    assert changed, f"head.{name} changes no action"


@pytest.mark.parametrize(("kind", "name"), TRAINING)
def test_a_field_that_is_not_named_belongs_to_the_training(kind, name, make_policy, make_batch):
    """Else the head should name it, so that it can be changed."""
    options = MATTERING.get(kind, {})
    policy = make_policy(head=kind, **options)
    batch, changed = make_batch(policy), False
    loss, weights = policy.loss(batch, seeded(3)), policy.state_dict()
    for value in others(policy.config.head, name):
        with pytest.raises(ValueError, match=rf"^head\.{name} belongs to the training of head={kind} .*; what can be"):
            policy.with_head(**{name: value})
        try:
            other = make_policy(head=kind, **{**options, name: value})
            if {n: w.shape for n, w in other.state_dict().items()} != {n: w.shape for n, w in weights.items()}:
                changed = True
                continue
            other.load_state_dict(weights)
            changed |= not torch.equal(other.loss(batch, seeded(3)), loss)
        except ValueError:  # a value that the head, or the chunk, cannot have
            continue
    assert changed, f"head.{name} changes neither loss nor tensors; does it belong into {kind}'s sampling fields?"


def test_the_copy_is_ready_to_sample_and_apart_from_the_original(make_policy, make_batch):
    policy = make_policy(head="mean_flow").train()  # a head with weights of its own
    other = policy.with_head(steps=3)
    assert other.head.evaluations == 3
    assert policy.head.evaluations == policy.config.head.steps == 1
    assert policy.training
    assert not other.training
    assert not any(weight.requires_grad for weight in other.parameters())
    before = [chunk.clone() for chunk in chunks(other)]
    policy.loss(make_batch(policy), seeded(0)).backward()
    with torch.no_grad():
        for weight in policy.parameters():
            weight.zero_()
    assert same(chunks(other), iter(before))
    assert same(chunks(other.with_head()), iter(before))


def test_a_sampler_that_draws_again_takes_its_own_noise(make_policy):
    policy = make_policy(head="diffusion").with_head(sampler="ddpm", steps=5)
    assert policy.noise_shape == (5, 4, 2)
    assert policy.with_head(sampler="ddim").noise_shape == (4, 2)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("flow", {"stepz": 3}, r"head=flow has no field 'stepz'; did you mean 'steps'\?"),
        (
            "flow",
            {"clip": 1.0},
            "head=flow has no field 'clip'; what can be changed: steps, solver, grid, guidance",
        ),
        ("flow", {"self": 1}, "head=flow has no field 'self'"),
        ("flow", {"kind": "diffusion"}, r"head\.kind belongs to the training of head=flow and cannot be changed"),
        ("regression", {"steps": 1}, "head=regression has no field 'steps'; what can be changed: nothing"),
        ("flow", {"steps": "ten"}, r"head\.steps is 'ten', expected a value of type int"),
        ("flow", {"steps": True}, r"head\.steps is True, expected a value of type int"),
        ("flow", {"steps": 0}, r"head\.steps=0 must lie in 1\.\.1000"),
        ("flow", {"guidance": 2}, r"head\.guidance=2\.0 needs a policy that was also trained without conditions"),
        ("flow", {"solver": "rk4"}, r"head\.solver='rk4' evaluates at t=1"),
        ("diffusion", {"steps": 101}, r"head\.steps=101 must lie in 1\.\.100 \(head\.train_steps\)"),
        ("shortcut", {"steps": 3}, r"head\.steps=3 must be one of 1, 2, 4"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(kind, changes, message, make_policy):
    with pytest.raises(ValueError, match=message) as told:
        make_policy(head=kind).with_head(**changes)
    assert "\n" not in str(told.value)
