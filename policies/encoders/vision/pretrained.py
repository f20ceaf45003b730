"""Weights that a training starts from, of a file on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .config import VisionConfig
from .resnet import FrozenNorm, ResNet18

EPS = 1e-5  # of torchvision's batch normalizations
PASSED_OVER = ("fc.", "num_batches_tracked")  # what a classifier has beside what is taken


def take_pretrained(encoder: nn.Module, config: VisionConfig) -> None:
    """Puts the weights of the configured file, if there is one, into every ResNet-18 of an encoder.

    Raises:
        ValueError: the file is missing, is none of safetensors, or does not fit; in one line.
    """
    if not config.pretrained:
        return
    tensors = _read(Path(config.pretrained))
    for network in encoder.modules():
        if isinstance(network, ResNet18):
            network.load_state_dict(fitting(tensors, network, config.pretrained))


def described(config: VisionConfig) -> dict[str, str]:
    """Name, hash and licence of the file of weights, for a checkpoint's provenance; empty where there is none."""
    if not config.pretrained:
        return {}
    path, licence = Path(config.pretrained), getattr(config, "weights_licence", "")
    content = _bytes(path)
    if not licence:
        with safetensors.safe_open(path, "pt") as file:
            told = file.metadata() or {}
        licence = told.get("license", told.get("licence", "not stated"))
    return {"file": path.name, "sha256": hashlib.sha256(content).hexdigest(), "licence": licence}


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"vision.weights={path} cannot be read: {error.strerror}") from error


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(_bytes(path))
    except safetensors.SafetensorError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"vision.weights={path} is no file of safetensors ({reason})") from error


def fitting(tensors: Mapping[str, Tensor], network: ResNet18, where: str) -> dict[str, Tensor]:
    """The state of the network: convolutions as they are, batch normalizations as factor and offset.

    Raises:
        ValueError: a tensor is missing, unknown, of another shape, or not finite.
    """
    norms = {name for name, module in network.named_modules() if isinstance(module, FrozenNorm)}
    state, expected, used = {}, network.state_dict(), set()

    def taken(name: str, shape: torch.Size) -> Tensor:
        used.add(name)
        if name not in tensors:
            raise ValueError(f"vision.weights={where} lacks the tensor {name!r} of a ResNet-18 of torchvision")
        if tensors[name].shape != shape:
            raise ValueError(
                f"vision.weights={where}: {name!r} has shape {tuple(tensors[name].shape)}, "
                f"ResNet-18 needs {tuple(shape)}"
            )
        return tensors[name].float()

    for name, value in expected.items():
        module, _, part = name.rpartition(".")
        if module not in norms:
            state[name] = taken(name, value.shape)
        elif part == "scale":
            weight, bias, mean, variance = (
                taken(f"{module}.{each}", value.shape) for each in ("weight", "bias", "running_mean", "running_var")
            )
            state[name] = weight / (variance + EPS).sqrt()
            state[f"{module}.shift"] = bias - mean * state[name]
    others = [name for name in tensors if name not in used and not any(part in name for part in PASSED_OVER)]
    if others:
        raise ValueError(f"vision.weights={where} holds the tensor {others[0]!r}, which ResNet-18 has not")
    if not all(value.isfinite().all() for value in state.values()):
        raise ValueError(f"vision.weights={where} holds NaN or infinity")
    return state
