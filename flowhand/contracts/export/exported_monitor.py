"""The monitor of an exported policy: a calibrated band, and scores from the graph that decides. No torch here.

    policy = flowhand.deploy.runner.load("outputs/demo/onnx-fp32")  # exported with monitor=true
    monitor = Monitor(policy.manifest.monitor, policy, execution)
    inference_thread = InferenceThread(monitor.policy, execution)

The scores are those for which the band was calibrated, as exact as the export's actions: the manifest says how exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..execution import ExecutionConfig
from ..planner import Planner, PrefixArrays
from .band import Band

MOST_DECISIONS = 100_000  # of a band's shape


class ScoringPlanner(Planner, Protocol):
    """An exported policy whose graph also gives a monitor's scores."""

    def outputs(self, observation: Mapping[str, np.ndarray], noise: np.ndarray) -> dict[str, np.ndarray]:
        """Chunks "action" (B, T, A) and "scores" (B, D)."""
        ...


@dataclass(frozen=True)
class ExportedMonitor:
    """What stands in the manifest of an export with a monitor; `flowhand.control.alarm.Monitor` takes it.

    Raises:
        ValueError: values out of range, or a band that does not fit its scores.
    """

    scores: list[str]  # names, in the order of the graph's output
    mode: str  # of the execution that was calibrated
    interval: int  # control steps from one decision to the next, then
    alpha: float  # the promise, as in flowhand/contracts/export/band.py
    confidence: float
    limit: float
    calibrated: int
    center: list[list[float]]  # (N, D), of each score at each decision
    spread: list[list[float]]
    max_error: float  # of a score of the graph, see `compare`, as measured when it was written
    about: dict[str, Any]  # world, seeds and number of the episodes of the calibration

    def __post_init__(self) -> None:
        size = len(self.scores)
        if not 1 <= size <= 100 or len(set(self.scores)) < size or not all(map(str.isidentifier, self.scores)):
            raise ValueError(f"monitor.scores are {self.scores}, expected 1 to 100 different names")
        shapes = {len(self.center), len(self.spread)}
        if len(shapes) > 1 or not 1 <= len(self.center) <= MOST_DECISIONS:
            raise ValueError(f"monitor.center and monitor.spread must have as many decisions, 1..{MOST_DECISIONS}")
        if any(len(row) != size for row in (*self.center, *self.spread)):
            raise ValueError(f"monitor.center and monitor.spread must have {size} numbers a decision, one for a score")
        if not all(0 < value < math.inf for row in self.spread for value in row):
            raise ValueError("monitor.spread must be positive")
        if not all(math.isfinite(value) for row in (*self.center, [self.limit]) for value in row):
            raise ValueError("monitor.center and monitor.limit must be finite: others would alarm always, or never")
        if not 0 < self.alpha < 1 or not 0 <= self.confidence < 1 or not 0 <= self.max_error <= 1:
            raise ValueError(
                f"monitor.alpha={self.alpha} must lie in (0, 1), monitor.confidence={self.confidence} in [0, 1) and "
                f"monitor.max_error={self.max_error} in [0, 1]"
            )
        if self.interval < 1 or self.calibrated < 1:
            raise ValueError(f"monitor.interval={self.interval} and calibrated={self.calibrated} must be 1 or more")

    @property
    def band(self) -> Band:
        """The limits of the scores."""
        center_ND, spread_ND = np.array(self.center, np.float64), np.array(self.spread, np.float64)
        return Band(center_ND, spread_ND, self.limit, self.alpha, self.confidence, self.calibrated)

    def compare(self, scores_BD: np.ndarray, expected_BD: np.ndarray) -> float:
        """The largest error of scores, as a share of the score or, where that is larger, of the band's mean spread."""
        unit_BD = np.maximum(np.abs(expected_BD.astype(np.float64)), self.band.spread_ND.mean(0))
        error_BD = np.abs(scores_BD - expected_BD.astype(np.float64)) / unit_BD
        return float(error_BD.max()) if np.isfinite(error_BD).all() else math.inf

    def watch(self, policy: ScoringPlanner, execution: ExecutionConfig) -> WatchedExport:
        """The exported policy, noting its scores.

        Raises:
            ValueError: an execution for which the band was not calibrated.
        """
        interval = execution.interval(policy.chunk.execution_horizon, policy.chunk.prediction_horizon, 0)
        execution.require_calibrated(interval, self.mode, self.interval)
        return WatchedExport(policy, self.scores)


class WatchedExport:
    """An exported policy as the planner of one robot that also notes the score of every decision.

    Args:
        policy: decides.
        names: of the scores.

    Attributes:
        scores_ND: of the decisions since `begin`.
    """

    def __init__(self, policy: ScoringPlanner, names: list[str]):
        self.policy, self.names = policy, names
        self.spec, self.chunk, self.noise_shape = policy.spec, policy.chunk, policy.noise_shape
        self.continues = policy.continues
        self.begin()

    def begin(self) -> None:
        """Starts an episode. A decision that is still being made is noted for the old one."""
        self.scores_ND: list[list[float]] = []

    def plan(
        self, observation: Mapping[str, np.ndarray], noise: np.ndarray, prefix: PrefixArrays | None = None
    ) -> np.ndarray:
        """The policy's chunk (1, T, A) for one robot, of which the scores are noted.

        Raises:
            ValueError: more than one row, or a prefix.
        """
        if prefix is not None:
            raise ValueError(f"an export continues no chunks, got prefix.form={prefix.form!r}")
        if len(noise) != 1:
            raise ValueError(f"a watched policy decides for one robot at a time, got {len(noise)} rows")
        scores_ND, found = self.scores_ND, self.policy.outputs(observation, noise)
        scores_ND.append(found["scores"][0].tolist())
        return found["action"]
