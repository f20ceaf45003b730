"""How chunks become actions: the modes, and simulated delay."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from .features import Spec
from .planner import FORMS
from .strict import whole_numbers

MODES = ("receding_horizon", "temporal_ensembling", *FORMS)
STEEPEST = 1000.0  # weights of an ensemble; the one at the end has all the weight long before
LONGEST_MS = 1e9  # a latency; no chunk bridges as much
EVENT_DT_S = 0.5  # between two actions where each waits for an answer of the world, for those who must keep some time


def pace_s(spec: Spec) -> float:
    """Time between two actions in seconds, also where control waits for events."""
    return EVENT_DT_S if spec.control_dt_s is None else spec.control_dt_s


@dataclass
class ExecutionConfig:
    """How chunks become actions, in evaluation and on a robot alike; mode and delay are independent choices.

    A decision begins every `execution_horizon` control steps, but never before the last one has arrived: inference is
    sequential. Until its chunk arrives the old one goes on; of the new one those actions are skipped whose time passed
    meanwhile. The first chunk of an episode starts at its first action whenever it arrives, for until then the robot
    stands where it decided.

    Modes:
        receding_horizon: the new chunk replaces the old one. The plain choice; with a delay the motion may jump.
        temporal_ensembling: the mean of all chunks that cover the step (Zhao 2023, ACT). Smooth, but the mean of two
            ways round an obstacle is no way. Decides as often as inference allows unless `execution_horizon` is given.
        rtc_exact: real-time chunking (Black 2025, arXiv 2506.07339): the new chunk is drawn to the old one, softly past
            the delay, through the net's Jacobian. For any trained flow policy with a delay.
        rtc_identity: the same with the identity in place of the Jacobian, without its backward pass.
        rtc_trained: the actions of the delay are given to a policy that was trained for it (Black 2025, arXiv
            2512.05964; head.prefix_max above 0). No extra cost, and the first choice where one may train.

    Raises:
        ValueError: an unknown mode, a number out of range, or more than one source of delay.
    """

    mode: str = "receding_horizon"  # receding_horizon | temporal_ensembling | rtc_exact | rtc_identity | rtc_trained
    # control steps from one decision to the next; 0: the checkpoint's own, temporal_ensembling: 1
    execution_horizon: int = 0
    delay: int = 0  # simulated: control steps from an observation to the arrival of the chunk decided from it
    latencies_ms: list[float] = field(default_factory=list)  # simulated: draw each decision's latency from these
    latencies_file: str = ""  # simulated: the same from a file with one number of milliseconds per line
    ensemble_decay: float = 0.01  # temporal_ensembling: m of the weights exp(-m i), i = 0 for the oldest chunk
    # Keep actions between the low and high of the specification; journals from before were written without.
    clip: bool = field(default=True, metadata={"before": False})

    def __post_init__(self) -> None:
        whole_numbers(self)
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} is unknown; choices: {', '.join(MODES)}")
        for name in ("execution_horizon", "delay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not -STEEPEST <= self.ensemble_decay <= STEEPEST:
            raise ValueError(f"ensemble_decay={self.ensemble_decay} must lie in {-STEEPEST}..{STEEPEST}")
        given = [name for name in ("delay", "latencies_ms", "latencies_file") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both given; choose one source of delay")
        _check_latencies(self.latencies_ms, "latencies_ms")

    def delays(self, control_dt_s: float | None) -> list[int]:
        """The simulated delays, in control steps, from which that of each decision is drawn.

        A chunk counts from the first control step at which it is there, so latencies are rounded up.

        Raises:
            ValueError: the file of latencies is missing, empty or holds something else; or there are latencies, and the
                control waits for events.
        """
        latencies = _read_latencies(Path(self.latencies_file)) if self.latencies_file else self.latencies_ms
        if not latencies or control_dt_s is None:
            if latencies:
                raise ValueError("the control waits for events, so latencies in ms mean nothing; give a delay in steps")
            return [self.delay]
        # Rounded to a millionth of a step first: what is three steps long may come out as a little more than 3.
        return [math.ceil(round(ms / 1000 / control_dt_s, 6)) for ms in latencies]

    def interval(self, own: int, horizon: int, delay: int) -> int:
        """Control steps from one decision to the next of a policy with this execution and prediction horizon.

        Raises:
            ValueError: chunks of this length cannot bridge the (largest) delay; the message says what would.
        """
        ensembling = self.mode == "temporal_ensembling"
        steps = self.execution_horizon or (1 if ensembling else own)
        if steps > horizon:
            raise ValueError(f"execution_horizon={steps} must lie in 1..{horizon}")
        if 2 * delay > horizon:
            raise ValueError(
                f"a delay of {delay} control steps is too long for chunks of {horizon}: expected at most {horizon // 2}"
            )
        if not (delay <= steps or ensembling) or max(delay, steps) + delay > horizon:
            raise ValueError(
                f"execution_horizon={steps} does not fit a delay of {delay} control steps and chunks of {horizon}; "
                f"expected {1 if ensembling else max(delay, 1)}..{horizon - delay} "
                "(delay <= execution_horizon <= prediction_horizon - delay)"
            )
        return steps

    def require_calibrated(self, interval: int, mode: str, calibrated: int) -> None:
        """Raises `ValueError` unless a monitor's calibration had this mode and as many control steps to a decision.

        Args:
            interval: control steps from one decision to the next, now.
            mode: of the calibration.
            calibrated: the interval of the calibration.
        """
        if (self.mode, interval) != (mode, calibrated):
            raise ValueError(
                f"the monitor was calibrated for mode={mode!r} with a decision every {calibrated} control steps, not "
                f"for mode={self.mode!r} every {interval}; calibrate again"
            )


def _read_latencies(path: Path) -> list[float]:
    if not path.is_file():
        raise ValueError(f"latencies_file={str(path)!r} does not exist")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    try:
        latencies = [float(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"latencies_file={str(path)!r}: {error}; expected one number of ms per line") from error
    if not latencies:
        raise ValueError(f"latencies_file={str(path)!r} is empty; expected one number of milliseconds per line")
    _check_latencies(latencies, f"latencies_file={str(path)!r}")
    return latencies


def _check_latencies(latencies: list[float], where: str) -> None:
    for latency in latencies:
        if not 0 <= latency <= LONGEST_MS:
            raise ValueError(f"{where} has {latency}; expected milliseconds, 0 to {LONGEST_MS:g}")
