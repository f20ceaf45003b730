"""What can be set of `flowhand export`."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from flowhand.contracts.export.artifact import MODELS, PRECISIONS
from flowhand.contracts.strict import whole_numbers

from ..sampling import SamplingConfig

TOLERANCE = 1e-5  # of fp32, a share of the action's spread


@dataclass
class ExportConfig:
    """What is written, and how exact it must be."""

    # onnx (ONNX Runtime, no torch) | pt2 (a program of torch.export) | aoti (the same compiled by AOTInductor: needs a
    # C++ compiler here, and the same torch and kind of CPU where it runs)
    format: str = "onnx"
    # fp32 | int8 (onnx only: weights and activations of the matrix products are rounded; needs a tolerance)
    precision: str = "fp32"
    rows: int = 1000  # observations on which the actions are compared
    # largest error, as a share of the action's spread; 0: 1e-5. int8 has no default: what error costs no success only
    # an evaluation can tell (python eval.py checkpoint=EXPORT)
    tolerance: float = 0.0
    seed: int = 0  # of these observations and their noise

    def __post_init__(self) -> None:
        whole_numbers(self)
        if self.format not in MODELS:
            raise ValueError(f"format={self.format!r} is unknown; choices: {', '.join(MODELS)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r} is unknown; choices: {', '.join(PRECISIONS)}")
        if self.precision != "fp32" and self.format != "onnx":
            raise ValueError(f"precision={self.precision!r} is possible with format='onnx' only")
        if not 1 <= self.rows <= 1_000_000:
            raise ValueError(f"rows={self.rows} must lie in 1..1000000")
        if not 0 <= self.tolerance <= 1:
            raise ValueError(f"tolerance={self.tolerance} must lie in [0, 1]")

    @property
    def allowed(self) -> float:
        """The largest allowed error, as a share of the action's spread; 0 where one must be given."""
        return self.tolerance or (TOLERANCE if self.precision == "fp32" else 0.0)


@dataclass
class ExportRoot:
    """What `flowhand export` reads."""

    checkpoint: str = MISSING  # folder of a checkpoint, or of the run that wrote it
    export: ExportConfig = field(default_factory=ExportConfig)
    monitor: bool = False  # export the checkpoint's monitor too, its scores as a second output of the graph
    head: SamplingConfig = field(default_factory=SamplingConfig)  # how a checkpoint's head samples, e.g. head.steps=10
    out: str = ""  # folder to write; empty: <format>-<precision> and changes of the head, beside the checkpoint


ROOT = ExportRoot
CHOICES = {}
ABOUT = "Checkpoint -> the whole decision as one file that needs no torch, with proof that it decides the same."
EXAMPLES = ["flowhand export checkpoint=outputs/demo export.format=onnx export.precision=fp32"]
MATTER = (
    "checkpoint",
    "export.format",
    "export.precision",
    "export.tolerance",
    "export.rows",
    "monitor",
    "head.steps",
    "out",
)
