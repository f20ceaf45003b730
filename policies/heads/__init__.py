"""Action heads: one line each."""

from __future__ import annotations

from .base import Head, HeadConfig
from .flow import FlowConfig, FlowHead
from .regression import RegressionConfig, RegressionHead

HEADS = {
    "flow": (FlowConfig, FlowHead),
    "regression": (RegressionConfig, RegressionHead),
}

__all__ = ["HEADS", "Head", "HeadConfig"]
