"""Choices as classes: cross-entropy by hand, draws of the learned distribution, and plans that hang together."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from flowhand.contracts.features import ChunkConfig, Feature, Spec
from policies import Batch, Policy, PolicyConfig
from policies.encoders import ENCODERS
from policies.fields import Fields
from policies.heads import HEADS
from policies.heads.tokens import TokensHead
from policies.nets import NETS

# What it is, one of three; a number; one of four; one of two. The second and third count by turns.
CHOICES = (3, 0, 4, 2)
ACTION = Feature((4,), "float32", "", choices=CHOICES, uses=((), (1, 3), (2,)))
SPEC = Spec({"state": Feature((2,), "float32", "m")}, ACTION, None)
CROSS_ENTROPY: dict[str, dict[str, Any]] = {
    "flow": {"choices": "cross_entropy"},
    "diffusion": {"choices": "cross_entropy"},
}
CROSS_ENTROPY |= {"mip": {"choices": "cross_entropy"}, "classification": {}, "tokens": {}}


def make_policy(tiny, head, net="transformer", horizon=3, spec=SPEC, **options):
    torch.manual_seed(0)
    config = PolicyConfig(
        ChunkConfig(1, horizon, horizon),
        encoder=tiny(ENCODERS, "state"),
        net=tiny(NETS, net, width=32),
        head=tiny(HEADS, head, **options),
    )
    policy = Policy(config, spec)
    for name, normalizer in policy.normalizers():
        normalizer.fit(torch.randn(9, normalizer.shift.numel()), "identity", name)
    return policy


def fields() -> Fields:
    return Fields(CHOICES, SPEC, plain=True)


def test_the_code_of_what_does_not_count_is_neutral_and_its_action_zero(tiny):
    policy = make_policy(tiny, "flow")
    action = torch.tensor([[[0, 5, 3, 1], [1, 5, 3, 1], [2, 5, 3, 1.0]]])
    code = policy.code(action, {})
    nothing, four = [-1.0], [-1.0] * 4
    assert code[0].tolist() == [
        [1, -1, -1, 0, *four, *nothing],
        [-1, 1, -1, 5, *four, 1],
        [-1, -1, 1, 0, -1, -1, -1, 1, *nothing],
    ]
    assert policy.decode(code, {})[0].tolist() == [[0, 0, 0, 0], [1, 5, 0, 1], [2, 0, 3, 0]]


def test_cross_entropy_is_that_of_the_fields_that_count_by_hand():
    parts, torch_random = fields(), torch.Generator().manual_seed(0)
    action = torch.tensor([[[0, 0, 0, 0], [1, 0.7, 0, 1], [2, 0, 3, 0.0], [1, 9, 9, 9]]])
    mask = torch.tensor([[True, True, True, False]])
    logits = torch.randn(1, 4, 9, generator=torch_random)
    target = torch.zeros(1, 4, 9) - 1
    for t, (kind, number, choice, two) in enumerate(action[0, :3].tolist()):
        target[0, t, int(kind)], target[0, t, 3], target[0, t, 8] = 1, number, 2 * two - 1
        target[0, t, 4 + int(choice)] = 1
    target = parts.blank(target, parts.counting(action))
    loss = parts.loss(parts.probabilities(logits), target, parts.narrowed(mask, action, {}))
    rows = logits[0]
    expected = [-rows[t, :3].log_softmax(0)[t] for t in range(3)]
    expected += [(rows[1, 3] - 0.7) ** 2, -torch.nn.functional.logsigmoid(rows[1, 8])]
    expected += [-rows[2, 4:8].log_softmax(0)[3]]
    torch.testing.assert_close(loss, sum(expected) / len(expected))


def test_what_does_not_count_has_no_gradient(tiny):
    for head, options in CROSS_ENTROPY.items():
        policy = make_policy(tiny, head, **options)
        action = torch.zeros(2, 3, 4)
        action[0, 0] = torch.tensor([1, 0.5, 0, 1])  # no action uses the choice of four
        batch = Batch({"state": torch.randn(2, 1, 2)}, action, torch.ones(2, 3, dtype=torch.bool))
        policy.loss(batch, torch.Generator().manual_seed(0)).backward()
        gradient = policy.net.outlet.weight.grad
        assert (gradient[:3] != 0).any(), head
        assert (gradient[4:8] == 0).all(), head
        other = replace(batch, action=action + torch.tensor([0, 0, 3.0, 0]))
        losses = [policy.loss(each, torch.Generator().manual_seed(0)) for each in (batch, other)]
        assert torch.equal(*losses), head


@pytest.mark.parametrize("head", ["classification", "tokens"])
@pytest.mark.parametrize("net", NETS)
def test_the_temperature_draws_what_was_learned(tiny, head, net):
    """A choice of three at 0.2, 0.3, 0.5 and one of two at 0.8, by the bias of the last layer alone."""
    spec = replace(SPEC, action=Feature((2,), "float32", "", choices=(3, 2)))
    policy = make_policy(tiny, head, net, horizon=2, spec=spec).with_head(temperature=1.0)
    outlet = policy.net.outlet
    wanted = [*torch.tensor([0.2, 0.3, 0.5]).log().tolist(), math.log(0.8 / 0.2)]
    with torch.no_grad():
        outlet.weight.zero_()
        outlet.bias.copy_(torch.tensor(wanted * (len(outlet.bias) // 4)))
    drawn = policy.sample({"state": torch.zeros(4000, 1, 2)}, torch.randn(4000, 2, 4))
    for step in range(2):
        shares = torch.bincount(drawn[:, step, 0].long(), minlength=3) / 4000
        torch.testing.assert_close(shares, torch.tensor([0.2, 0.3, 0.5]), atol=0.03, rtol=0)
        assert drawn[:, step, 1].mean() == pytest.approx(0.8, abs=0.03)
    likeliest = policy.with_head(temperature=0.0).sample({"state": torch.zeros(1, 1, 2)}, torch.randn(1, 2, 4))
    assert likeliest[0, 0].tolist() == [2, 1]


def test_decoding_with_kept_keys_is_following_the_whole_plan(tiny, randomize):
    policy = make_policy(tiny, "tokens", horizon=5)
    assert isinstance(policy.head, TokensHead)
    randomize(policy)
    observation = {"state": torch.randn(6, 1, 2)}
    with torch.no_grad():
        cond = policy.encode(observation)
        code = policy.head.sample(policy.net, torch.zeros(6, 5, 9), cond)
        before = torch.cat([policy.head._begin(code), code[:, :-1]], dim=1)
        output = policy.net.follow(before, policy.net.prepare(torch.zeros(6), cond))
        again = policy.fields.settled(output)
    stopped = (code[..., :3].argmax(-1) == 0).cumsum(-1).bool()
    live = ~stopped | (stopped.cumsum(-1) == 1)
    assert live[:, 1:].any()
    torch.testing.assert_close(again[live], code[live])


def test_decoding_ends_when_all_rows_have_stopped(tiny):
    policy, asked = make_policy(tiny, "tokens", horizon=8), []
    with torch.no_grad():
        policy.net.outlet.weight.zero_()
        policy.net.outlet.bias[:3] = torch.tensor([5.0, 0, 0])  # stop
        step = policy.net.next_action
        policy.net.next_action = lambda *given: asked.append(1) or step(*given)
        actions = policy.sample({"state": torch.zeros(3, 1, 2)}, torch.zeros(3, 8, 9))
    assert len(asked) == 1
    assert (actions == 0).all()


@pytest.mark.parametrize("net", NETS)
def test_no_net_sees_what_comes_later_when_it_follows(tiny, randomize, net):
    policy = make_policy(tiny, "tokens", net, horizon=4)
    randomize(policy)
    modulation = policy.net.prepare(torch.zeros(2), policy.encode({"state": torch.randn(2, 1, 2)}))
    x = torch.randn(2, 4, 9)
    other = x.clone()
    other[:, 2] += 1
    with torch.no_grad():
        one, two = (policy.net.follow(each, modulation) for each in (x, other))
    torch.testing.assert_close(one[:, :2], two[:, :2])
    assert not torch.allclose(one[:, 2], two[:, 2])
    assert not torch.allclose(one[:, 3], two[:, 3])


def test_cross_entropy_needs_choices_that_are_known_and_a_prediction_of_the_data(tiny):
    with pytest.raises(ValueError, match=r"head\.choices='sharp' is unknown; choices: auto, squared, cross_entropy"):
        HEADS["flow"][0](choices="sharp")
    for head in ("flow", "diffusion"):
        with pytest.raises(ValueError, match=r"head\.choices='cross_entropy' needs head\.prediction='data'"):
            HEADS[head][0](choices="cross_entropy", prediction="velocity")
    spec = replace(SPEC, action=Feature((2,), "float32", ""))
    with pytest.raises(ValueError, match=r"head\.choices=cross_entropy, and the action has no choice"):
        make_policy(tiny, "flow", spec=spec, choices="cross_entropy")
