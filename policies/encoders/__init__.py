"""Observation encoders, each for one kind of feature: one line each."""

from __future__ import annotations

from .base import Encoder, EncoderConfig
from .elements import ElementsConfig, ElementsEncoder
from .fused import compose
from .state import StateEncoder, StateEncoderConfig
from .vision.config import NoVisionConfig, VisionConfig, image_sizes
from .vision.conv import ConvConfig, ConvEncoder
from .vision.resnet import ResNet18Config, ResNet18Encoder
from .vision.vit import ViTConfig, ViTEncoder
from .words.config import IndexConfig, NoWordsConfig, SentenceConfig
from .words.task import TaskEncoder

ENCODERS = {
    "elements": (ElementsConfig, ElementsEncoder),
    "state": (StateEncoderConfig, StateEncoder),
}
VISION = {
    "none": (NoVisionConfig, None),
    "conv": (ConvConfig, ConvEncoder),
    "resnet18": (ResNet18Config, ResNet18Encoder),
    "vit": (ViTConfig, ViTEncoder),
}
WORDS = {
    "none": (NoWordsConfig, None),
    "index": (IndexConfig, TaskEncoder),
    "sentence": (SentenceConfig, TaskEncoder),
}

__all__ = ["ENCODERS", "VISION", "WORDS", "Encoder", "EncoderConfig", "VisionConfig", "compose", "image_sizes"]
