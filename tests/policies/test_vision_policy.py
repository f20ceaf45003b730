"""A policy that sees, from training to decisions: nothing on the way minds that there are images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import policies
from conf.cli import compose
from flowhand.commands import train
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.planner import PlanRequest
from flowhand.control.controller import Controller, ask
from policies.conditioning import Conditioning
from policies.monitor.density import MOST_EMBEDDED, Density, DensityConfig, embedded_size, embedding
from policies.monitor.watched_policy import WatchedPolicy
from policies.training.trainer import Trainer
from tests.policies.vision_cases import SEEN, batch_of, observe, seeing

TINY = ["encoder.width=16", "net.width=16", "net.blocks=1", "vision.width=16", "vision.features=8", "train.threads=1"]
RUN = ["env=none", "train.batch_size=4", "train.precision=fp32", "train.steps=20", "chunk.history=1"]


def episodes(count: int = 2, length: int = 12) -> list[Episode]:
    random, found = np.random.default_rng(0), []
    for seed in range(count):
        seen = {name: value[:, 0].numpy() for name, value in observe(SEEN, length, 1, seed).items()}
        action, reward = random.standard_normal((length, 2), np.float32), np.zeros(length, np.float32)
        found.append(Episode(seen, action, reward, np.zeros(length, bool), "", seed, 0.1))
    return found


def trainer(*overrides: str, fitted: bool = False) -> Trainer:
    config = compose([*TINY, *RUN, *overrides])
    return train.trainer_of(config, SEEN, episodes(), torch.device("cpu"), fitted)


def test_a_training_that_stopped_goes_on_as_if_it_had_not():
    """Augmentation, several draws and the averaged weights included, to the last bit."""
    words = ["vision=conv", "vision.channels=16", "vision.contrast=0.2", "train.draws=2"]
    whole, first = trainer(*words), trainer(*words)
    for _ in range(2):
        whole.advance()
        first.advance()
    state = first.state()
    second = trainer(*words, fitted=True)
    second.restore(state)
    assert torch.equal(whole.advance(), second.advance())
    for name, value in whole.ema.module.state_dict().items():
        assert torch.equal(value, second.ema.module.state_dict()[name]), name


def test_pretrained_weights_are_read_where_a_training_begins_and_nowhere_else():
    words = ["vision=resnet18", "vision.weights=nowhere.safetensors"]
    with pytest.raises(ValueError, match=r"vision.weights=nowhere.safetensors cannot be read"):
        trainer(*words)
    assert trainer(*words, fitted=True).policy.config.vision.pretrained  # its weights come with the state


@pytest.mark.parametrize("vision", ["conv", "vit"])
def test_it_is_saved_loaded_and_proved(tmp_path, provenance, vision):
    options = {"net": "transformer", "options": {"cross_attention": True}} if vision == "vit" else {}
    policy = seeing(vision, image_size=[32, 40], **options).eval()
    observation = batch_of(policy).observation
    policies.save(tmp_path / "c", policy, provenance, observation, {})
    loaded = policies.load(tmp_path / "c")
    assert loaded.config == policy.config
    noise = torch.randn(4, *policy.noise_shape)
    with torch.no_grad():
        assert torch.equal(loaded.sample(observation, noise), policy.sample(observation, noise))
        other = loaded.with_head(steps=2)
        assert not torch.equal(other.sample(observation, noise), policy.sample(observation, noise))
    assert "camera (40, 48, 3)" in str(loaded)
    damage(tmp_path / "c")
    with pytest.raises(ValueError, match=r"differs from the stored one"):
        policies.load(tmp_path / "c")


def damage(path: Path) -> None:
    """Another first weight of the eye."""
    import safetensors.torch

    file = path / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    name = next(n for n in tensors if n.endswith("patches.weight"))
    tensors[name] = -tensors[name]
    safetensors.torch.save_file(tensors, file)


def test_a_decision_depends_neither_on_its_row_nor_on_the_others():
    policy = seeing().eval().requires_grad_(False)
    rows = Controller(policy, inference_batch=3).inference_batch
    random = np.random.default_rng(1)

    def request(seed: int) -> PlanRequest:
        seen = {name: value[0].numpy() for name, value in observe(SEEN, 1, 2, seed).items()}
        return PlanRequest(seen, random.standard_normal(policy.noise_shape, np.float32), np.zeros((4, 2)), 0, 0)

    requests = [request(seed) for seed in range(rows)]
    together = ask(policy, requests, rows)
    for row in range(rows):
        assert np.array_equal(ask(policy, [requests[row]], rows)[0], together[row])


@pytest.mark.parametrize("vision", ["conv", "vit"])
def test_a_monitor_watches_it(vision):
    options = {"net": "transformer", "options": {"cross_attention": True}} if vision == "vit" else {}
    policy = seeing(vision, **options).eval().requires_grad_(False)
    size = embedded_size(policy.encoder.size, policy.encoder.tokens)
    batch = batch_of(policy, 1)
    assert embedding(policy.encode(batch.observation)).shape == (1, size)
    watched = WatchedPolicy(policy, ["logpzo"], ExecutionConfig(), density=Density(DensityConfig(width=8), size))
    observation = {name: value.numpy() for name, value in batch.observation.items()}
    noise = np.zeros((1, *policy.noise_shape), np.float32)
    np.testing.assert_array_equal(watched.plan(observation, noise), policy.plan(observation, noise))
    watched.plan({**observation, "camera": 255 - observation["camera"]}, noise)
    assert watched.scores_ND[0] != watched.scores_ND[1]


def test_a_density_leaves_out_the_tokens_of_a_large_image():
    few, many = torch.zeros(2, 6, 4), torch.zeros(2, MOST_EMBEDDED // 4, 4)
    assert embedding(Conditioning(torch.zeros(2, 8), few)).shape == (2, 8 + 24)
    assert embedding(Conditioning(torch.zeros(2, 8), many)).shape == (2, 8)


def test_vision_is_chosen_on_the_command_line():
    config = compose(["vision=vit", "vision.patch=16", "env=none"])
    assert (config.policy.vision.kind, config.policy.vision.patch) == ("vit", 16)
    assert compose(["env=none"]).policy.vision.kind == "none"
    with pytest.raises(ValueError, match=r"train.draws=0 must lie in 1..1000"):
        compose(["env=none", "train.draws=0"])
