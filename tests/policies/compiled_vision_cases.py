"""What `Policy.compile` computes of policies that see; run by test_compiled.py, where annotations are not checked."""

from __future__ import annotations

import pytest
import torch

from policies.compile import CompiledSampler
from tests.policies.vision_cases import SIGHTS, batch_of, seeing


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("vision", SIGHTS)
def test_the_same_actions_from_one_graph(vision, rows):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    options = {"net": "transformer", "options": {"cross_attention": True}} if vision == "vit" else {}
    policy = seeing(vision, image_size=[36, 40] if vision != "vit" else [32, 40], **options)
    with torch.no_grad():
        for p in policy.net.parameters():  # in size such that actions stay near their spread
            p.mul_(0.5)
    policy.eval().requires_grad_(False)
    compiled, observation = CompiledSampler(policy, backend="eager"), batch_of(policy, rows).observation
    noise = torch.randn(rows, *policy.noise_shape)
    error = (compiled(observation, noise) - policy.sample(observation, noise)) / policy.action_normalizer.scale
    assert error.abs().max() < 1e-4
