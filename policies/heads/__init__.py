"""Action heads: one line each."""

from __future__ import annotations

from .base import Head, HeadConfig
from .classification import ClassificationConfig, ClassificationHead
from .consistency import ConsistencyConfig, ConsistencyHead
from .diffusion import DiffusionConfig, DiffusionHead
from .drift import DriftConfig, DriftHead
from .edm import EDMConfig, EDMHead
from .flow import FlowConfig, FlowHead
from .mean_flow import MeanFlowConfig, MeanFlowHead
from .mip import MIPConfig, MIPHead
from .regression import RegressionConfig, RegressionHead
from .shortcut import ShortcutConfig, ShortcutHead
from .tokens import TokensConfig, TokensHead

HEADS = {
    "classification": (ClassificationConfig, ClassificationHead),
    "consistency": (ConsistencyConfig, ConsistencyHead),
    "diffusion": (DiffusionConfig, DiffusionHead),
    "drift": (DriftConfig, DriftHead),
    "edm": (EDMConfig, EDMHead),
    "flow": (FlowConfig, FlowHead),
    "mean_flow": (MeanFlowConfig, MeanFlowHead),
    "mip": (MIPConfig, MIPHead),
    "regression": (RegressionConfig, RegressionHead),
    "shortcut": (ShortcutConfig, ShortcutHead),
    "tokens": (TokensConfig, TokensHead),
}

__all__ = ["HEADS", "Head", "HeadConfig"]
