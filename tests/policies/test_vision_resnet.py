"""ResNet-18 beside a reference written as formulas, and weights that come from a file."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from flowhand.contracts.features import ChunkConfig, Feature, Spec
from policies.encoders.vision.picture import IMAGENET
from policies.encoders.vision.pretrained import described, fitting, take_pretrained
from policies.encoders.vision.resnet import ResNet18, ResNet18Config
from policies.policy import Policy, PolicyConfig
from tests.policies.vision_cases import ACTION, SEEN, batch_of, seeing

Weights = dict[str, torch.Tensor]
Normalize = Any
STAGES = [(1, 1), (2, 2), (3, 2), (4, 2)]  # number and stride


def reference(images: torch.Tensor, w: Weights, normalize: Normalize) -> torch.Tensor:
    """ResNet-18 (He 2016, Table 1 and Fig. 2) as functions of its weights, up to the last map."""
    x = F.conv2d(images, w["conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(normalize(x, "bn1").relu(), kernel_size=3, stride=2, padding=1)
    for stage, stride in STAGES:
        for block in range(2):
            name, step = f"layer{stage}.{block}", stride if block == 0 else 1
            y = normalize(F.conv2d(x, w[f"{name}.conv1.weight"], stride=step, padding=1), f"{name}.bn1").relu()
            y = normalize(F.conv2d(y, w[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            if block == 0 and stage > 1:
                x = normalize(F.conv2d(x, w[f"{name}.downsample.0.weight"], stride=step), f"{name}.downsample.1")
            x = (x + y).relu()
    return x


def test_it_is_the_reference_with_group_normalization(randomize):
    network = ResNet18(3, channels=16)
    randomize(network)
    w = dict(network.state_dict())
    images = torch.randn(2, 3, 70, 90)

    def groups(x: torch.Tensor, name: str) -> torch.Tensor:
        parts = x.unflatten(1, (-1, 16))  # 16 channels a group, as Diffusion Policy has it
        mean = parts.mean((2, 3, 4), keepdim=True)
        var = parts.var((2, 3, 4), correction=0, keepdim=True)
        scaled = ((parts - mean) / (var + 1e-5).sqrt()).flatten(1, 2)
        return scaled * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    expected = reference(images, w, groups)
    assert expected.shape == (2, 128, 3, 3)
    torch.testing.assert_close(network(images), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_at_full_width_it_has_the_weights_of_resnet_18():
    with torch.device("meta"):
        network = ResNet18(3)
        assert network(torch.empty(2, 3, 96, 96)).shape == (2, 512, 3, 3)
    assert sum(p.numel() for p in network.parameters()) == 11_689_512 - 513_000  # torchvision's, less its classifier


def weights_of_torchvision() -> Weights:
    """Random weights with the names and shapes of torchvision's file."""
    with torch.device("meta"):
        network = ResNet18(3, frozen=True)
    w: Weights = {"fc.weight": torch.randn(1000, 512), "fc.bias": torch.randn(1000)}
    for name, value in network.state_dict().items():
        module, _, part = name.rpartition(".")
        if part == "scale":
            w |= {f"{module}.{each}": torch.randn(value.shape) * 0.1 + 1 for each in ("weight", "running_mean")}
            w |= {f"{module}.bias": torch.randn(value.shape), f"{module}.running_var": torch.rand(value.shape) + 0.5}
            w[f"{module}.num_batches_tracked"] = torch.tensor(7)
        elif part != "shift":
            w[name] = torch.randn(value.shape) / value[0].numel() ** 0.5
    return w


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> tuple[str, Weights]:
    path, w = tmp_path_factory.mktemp("weights") / "resnet18.safetensors", weights_of_torchvision()
    safetensors.torch.save_file(w, path, {"license": "BSD-3-Clause"})
    return str(path), w


def test_a_pretrained_one_is_the_reference_with_its_batch_statistics(stored):
    path, w = stored
    policy = seeing("resnet18", chunk=ChunkConfig(1, 4, 2), random_weights=False, weights=path, channels=64)
    with pytest.raises(ValueError, match=r"weight 'encoder.parts.resnet18.*scale' has NaN"):
        policy.check()  # a file that was not read never looks like one that was
    take_pretrained(policy.encoder, policy.config.vision)
    policy.check()
    backbone = policy.encoder.get_submodule("parts.resnet18.backbones.camera")
    resnet = backbone.get_submodule("resnet")
    picture = policy.encoder.get_submodule("parts.resnet18.pictures.camera")
    batch = batch_of(policy, 2)
    seen = picture(batch.observation["camera"])
    colours = batch.observation["camera"][:, 0].permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(value)[:, None, None] for value in IMAGENET)
    torch.testing.assert_close(seen, (colours - mean) / std)

    def batch_norm(x: torch.Tensor, name: str) -> torch.Tensor:
        statistics = (w[f"{name}.running_mean"], w[f"{name}.running_var"])
        return F.batch_norm(x, *statistics, w[f"{name}.weight"], w[f"{name}.bias"], training=False)

    expected = reference(seen, w, batch_norm)
    torch.testing.assert_close(resnet.train()(seen), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    assert not any("bn" in name for name, _ in resnet.named_parameters())  # frozen


def test_what_a_file_is_stands_in_the_provenance(stored):
    path, _ = stored
    with open(path, "rb") as file:
        sha256 = hashlib.sha256(file.read()).hexdigest()
    told = {"file": "resnet18.safetensors", "sha256": sha256, "licence": "BSD-3-Clause"}
    assert described(ResNet18Config(weights=path)) == told
    assert described(ResNet18Config(weights=path, weights_licence="own"))["licence"] == "own"
    assert described(ResNet18Config()) == {}


def changed(w: Weights, change: str) -> Weights:
    other = dict(w)
    if change == "lacks":
        del other["layer3.0.downsample.1.running_var"]
    elif change == "shape":
        other["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    elif change == "other":
        other["layer1.0.conv3.weight"] = torch.zeros(3)
    else:
        other["layer4.1.bn2.bias"] = other["layer4.1.bn2.bias"] * torch.nan
    return other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lacks", r"lacks the tensor 'layer3.0.downsample.1.running_var' of a ResNet-18 of torchvision"),
        ("shape", r"'conv1.weight' has shape \(64, 1, 7, 7\), ResNet-18 needs \(64, 3, 7, 7\)"),
        ("other", r"holds the tensor 'layer1.0.conv3.weight', which ResNet-18 has not"),
        ("nan", r"holds NaN or infinity"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(stored, change, message):
    with torch.device("meta"):
        network = ResNet18(3, frozen=True)
    with pytest.raises(ValueError, match=message) as error:
        fitting(changed(stored[1], change), network, "w")
    assert "\n" not in str(error.value)


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"vision.weights=nowhere cannot be read: No such file or directory"):
        take_pretrained(torch.nn.Identity(), ResNet18Config(weights="nowhere"))
    (tmp_path / "w").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"is no file of safetensors"):
        take_pretrained(torch.nn.Identity(), ResNet18Config(weights=str(tmp_path / "w")))


def test_a_file_of_colours_sees_no_depth(stored):
    spec = Spec({**SEEN.observation, "depth": Feature((40, 48), "uint16", "mm", kind="depth")}, ACTION, 0.1)
    with pytest.raises(ValueError, match=r"vision.weights are of a network for colour images, 'depth' is depth"):
        Policy(PolicyConfig(vision=ResNet18Config(weights=stored[0])), spec)
