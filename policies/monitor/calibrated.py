"""A policy that scores its own decisions, and the calibrated monitor stored beside its checkpoint.

    monitor/config.json           which scores, the promise, and what it was calibrated for
    monitor/monitor.safetensors   the band, and the density's flow where a score needs it

Whoever loads it must hold the very policy that was calibrated: the configuration has the hash of the checkpoint's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from flowhand.contracts.argument import argument
from flowhand.contracts.durable import Snapshot, opened, replacing
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.export.band import Band
from flowhand.contracts.export.exported_monitor import ExportedMonitor
from flowhand.contracts.planner import FORMS
from flowhand.contracts.strict import build, mapping, parse_json, whole_numbers

from ..checkpoint import MOST_TENSOR_BYTES, Source, read_tensors, snapshot
from ..policy import Policy
from .density import Density, DensityConfig, embedded_size
from .scores import SCORES
from .watched_policy import WatchedPolicy

FORMAT_VERSION = 1
FOLDER = "monitor"  # in the checkpoint
FILES = ("config.json", "monitor.safetensors")
HASHED = ("config.json", "model.safetensors")  # of the checkpoint: what its scores depend on
MOST_CONFIG_BYTES = 2**20
MOST_BAND_VALUES = 2**22  # decisions times scores


@dataclass
class MonitorConfig:
    """What watches a policy, and what it promises."""

    # acceleration (flow heads) | entropy | logpz | logpzo | stac; they raise alarms together; empty: acceleration for a
    # flow head of two or more steps, logpzo for others
    scores: list[str] = field(default_factory=list)
    alpha: float = 0.05  # largest share of nominal successful episodes with a false alarm, in (0, 1)
    # probability, in [0, 1), with which this calibration keeps to alpha; 0: calibrations keep to it on average
    confidence: float = 0.9
    samples: int = 8  # chunks sampled per decision for entropy and stac
    density: DensityConfig = field(default_factory=DensityConfig)  # for logpz and logpzo

    def __post_init__(self) -> None:
        whole_numbers(self)
        unknown = [name for name in self.scores if name not in SCORES]
        if unknown or len(set(self.scores)) < len(self.scores):
            raise ValueError(f"scores={self.scores} must be different ones of: {', '.join(sorted(SCORES))}")
        if not 0 < self.alpha < 1 or not 0 <= self.confidence < 1:
            raise ValueError(f"alpha={self.alpha} must lie in (0, 1) and confidence={self.confidence} in [0, 1)")
        if not 2 <= self.samples <= 1024:
            raise ValueError(f"samples={self.samples} must lie in 2..1024")


@dataclass
class Calibration:
    """What a monitor was calibrated for and on."""

    monitor: MonitorConfig
    mode: str  # of execution
    interval: int  # control steps between two decisions
    env: dict[str, Any]  # configuration of the world, kind included
    first_seed: int  # of the episodes rolled out
    episodes: int  # rolled out
    successes: int  # of them, which the band is made of


@dataclass
class CalibratedMonitor:
    """Everything that watching a policy takes beside the policy itself."""

    about: Calibration
    band: Band
    density: Density | None

    def exported(self) -> ExportedMonitor:
        """The monitor as an export's manifest has it, its error not measured yet.

        Raises:
            ValueError: it was calibrated for a mode that an export does not have.
        """
        about, band = self.about, self.band
        if about.mode in FORMS:
            raise ValueError(
                f"the monitor was calibrated for mode={about.mode!r}, which continues chunks, and an export does not"
            )
        return ExportedMonitor(
            scores=about.monitor.scores,
            mode=about.mode,
            interval=about.interval,
            alpha=band.alpha,
            confidence=band.confidence,
            limit=band.limit,
            calibrated=band.calibrated,
            center=band.center_ND.tolist(),
            spread=band.spread_ND.tolist(),
            max_error=0.0,
            about={name: getattr(about, name) for name in ("env", "first_seed", "episodes", "successes")},
        )

    def watch(self, policy: Policy, execution: ExecutionConfig) -> WatchedPolicy:
        """The policy with the scores of the band.

        Raises:
            ValueError: an execution for which the band was not calibrated.
        """
        monitor = self.about.monitor
        watched = WatchedPolicy(policy, monitor.scores, execution, monitor.samples, self.density)
        execution.require_calibrated(watched.interval, self.about.mode, self.about.interval)
        return watched


def digest(checkpoint: Source) -> str:
    """SHA-256 of the checkpoint's files on which scores depend."""
    with snapshot(checkpoint) as files:
        return files.digest(HASHED, MOST_TENSOR_BYTES)


def save_monitor(checkpoint: Path | str, calibrated: CalibratedMonitor) -> Path:
    """Writes the monitor into the checkpoint, atomically; an earlier one is replaced. Returns its folder."""
    folder, band = Path(checkpoint) / FOLDER, calibrated.band
    tensors = {"band.center": torch.from_numpy(band.center_ND), "band.spread": torch.from_numpy(band.spread_ND)}
    if calibrated.density is not None:
        tensors |= {f"density.{name}": value for name, value in calibrated.density.state_dict().items()}
    numbers = {"limit": band.limit, "calibrated": band.calibrated}
    config = {"format_version": FORMAT_VERSION, "checkpoint": digest(checkpoint), "band": numbers}
    config["about"] = asdict(calibrated.about)
    with replacing(folder, FILES, "monitor") as new:
        (new / FILES[0]).write_text(json.dumps(config, indent=1) + "\n")
        (new / FILES[1]).write_bytes(safetensors.torch.save(tensors))
    return folder


def load_monitor(checkpoint: Path | str, policy: Policy) -> CalibratedMonitor:
    """The monitor of a checkpoint, for the policy loaded from it.

    Raises:
        ValueError: there is none, it is damaged, or it was calibrated for another policy.
    """
    with ExitStack() as stack:
        held = stack.enter_context(snapshot(checkpoint))
        try:
            files = stack.enter_context(opened(held.path / FOLDER, FILES))
        except FileNotFoundError:
            files = None
        if files is None or not all(name in files for name in FILES):
            raise ValueError(
                f"{held.path} has no monitor; flowhand calibrate {argument('checkpoint', held.path)} calibrates one"
            )
        return _load_monitor(files, digest(held), policy)


def _load_monitor(files: Snapshot, policy_digest: str, policy: Policy) -> CalibratedMonitor:
    folder = files.path
    data = _read_config(files)
    if data["checkpoint"] != policy_digest:
        raise ValueError(f"{folder} was calibrated for another policy than {folder.parent} holds; calibrate again")
    where = f"{folder / FILES[0]}: about"
    values = dict(mapping(data["about"], where))
    monitor = dict(mapping(values.get("monitor"), f"{where}.monitor"))
    monitor["density"] = build(DensityConfig, monitor.get("density"), f"{where}.monitor.density")
    values["monitor"] = build(MonitorConfig, monitor, f"{where}.monitor")
    about = build(Calibration, values, where)
    numbers = build(_Numbers, data["band"], f"{folder / FILES[0]}: band")
    expected = _density_tensors(about, policy) | {
        "band": torch.empty(2 * MOST_BAND_VALUES, dtype=torch.float64, device="meta")
    }
    tensors = read_tensors(files, FILES[1], expected, "calibrate again")
    density = _density(tensors, about, policy, folder)
    band = _band(tensors, about, numbers, folder)
    return CalibratedMonitor(about, band, density)


@dataclass
class _Numbers:
    """Those of a band that config.json holds beside the promise."""

    limit: float
    calibrated: int


def _read_config(files: Snapshot) -> Mapping[str, Any]:
    file, content = files.path / FILES[0], files.read(FILES[0], MOST_CONFIG_BYTES)
    try:
        data = mapping(parse_json(content.decode()), str(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}); calibrate again") from error
    expected = {"format_version", "checkpoint", "band", "about"}
    if set(data) != expected or type(data["format_version"]) is not int or data["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{file} has the fields {sorted(data)} and the format version {data.get('format_version')!r}, expected "
            f"{sorted(expected)} and {FORMAT_VERSION}; a newer flowhand may have written it"
        )
    return data


def _density_tensors(about: Calibration, policy: Policy) -> dict[str, Tensor]:
    """Shapes and dtypes of the density, if a score needs one, without memory for it."""
    if not any("density" in SCORES[name].needs for name in about.monitor.scores):
        return {}
    with torch.device("meta"):
        return Density(about.monitor.density, embedded_size(policy.encoder.size, policy.encoder.tokens)).state_dict()


def _density(tensors: dict[str, Tensor], about: Calibration, policy: Policy, folder: Path) -> Density | None:
    """The density that the tensors hold, of exactly the shape that the policy's embedding asks for."""
    found = {name: tensors.pop(name) for name in sorted(tensors) if name.startswith("density.")}
    expected = _density_tensors(about, policy)
    shapes = {f"density.{name}": (value.shape, value.dtype) for name, value in expected.items()}
    if {name: (value.shape, value.dtype) for name, value in found.items()} != shapes:
        raise ValueError(f"{folder / FILES[1]} does not hold the density that its configuration describes")
    if not all(torch.isfinite(value).all() for value in found.values()):
        raise ValueError(f"{folder / FILES[1]}: the density has NaN or infinity; calibrate again")
    if not expected:
        return None
    density = Density(about.monitor.density, embedded_size(policy.encoder.size, policy.encoder.tokens))
    density.load_state_dict({name.removeprefix("density."): value for name, value in found.items()})
    return density.eval().requires_grad_(False)


def _band(tensors: dict[str, Tensor], about: Calibration, numbers: _Numbers, folder: Path) -> Band:
    """The band that the tensors hold, one column for each score."""
    sound = all(a.dtype == torch.float64 and a.numel() and a.isfinite().all() for a in tensors.values())
    shapes = {a.shape for a in tensors.values()}
    fit = len(shapes) == 1 and {shape[1:] for shape in shapes} == {(len(about.monitor.scores),)}
    if set(tensors) != {"band.center", "band.spread"} or not (sound and fit):
        raise ValueError(f"{folder / FILES[1]} does not hold the band that its configuration describes")
    arrays = {name: value.numpy() for name, value in tensors.items()}
    if not (arrays["band.spread"] > 0).all():
        raise ValueError(f"{folder / FILES[1]}: a band's spread must be positive; calibrate again")
    monitor = about.monitor
    return Band(
        arrays["band.center"],
        arrays["band.spread"],
        numbers.limit,
        monitor.alpha,
        monitor.confidence,
        numbers.calibrated,
    )
