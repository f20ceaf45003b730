"""Denoising nets, all with one signature: one line each."""

from __future__ import annotations

from .base import Net, NetConfig
from .mlp import MLP, MLPConfig
from .transformer import Transformer, TransformerConfig
from .unet1d import UNet1D, UNet1DConfig

NETS = {
    "mlp": (MLPConfig, MLP),
    "transformer": (TransformerConfig, Transformer),
    "unet1d": (UNet1DConfig, UNet1D),
}

__all__ = ["NETS", "Net", "NetConfig"]
