"""Denoising nets, all with one signature: one line each."""

from __future__ import annotations

from .base import Net, NetConfig
from .mlp import MLP, MLPConfig
from .transformer import Transformer, TransformerConfig

NETS = {
    "mlp": (MLPConfig, MLP),
    "transformer": (TransformerConfig, Transformer),
}

__all__ = ["NETS", "Net", "NetConfig"]
