"""Observation encoders, each for one kind of feature: one line each."""

from __future__ import annotations

from .base import Encoder, EncoderConfig
from .fused import compose
from .state import StateEncoder, StateEncoderConfig

ENCODERS = {
    "state": (StateEncoderConfig, StateEncoder),
}

__all__ = ["ENCODERS", "Encoder", "EncoderConfig", "compose"]
