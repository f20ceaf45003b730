"""The transformer against a second one, written out here with loops over heads; and its look at observation tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import policies
from policies import Policy
from policies.conditioning import Conditioning
from policies.encoders import ENCODERS
from policies.heads import HEADS
from policies.nets import NETS
from policies.nets.transformer import Transformer, TransformerConfig

VECTOR = 5  # length of the conditioning vector, tokens not counted
SIZES = [(5, 3, 2, 4, 6), (4, 4, 4, 4, 4), (2, 5, 3, 2, 5), (3, 3, 2, 1, 1), (1, 1, 1, 3, 1)]  # B, T, A, N, W


@pytest.fixture
def make_net(tiny, randomize):
    def make(horizon: int, action: int, tokens: tuple[int, int], random_weights: bool = True) -> Transformer:
        config = tiny(NETS, "transformer", cross_attention=tokens[0] > 0)
        net = Transformer(config, (horizon, action), VECTOR, tokens)
        if random_weights:
            randomize(net)
        return net

    return make


def inputs(rows: int, horizon: int, action: int, tokens: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.randn(rows, horizon, action),
        torch.rand(rows),
        torch.randn(rows, VECTOR),
        torch.randn(rows, *tokens),
    )


def pack(vector: Tensor, tokens: Tensor) -> Conditioning:
    return Conditioning(vector, tokens if tokens.numel() else None)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """One row's queries (T, E) to keys and values (N, E), head by head."""
    width = q.shape[1] // heads
    out = torch.empty_like(q)
    for j in range(heads):
        part = slice(j * width, (j + 1) * width)
        weight = (q[:, part] @ k[:, part].T / width**0.5).exp()
        out[:, part] = (weight / weight.sum(dim=1, keepdim=True)) @ v[:, part]
    return out


def by_hand(net: Any, x: Tensor, t: Tensor, vector: Tensor, tokens: Tensor) -> Tensor:
    """One row (T, A) at one time, with the vector and the tokens (N, W) of one observation."""
    width = net.position.shape[1]
    parts = iter(net.modulation(F.silu(net.time(t) + net.cond(vector))).split(width))
    h = net.inlet(x) + net.position

    def modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        mean, variance = h.mean(dim=1, keepdim=True), h.var(dim=1, correction=0, keepdim=True)
        return (h - mean) / (variance + 1e-5).sqrt() * (1 + scale) + shift

    for i, block in enumerate(net.blocks):
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (next(parts) for _ in range(6))
        q, k, v = block.qkv(modulated(h, shift, scale)).split(width, dim=1)
        h = h + gate * block.attention_out(attention(q, k, v, net.heads))
        if len(tokens):
            shift, scale, gate = (next(parts) for _ in range(3))
            q = block.cross.query(modulated(h, shift, scale))
            k, v = net.keys_values(tokens).split(width, dim=1)[2 * i : 2 * i + 2]
            h = h + gate * block.cross.out(attention(q, k, v, net.heads))
        h = h + gate_mlp * block.down(F.gelu(block.up(modulated(h, shift_mlp, scale_mlp)), approximate="tanh"))
    shift, scale = parts
    return net.outlet(modulated(h, shift, scale))


@pytest.mark.parametrize(("rows", "horizon", "action", "count", "width"), [*SIZES, (3, 4, 2, 0, 0)])
def test_it_computes_what_is_computed_by_hand(make_net, rows, horizon, action, count, width):
    net = make_net(horizon, action, (count, width))
    x, t, vector, tokens = inputs(rows, horizon, action, (count, width))
    output = net(x, net.prepare(t, pack(vector, tokens)))
    expected = torch.stack([by_hand(net, *row) for row in zip(x, t, vector, tokens, strict=True)])
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("rows", "horizon", "action", "count", "width"), SIZES)
def test_tokens_are_a_set(make_net, rows, horizon, action, count, width):
    """Their order does not matter, what each of them says does."""
    net = make_net(horizon, action, (count, width))
    x, t, vector, tokens = inputs(rows, horizon, action, (count, width))
    output = net(x, net.prepare(t, pack(vector, tokens)))
    for order in (torch.arange(count).roll(1), torch.randperm(count)):
        torch.testing.assert_close(net(x, net.prepare(t, pack(vector, tokens[:, order]))), output)
    for i in range(count):
        changed = tokens.clone()
        changed[0, i] += 1
        difference = (net(x, net.prepare(t, pack(vector, changed))) - output).abs().flatten(1).amax(dim=1)
        assert difference[0] > 1e-4
        assert (difference[1:] < 1e-6).all()


def test_with_equal_tokens_their_number_does_not_matter(make_net):
    """Attention is a weighted mean."""
    many, one = make_net(4, 2, (7, 3)), make_net(4, 2, (1, 3))
    one.load_state_dict(many.state_dict())
    x, t, vector, token = inputs(3, 4, 2, (1, 3))
    expected = one(x, one.prepare(t, pack(vector, token)))
    torch.testing.assert_close(many(x, many.prepare(t, pack(vector, token.expand(3, 7, 3)))), expected)


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_keys_and_values_are_computed_once_for_all_times(make_net, steps):
    net = make_net(4, 2, (4, 4))
    x, _, vector, tokens = inputs(4, 4, 2, (4, 4))
    t, cond = torch.rand(steps, 4), pack(vector, tokens)
    alone = [net(x, net.prepare(t[k], cond)) for k in range(steps)]
    seen = []
    net.keys_values.register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape)))
    prepared = net.prepare(t, cond)
    for k in range(steps):
        torch.testing.assert_close(net(x, prepared[k]), alone[k])
    assert seen == [(4, 4, 4)]
    assert prepared[0].observed is prepared[steps - 1].observed
    # A head may also condition every step in its own way.
    each = Conditioning(cond.vector_BE.expand(steps, -1, -1), tokens)
    torch.testing.assert_close(net.prepare(t, each).timed, prepared.timed)


def test_it_starts_at_zero_and_then_learns_from_every_weight(make_net):
    x, t, vector, tokens = inputs(6, 4, 2, (3, 5))
    net = make_net(4, 2, (3, 5), random_weights=False)
    assert (net(x, net.prepare(t, pack(vector, tokens))) == 0).all()
    net = make_net(4, 2, (3, 5))
    tokens.requires_grad_()
    net(x, net.prepare(t, pack(vector, tokens))).square().sum().backward()
    for name, p in [*net.named_parameters(), ("tokens", tokens)]:
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert (p.grad != 0).any(), name


@pytest.mark.slow
def test_it_learns_to_look_for_the_token_that_matters(make_net):
    """The answer is in the one token that carries a mark, wherever that is."""

    def batch() -> tuple[Tensor, Tensor]:
        marked = torch.randint(4, (64,))
        values = torch.randn(64, 4)
        mark = F.one_hot(marked, 4).float()
        return torch.stack([values, mark], dim=-1), values.gather(1, marked[:, None])[:, :, None].expand(-1, 2, 1)

    net = make_net(2, 1, (4, 2), random_weights=False)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(250):
        tokens, target = batch()
        modulation = net.prepare(torch.zeros(64), pack(torch.zeros(64, VECTOR), tokens))
        loss = (net(torch.zeros(64, 2, 1), modulation) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) / 20 < 0.1  # without tokens it cannot come below 1


def test_a_net_that_attends_refuses_an_encoder_without_tokens(tiny):
    with pytest.raises(ValueError, match=r"net.cross_attention=true needs observation tokens, and the encoder gives n"):
        Transformer(tiny(NETS, "transformer", cross_attention=True), (4, 2), VECTOR)


# --- in a policy


@pytest.fixture
def attending(tiny, spec, make_policy, randomize):
    """`attending(head)`: a fitted policy whose transformer attends to the state encoder's tokens."""

    def make(head: str = "flow") -> Policy:
        plain = make_policy(net="transformer", head=head)
        config = replace(plain.config, net=tiny(NETS, "transformer", cross_attention=True))
        policy = Policy(config, spec)
        randomize(policy)
        for (_, ours), (_, fitted) in zip(policy.normalizers(), plain.normalizers(), strict=True):
            ours.load_state_dict(fitted.state_dict())
        return policy

    return make


def test_the_net_gets_the_tokens_that_it_asks_for(attending, make_batch):
    policy = attending()
    assert policy.encoder.tokens == (2 * 2, 4)  # two vectors, two steps of history; a quarter of the width of 16
    batch = make_batch(policy)
    assert policy.encode(batch.observation).flat_BF.shape == (4, 16 + 4 * 4)
    noise = torch.randn(4, 4, 2)
    actions = policy.sample(batch.observation, noise)
    policy.encoder.places.data += 1
    assert (policy.sample(batch.observation, noise) - actions).abs().max() > 1e-3
    policy.encoder.places.data -= 1
    for i in range(4):
        alone = {name: value[i : i + 1] for name, value in batch.observation.items()}
        torch.testing.assert_close(policy.sample(alone, noise[i : i + 1]), actions[i : i + 1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own first use
def test_every_head_trains_and_samples_with_it(attending, make_batch, head):
    """Heads know nothing of tokens."""
    policy = attending(head)
    batch = make_batch(policy)
    policy.loss(batch, torch.Generator().manual_seed(0)).backward()
    for name, p in [*policy.net.named_parameters(), *policy.encoder.named_parameters()]:
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    assert policy.encoder.places.grad.abs().max() > 0
    sample = policy.sample(batch.observation, torch.randn(4, *policy.noise_shape))
    assert sample.shape == (4, 4, 2)
    assert sample.isfinite().all()


def test_it_is_saved_and_loaded(tmp_path, attending, make_batch, provenance):
    policy = attending()
    batch = make_batch(policy)
    policies.save(tmp_path / "checkpoint", policy, provenance, batch.observation, {"step": 0})
    loaded = policies.load(tmp_path / "checkpoint")
    noise = torch.randn(4, 4, 2)
    with torch.no_grad():
        assert torch.equal(loaded.sample(batch.observation, noise), policy.sample(batch.observation, noise))


def test_a_configuration_from_before_cross_attention_means_none():
    field = {f.name: f for f in TransformerConfig.__dataclass_fields__.values()}["cross_attention"]
    assert field.metadata["before"] is False
    assert not TransformerConfig().attends


def test_the_state_encoders_tokens_are_one_for_each_vector_and_step(tiny, spec, randomize):
    cls, config = ENCODERS["state"][1], tiny(ENCODERS, "state")
    with_tokens, without = cls(config, spec, 3, True), cls(config, spec, 3)
    randomize(with_tokens)
    kept = {name: value for name, value in with_tokens.state_dict().items() if name.startswith("layers")}
    without.load_state_dict(kept)
    observation = {name: torch.randn(2, 3, *feature.shape) for name, feature in spec.observation.items()}
    before = with_tokens(observation)
    assert torch.equal(before.vector_BE, without(observation).vector_BE)
    assert with_tokens.tokens == (6, 4)
    assert before.tokens_BNW.shape == (2, 6, 4)
    assert before.flat_BF.shape == (2, with_tokens.flat_size) == (2, 16 + 6 * 4)
    for i, name in enumerate(sorted(observation)):
        for step in range(3):
            changed = {**observation, name: observation[name].clone()}
            changed[name][0, step] += 1
            moved = (with_tokens(changed).tokens_BNW - before.tokens_BNW).abs().amax(dim=2) > 0
            assert moved.nonzero().tolist() == [[0, 3 * i + step]]
