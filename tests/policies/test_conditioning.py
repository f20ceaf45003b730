"""A vector and tokens with a mask: what every net and head makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from policies import Policy
from policies.conditioning import Conditioning, joined, split
from policies.encoders import ENCODERS
from policies.encoders.base import Encoder, EncoderConfig
from policies.heads import HEADS
from policies.heads.flow import FlowConfig, FlowHead
from policies.nets import NETS

E, N, W = 5, 6, 3


@pytest.fixture
def make_net(tiny, randomize):
    def make(kind: str, tokens: tuple[int, int] = (N, W)):
        net = NETS[kind][1](tiny(NETS, kind), (4, 2), E, tokens)
        randomize(net)
        return net

    return make


def conditions(rows: int, counts: tuple[int, ...] | None = None) -> Conditioning:
    mask = None if counts is None else torch.arange(N) < torch.tensor(counts)[:, None]
    return Conditioning(torch.randn(rows, E), torch.randn(rows, N, W), mask)


def tokens_and_mask(cond: Conditioning) -> tuple[Tensor, Tensor]:
    assert cond.tokens_BNW is not None
    return cond.tokens_BNW, torch.ones(len(cond), N, dtype=torch.bool) if cond.mask_BN is None else cond.mask_BN


def answers(net, cond: Conditioning, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x, t = torch.randn(len(cond), 4, 2, generator=generator), torch.rand(len(cond), generator=generator)
    with torch.no_grad():
        return net(x, net.prepare(t, cond))


def test_flat_numbers_are_split_again():
    cond = conditions(4)
    again = split(cond.flat_BF, (N, W))
    assert torch.equal(again.vector_BE, cond.vector_BE)
    assert torch.equal(*(tokens_and_mask(each)[0] for each in (again, cond)))
    alone = split(cond.vector_BE, (0, 0))
    assert alone.tokens_BNW is None
    assert torch.equal(alone.flat_BF, cond.vector_BE)


def test_the_mean_is_that_of_the_tokens_that_count():
    cond = conditions(3, (N, 2, 0))
    tokens = tokens_and_mask(cond)[0]
    expected = torch.stack([tokens[0].mean(0), tokens[1, :2].mean(0), torch.zeros(W)])
    torch.testing.assert_close(cond.pooled_BW, expected)


def test_nothing_stands_for_a_whole_observation():
    cond, null = conditions(3, (N, 2, 1)), torch.randn(E + N * W)
    some = cond.without(null, torch.tensor([False, True, False]))
    assert torch.equal(some.flat_BF[1], null)
    assert torch.equal(some.flat_BF[[0, 2]], cond.flat_BF[[0, 2]])
    assert tokens_and_mask(some)[1].sum(1).tolist() == [N, N, 1]  # a dropped row does not tell how many tokens it had
    both = joined(cond, cond.without(null))
    assert torch.equal(both[3:].flat_BF, null.expand(3, -1))
    assert tokens_and_mask(both)[1].sum(1).tolist() == [N, 2, 1, N, N, N]


def test_what_is_added_may_reach_the_tokens():
    cond, added = conditions(3), torch.randn(1, E + N * W)
    assert torch.equal(cond.plus(added).flat_BF, cond.flat_BF + added)
    short = cond.plus(added[:, :E])
    assert torch.equal(short.vector_BE, cond.vector_BE + added[:, :E])
    assert short.tokens_BNW is cond.tokens_BNW


@pytest.mark.parametrize("kind", NETS)
def test_a_token_that_does_not_count_changes_nothing(make_net, kind):
    net, cond = make_net(kind), conditions(3, (N, 2, 1))
    tokens, mask = tokens_and_mask(cond)
    changed = replace(cond, tokens_BNW=torch.where(mask[..., None], tokens, 7.0))
    torch.testing.assert_close(answers(net, changed), answers(net, cond))
    for i, count in enumerate((N, 2, 1)):  # as if there were no more
        row = Conditioning(cond.vector_BE[i : i + 1], tokens[i : i + 1, :count])
        torch.testing.assert_close(answers(net, cond[i : i + 1]), answers(net, row))
    moved = replace(cond, tokens_BNW=tokens + torch.eye(N)[0, :, None])  # the first always counts
    assert (answers(net, moved) - answers(net, cond)).abs().amax(dim=(1, 2)).min() > 1e-4


@pytest.mark.parametrize("kind", NETS)
def test_a_row_without_any_token_is_finite(make_net, kind):
    assert answers(make_net(kind), conditions(2, (0, N))).isfinite().all()


@pytest.mark.parametrize("kind", NETS)
def test_without_tokens_there_are_no_weights_for_them(make_net, kind):
    names = make_net(kind, (0, 0)).state_dict().keys()
    more = make_net(kind).state_dict().keys() - names
    assert more
    assert all(name.startswith(("pool", "keys_values")) or ".cross." in name for name in more)


def test_keys_and_values_are_not_repeated_for_every_step(make_net):
    net, cond = make_net("transformer"), conditions(2)
    prepared = net.prepare(torch.rand(10, 2), cond)
    assert prepared.timed.shape[:2] == (10, 2)
    assert all(len(part) == 2 for part in prepared.observed)
    assert all(prepared[i].observed is prepared.observed for i in range(10))


# --- in a policy whose encoder gives tokens to everybody


class Tokens(Encoder):
    """The vector is the first feature's last step, the tokens are its numbers; it shakes them in training."""

    takes = "everything"

    def __init__(self, config, spec, history, tokens=False):
        super().__init__()
        self.size, self.tokens = spec.observation["state"].size, (spec.observation["state"].size, 1)

    @staticmethod
    def accepts(feature):
        return True

    def forward(self, observation, generator=None):
        last = observation["state"][:, -1]
        if generator is not None:
            last = last + torch.randn(last.shape, generator=generator)
        return Conditioning(last, last.unsqueeze(-1), torch.ones_like(last, dtype=torch.bool))


@pytest.fixture
def given_tokens(monkeypatch, make_policy, spec, tiny, randomize):
    def make(head: str, net: str, **options) -> Policy:
        monkeypatch.setitem(ENCODERS, "tokens", (EncoderConfig, Tokens))
        plain = make_policy(head=head, net=net, **options)
        policy = Policy(replace(plain.config, encoder=EncoderConfig("tokens")), spec)
        randomize(policy)
        for (_, ours), (_, fitted) in zip(policy.normalizers(), plain.normalizers(), strict=True):
            ours.load_state_dict(fitted.state_dict())
        return policy

    return make


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own first use
def test_every_head_trains_and_samples_with_tokens(given_tokens, make_batch, head, net):
    policy = given_tokens(head, net)
    batch = make_batch(policy)
    policy.loss(batch, torch.Generator().manual_seed(0)).backward()
    for name, p in policy.net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    sample = policy.sample(batch.observation, torch.randn(4, *policy.noise_shape))
    assert sample.isfinite().all()


def test_an_encoder_is_random_in_training_alone(given_tokens, make_batch):
    policy = given_tokens("regression", "mlp")
    batch = make_batch(policy)
    a, b = (policy.loss(batch, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert a != b
    noise = torch.randn(4, *policy.noise_shape)
    assert torch.equal(policy.sample(batch.observation, noise), policy.sample(batch.observation, noise))


@pytest.mark.parametrize("net", NETS)
def test_guidance_mixes_the_predictions_with_tokens_and_without(make_net, net):
    module = make_net(net)
    config = FlowConfig(condition_dropout=0.2, steps=1)
    plain, guided = FlowHead(config, E, (N, W)), FlowHead(replace(config, guidance=3.0), E, (N, W))
    assert plain.null is not None
    plain.null.data.normal_()
    guided.load_state_dict(plain.state_dict())
    cond, noise = conditions(5, (N, 1, 2, 3, N)), torch.randn(5, 4, 2)
    with torch.no_grad():
        with_, without = plain.sample(module, noise, cond), plain.sample(module, noise, cond.without(plain.null))
        torch.testing.assert_close(guided.sample(module, noise, cond), without + 3 * (with_ - without))


@pytest.mark.parametrize("kind", ["mean_flow", "shortcut"])
def test_a_policy_of_before_also_adds_the_length_to_the_tokens(tiny, kind):
    heads = [HEADS[kind][1](tiny(HEADS, kind, length_on_tokens=on), E, (N, W)) for on in (False, True)]
    assert [head.length.mlp[-1].out_features for head in heads] == [E, E + N * W]
