"""The U-net against the architecture of Diffusion Policy, built here a second time from its description."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conf.cli import compose
from flowhand.contracts.features import ChunkConfig
from flowhand.contracts.strict import build
from policies.conditioning import Conditioning
from policies.nets.unet1d import Film, UNet1D, UNet1DConfig
from tests.cases import some

COND = 10


class Published(nn.Module):
    """The net of Chi 2023, its layers in the order in which they are passed.

    Every block: convolution, group norm, Mish; the channels scaled and shifted by a linear layer of Mish of the (step
    embedding, observation) concatenated; convolution, group norm, Mish; plus the input, through a 1x1 convolution where
    the channels differ. Two blocks a level, then a convolution of stride 2 (not after the last); two blocks in the
    middle; on the way up two blocks on the concatenation with the same level's result, then a transposed convolution of
    stride 2. The embedding of the step: sines and cosines, a layer of four times the width, Mish, a layer.
    """

    def __init__(self, action: int, cond: int, dims: list[int], kernel: int = 5, groups: int = 8, step: int = 256):
        super().__init__()
        self.levels = len(dims)
        self.embedding = nn.Sequential(nn.Linear(step, 4 * step), nn.Mish(), nn.Linear(4 * step, step))
        self.convs, self.norms, self.films, self.residuals = (nn.ModuleList() for _ in range(4))
        widths = [action]
        ways = [*dims, dims[-1], *reversed(dims[:-1])]
        for i, width in enumerate(ways):
            across = widths[-1] if i > len(dims) else 0
            for inputs in (widths[-1] + across, width):
                self.convs.append(nn.Conv1d(inputs, width, kernel, padding=kernel // 2))
                self.convs.append(nn.Conv1d(width, width, kernel, padding=kernel // 2))
                self.norms.extend(nn.GroupNorm(groups, width) for _ in range(2))
                self.films.append(nn.Linear(step + cond, 2 * width))
                self.residuals.append(nn.Conv1d(inputs, width, 1) if inputs != width else nn.Identity())
            widths.append(width)
        self.strided = nn.ModuleList(nn.Conv1d(d, d, 3, 2, 1) for d in dims[:-1])
        self.transposed = nn.ModuleList(nn.ConvTranspose1d(d, d, 4, 2, 1) for d in reversed(dims[:-1]))
        self.last = nn.Sequential(
            nn.Conv1d(dims[0], dims[0], kernel, padding=kernel // 2),
            nn.GroupNorm(groups, dims[0]),
            nn.Mish(),
            nn.Conv1d(dims[0], action, 1),
        )

    def two_blocks(self, i: int, x: Tensor, feature: Tensor) -> Tensor:
        for k in (2 * i, 2 * i + 1):
            y = F.mish(self.norms[2 * k](self.convs[2 * k](x)))
            scale, bias = self.films[k](F.mish(feature)).reshape(len(x), 2, -1, 1).unbind(1)
            y = F.mish(self.norms[2 * k + 1](self.convs[2 * k + 1](scale * y + bias)))
            x = y + self.residuals[k](x)
        return x

    def forward(self, x_BTA: Tensor, embedding: Tensor, cond: Tensor) -> Tensor:
        """Takes the embedding of the step, which is not what is compared here."""
        feature = torch.cat([embedding, cond], dim=1)
        x, kept = x_BTA.transpose(1, 2), []
        for i in range(self.levels):
            x = self.two_blocks(i, x, feature)
            kept.append(x)
            if i < self.levels - 1:
                x = self.strided[i](x)
        x = self.two_blocks(self.levels, x, feature)
        for i in range(self.levels - 1):
            x = self.two_blocks(self.levels + 1 + i, torch.cat([x, kept.pop()], dim=1), feature)
            # Not in the original, which takes only lengths where this cuts nothing.
            x = self.transposed[i](x)[..., : kept[-1].shape[-1]]
        return self.last(x).transpose(1, 2)


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def blocks_in_order(net: Any) -> Iterator[Any]:
    for stage in (*net.down, net.middle, *reversed(net.up)):
        yield from stage.blocks


def copy(published: Any, net: Any) -> None:
    """Gives our net the weights of the published one, embedding of time excepted."""
    per_level: list[list[nn.Linear]] = [[] for _ in net.film_sizes]
    levels = [*range(len(net.down)), len(net.down) - 1, *reversed(range(1, len(net.down)))]
    for i, block in enumerate(blocks_in_order(net)):
        for part, convolution in enumerate((block.first, block.second)):
            convolution[0].load_state_dict(published.convs[2 * i + part].state_dict())
            convolution[1].load_state_dict(published.norms[2 * i + part].state_dict())
        block.residual.load_state_dict(published.residuals[i].state_dict())
        per_level[levels[i // 2]].append(published.films[i])
    for film, layers in zip(net.films, per_level, strict=True):
        weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
        film.linear.load_state_dict({"weight": weight, "bias": bias})
    for ours, theirs in zip(net.shrink, published.strided, strict=True):
        ours.load_state_dict(theirs.state_dict())
    for ours, theirs in zip(reversed(net.grow), published.transposed, strict=True):
        ours.load_state_dict(theirs.state_dict())
    net.last.load_state_dict(published.last[:3].state_dict())
    net.outlet.load_state_dict(published.last[3].state_dict())


def pair(dims: list[int], horizon: int, action: int = 2, **options) -> tuple[Published, UNet1D]:
    config = UNet1DConfig(down_dims=dims, **options)
    published = Published(action, COND, dims, config.kernel_size, config.groups, config.time_width)
    return published, UNet1D(config, (horizon, action), COND)


@pytest.mark.parametrize(
    ("dims", "total"),
    [
        ([256, 512, 1024], 65_353_218),  # counted from the original code, once
        ([512, 1024, 2048], 252_077_826),
        ([64, 128, 256], None),
        ([64, 128], None),
        ([32], None),
    ],
)
def test_it_has_as_many_weights_as_the_published_net(dims, total):
    """To the last one, but for the embedding of time: ours has 64 waves and one layer of its width before the last."""
    with torch.device("meta"):
        published, net = pair(dims, 16, time_width=256)
    assert size(net) - size(net.time) == size(published) - size(published.embedding)
    assert size(net.time) == 64 * 256 + 256 + 256 * 256 + 256
    assert size(published.embedding) == 256 * 1024 + 1024 + 1024 * 256 + 256
    assert total is None or size(published) == total


@pytest.mark.parametrize("dims", [[16], [16, 32], [32, 16, 32]])
@pytest.mark.parametrize("horizon", some([1, 2, 3, 4, 5, 7, 8, 16], [1, 3, 4, 16]))
@pytest.mark.parametrize("options", [{"groups": 4}, {"groups": 2, "kernel_size": 3, "time_width": 8}])
def test_it_computes_what_the_published_net_computes(randomize, dims, horizon, options):
    published, net = pair(dims, horizon, action=3, **options)
    randomize(published)
    randomize(net)
    copy(published, net)
    x, t, cond = torch.randn(4, horizon, 3), torch.rand(4), torch.randn(4, COND)
    expected = published(x, net.time(t), cond)
    torch.testing.assert_close(net(x, net.prepare(t, Conditioning(cond))), expected, atol=1e-5, rtol=1e-5)
    assert expected.abs().max() > 0.1


def test_what_the_conditioning_adds_is_that_of_the_concatenation():
    film, time, cond = Film(4, 3, 6), torch.randn(5, 2, 4), torch.randn(2, 3)
    expected = film.linear(torch.cat([time, cond.expand(5, 2, 3)], dim=-1))
    torch.testing.assert_close(film(time, cond), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own first use
@pytest.mark.parametrize("horizon", [4, 5])
def test_its_forward_derivative_is_its_finite_difference(horizon, randomize):
    """Mean-flow heads differentiate a net along (chunk, time) in forward mode."""
    net = UNet1D(UNet1DConfig(down_dims=[8, 16], groups=2, time_width=8), (horizon, 3), COND).double()
    randomize(net)
    x, t, cond = torch.randn(2, horizon, 3).double(), torch.rand(2).double(), torch.randn(2, COND).double()
    dx, dt, step = torch.randn_like(x), torch.ones_like(t), 1e-6

    def f(x: Tensor, t: Tensor) -> Tensor:
        return net(x, net.prepare(t, Conditioning(cond)))

    derivative = torch.func.jvp(f, (x, t), (dx, dt))[1]
    difference = (f(x + step * dx, t + step * dt) - f(x - step * dx, t - step * dt)) / (2 * step)
    torch.testing.assert_close(derivative, difference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("horizon", [6, 7])
def test_a_policy_of_any_chunk_length_learns_from_every_weight(make_policy, make_batch, horizon):
    policy = make_policy(net="unet1d", chunk=ChunkConfig(2, horizon, 2))
    batch = make_batch(policy)
    policy.loss(batch).backward()
    assert all((p.grad != 0).any() for p in policy.net.parameters() if p.grad is not None)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.net.parameters())
    assert policy.sample(batch.observation, torch.randn(4, horizon, 2)).shape == (4, horizon, 2)


def test_its_widths_come_from_a_command_line_and_from_json():
    config = compose(["net=unet1d", "net.down_dims=[32,64]"]).net
    assert isinstance(config, UNet1DConfig)
    assert config == UNet1DConfig(down_dims=[32, 64])
    assert build(UNet1DConfig, asdict(config), "net") == config
    with pytest.raises(ValueError, match=re.escape("net.down_dims is [32, '64'], expected a value of type list[int]")):
        build(UNet1DConfig, {**asdict(config), "down_dims": [32, "64"]}, "net")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"down_dims": []}, "net.down_dims has 0 levels; give 1 to 8, e.g. [64,128,256]"),
        ({"down_dims": [64] * 9}, "net.down_dims has 9 levels; give 1 to 8"),
        ({"down_dims": [64, 100]}, "net.down_dims=[64, 100]: 100 must be a multiple of net.groups=8, at least four"),
        ({"down_dims": [16, 64]}, "net.down_dims=[16, 64]: 16 must be a multiple of net.groups=8, at least four times"),
        ({"down_dims": [64, -64]}, "net.down_dims=[64, -64]: -64 must be a multiple of"),
        ({"down_dims": [8 * 10**9]}, "must be a multiple of net.groups=8, at least four times as much and at most 655"),
        ({"kernel_size": 4}, "net.kernel_size=4 must be odd, so that a chunk keeps its length"),
        ({"kernel_size": 0}, "net.kernel_size=0 must lie in 1..65536"),
        ({"groups": 0}, "net.groups=0 must lie in 1..65536"),
        ({"time_width": 0}, "net.time_width=0 must lie in 1..65536"),
    ],
)
def test_a_wrong_option_is_an_error(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        UNet1DConfig(**options)
