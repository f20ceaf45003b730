"""Observation encoders: one line each."""

from __future__ import annotations

from .base import Encoder, EncoderConfig
from .state import StateEncoder, StateEncoderConfig

ENCODERS = {
    "state": (StateEncoderConfig, StateEncoder),
}

__all__ = ["ENCODERS", "Encoder", "EncoderConfig"]
