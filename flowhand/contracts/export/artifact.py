"""The exported policy's directory: a contract, like a checkpoint. No torch, so that a robot can read it without.

    policy.onnx     the whole decision as one graph (policy.pt2: as a program of torch, or as native code)
    golden.npz      observations, noise, and the actions (and scores) of the policy that was exported
    manifest.json   what it sees and commands, how exact it is, where it comes from, the monitor if it has one, and the
                    hashes of the other two

Whoever can write the directory can also write the hashes: they find damage and mix-ups, not forgery.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..durable import Snapshot, opened
from ..execution import pace_s
from ..features import ChunkConfig, Feature, Spec
from ..nearest import difference
from ..planner import check_spec
from ..strict import parse_json
from .exported_monitor import ExportedMonitor

FORMAT_VERSION = 2
BEFORE = 1  # the version that has no monitor, and is read too
MODELS = {"onnx": "policy.onnx", "pt2": "policy.pt2", "aoti": "policy.pt2"}  # format: its file
PRECISIONS = ("fp32", "int8")
MANIFEST, GOLDEN = "manifest.json", "golden.npz"
MOST_BYTES = {MANIFEST: 2**24, GOLDEN: 2**26, "policy.onnx": 2**31 - 1, "policy.pt2": 2**33}
MOST_VALUES = 2**24  # of one array of one decision
LARGEST = float(np.finfo(np.float64).max)  # an integer of JSON may be larger, and no float
# At a load, on another machine, an action may differ by this share of its spread: other CPUs sum in another order.
LOAD_TOLERANCE = 1e-3
# A choice (codec.py) may flip where two are equally good to the last bit: this share of all choices, in fp32.
CHOICES_TOLERANCE = 1e-3
SCORES_TOLERANCE = 1e-2  # of a monitor's scores, at a load; see ExportedMonitor.compare


@dataclass(frozen=True)
class Parity:
    """How far the exported policy's actions are from the original's, as measured when it was written."""

    rows: int  # observations
    tolerance: float  # largest allowed error, as a share of the action's spread; int8: and share of choices that differ
    max_error: float  # largest error of a continuous value, as a share of the action's spread
    max_error_physical: list[float]  # the same of each dimension of the action, in its own unit
    choices_changed: float  # share of the discrete values that differ; 0 where there are none


@dataclass(frozen=True)
class Manifest:
    """What stands in manifest.json."""

    format: str  # onnx | pt2 | aoti
    precision: str  # fp32 | int8
    spec: Spec
    chunk: ChunkConfig
    noise_shape: tuple[int, ...]
    action_spread: list[float]  # the unit of errors: the scale of what the net learns of each dimension
    observation_spread: dict[str, list[float]]  # of every dimension of the vectors observed: what noise is measured in
    parity: Parity
    files: dict[str, dict[str, Any]]  # name: {"bytes": n, "sha256": hexadecimal}
    versions: dict[str, str]
    source: dict[str, Any]  # hashes of the checkpoint's files, and its provenance
    monitor: ExportedMonitor | None = None  # whose scores the graph gives beside the action

    @property
    def choices_allowed(self) -> float:
        """The share of the discrete values that may differ from the original's."""
        return CHOICES_TOLERANCE if self.precision == "fp32" else self.parity.tolerance

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        about = {"rates": rates(self.spec, self.chunk)}
        return {"format_version": FORMAT_VERSION, **asdict(self), "spec": self.spec.to_dict(), **about}

    @classmethod
    def from_dict(cls, data: Any) -> Manifest:
        """The manifest from its JSON form.

        Raises:
            ValueError: an unknown version; a field that is missing, unknown, of the wrong type or out of range.
        """
        version = data.get("format_version") if isinstance(data, dict) else None
        if type(version) is not int or version not in (BEFORE, FORMAT_VERSION):
            newer = "a newer one may have written it"
            raise ValueError(f"format version {version!r}, this flowhand reads {BEFORE} and {FORMAT_VERSION}; {newer}")
        data = {"monitor": None, **data} if version == BEFORE else data
        expected = FIELDS if data.get("monitor") is None else {**FIELDS, "monitor": MONITOR}
        values = dict(_checked(data, expected, "the manifest"))
        del values["format_version"]
        try:
            spec, chunk = Spec.from_dict(values["spec"]), ChunkConfig(**values["chunk"])
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
            raise ValueError(f"spec or chunk: {error}") from error
        if values.pop("rates") != rates(spec, chunk):
            raise ValueError(f"rates contradict spec and chunk, which say {rates(spec, chunk)}")
        parity, monitor = Parity(**values["parity"]), values["monitor"] and ExportedMonitor(**values["monitor"])
        values |= {"spec": spec, "chunk": chunk, "noise_shape": tuple(values["noise_shape"])}
        values |= {"parity": parity, "monitor": monitor}
        manifest = cls(**values)
        manifest._check()
        return manifest

    def _check(self) -> None:
        """Raises `ValueError` where a value is out of range or contradicts another one."""
        check_spec(self.spec)
        for name, choices in (("format", tuple(MODELS)), ("precision", PRECISIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown; choices: {', '.join(choices)}")
        if set(self.files) != {MODELS[self.format], GOLDEN}:
            raise ValueError(f"files are {sorted(self.files)}, expected {sorted((MODELS[self.format], GOLDEN))}")
        for name, shape in self.shapes(1).items():
            if not shape or any(n < 1 for n in shape) or math.prod(shape) > MOST_VALUES:
                raise ValueError(f"{name} of one decision has shape {shape}, expected 1 to {MOST_VALUES} values")
        size, parity = self.spec.action.size, self.parity
        spread_fits = len(self.action_spread) == size and all(s > 0 for s in self.action_spread)
        if not spread_fits or len(parity.max_error_physical) != size:
            raise ValueError(f"action_spread and parity.max_error_physical must have {size} numbers, spreads positive")
        vectors = {name: f.size for name, f in self.spec.observation.items() if f.kind == "state"}
        given = _checked(self.observation_spread, {name: [float] for name in vectors}, "observation_spread")
        if any(len(given[name]) != n or not all(s > 0 for s in given[name]) for name, n in vectors.items()):
            raise ValueError(f"observation_spread must have {vectors} positive numbers")
        if parity.rows < 1 or not 0 <= parity.max_error <= parity.tolerance <= 1:
            raise ValueError(f"parity contradicts itself: {parity}")

    def shapes(self, rows: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs and of the outputs for so many rows, by their names in the graph."""
        history, horizon = self.chunk.history, self.chunk.prediction_horizon
        shapes = {f"observation.{n}": (rows, history, *f.shape) for n, f in self.spec.observation.items()}
        shapes |= {"noise": (rows, *self.noise_shape), "action": (rows, horizon, self.spec.action.size)}
        return shapes | ({"scores": (rows, len(self.monitor.scores))} if self.monitor else {})

    @property
    def outputs(self) -> list[str]:
        """Names of the graph's outputs, in order."""
        return ["action", "scores"] if self.monitor else ["action"]

    def inputs(self, observation: Mapping[str, np.ndarray], noise: np.ndarray) -> dict[str, np.ndarray]:
        """The graph's inputs by name.

        Raises:
            ValueError: an observation that is missing or unknown, or an array of the wrong shape or dtype.
        """
        given = {**{f"observation.{name}": value for name, value in observation.items()}, "noise": noise}
        shapes, dtypes = self.shapes(len(noise) if np.ndim(noise) else 1), self.dtypes()
        if set(given) != (needed := set(shapes).difference(self.outputs)):
            raise ValueError(f"the decision got {sorted(given)}, it needs {sorted(needed)}")
        for name, value in given.items():
            if value.shape != shapes[name] or value.dtype != dtypes[name]:
                raise ValueError(
                    f"{name} is {value.dtype} {value.shape}, the policy needs {dtypes[name]} {shapes[name]}"
                )
        return given

    def dtypes(self) -> dict[str, str]:
        """Data types of the inputs and the outputs, by name."""
        observation = {f"observation.{name}": f.dtype for name, f in self.spec.observation.items()}
        return {**observation, **dict.fromkeys(["noise", *self.outputs], "float32")}

    def compare(self, action: np.ndarray, expected: np.ndarray) -> tuple[float, list[float], float]:
        """Errors of actions (B, T, A) as in `Parity`: the largest, those of the dimensions, choices changed."""
        return compare(action, expected, self.action_spread, self.spec.action)


def compare(
    action: np.ndarray, expected: np.ndarray, spread: list[float], feature: Feature
) -> tuple[float, list[float], float]:
    """The largest error as a share of the spread, that of each dimension in its unit, the share of other choices.

    Beside a large offset the last two bits of a value may be more than any share of the spread; they do not count. Of
    angles and rotations equal values are equal.
    """
    error_BTA = np.abs(difference(action, expected, feature))
    error_A = error_BTA.max(axis=(0, 1))
    if not np.isfinite(error_A).all():
        return math.inf, [math.inf] * len(error_A), 1.0
    discrete = feature.discrete
    changed = float((action != expected)[..., discrete].mean()) if discrete.any() else 0.0
    rounding = 2 * np.finfo(np.float32).eps * np.abs(expected.astype(np.float64))
    continuous = np.where(discrete, 0, np.maximum(error_BTA - rounding, 0).max(axis=(0, 1)))
    return float((continuous / spread).max()), error_A.tolist(), changed


def rates(spec: Spec, chunk: ChunkConfig) -> dict[str, float]:
    """Control steps and decisions per second."""
    dt = pace_s(spec)
    return {"control_hz": 1 / dt, "decision_hz": 1 / (dt * chunk.execution_horizon)}


FIELDS: dict[str, Any] = {
    "format_version": int,
    "format": str,
    "precision": str,
    "spec": {"observation": dict, "action": dict, "control_dt_s": float},
    "chunk": {"history": int, "prediction_horizon": int, "execution_horizon": int, "loss_on_padding": bool},
    "noise_shape": [int],
    "rates": {"control_hz": float, "decision_hz": float},
    "action_spread": [float],
    "observation_spread": dict,
    "parity": {
        "rows": int,
        "tolerance": float,
        "max_error": float,
        "max_error_physical": [float],
        "choices_changed": float,
    },
    "files": dict,
    "versions": dict,
    "source": dict,
    "monitor": type(None),
}
MONITOR: dict[str, Any] = {
    "scores": [str],
    "mode": str,
    "interval": int,
    "alpha": float,
    "confidence": float,
    "limit": float,
    "calibrated": int,
    "center": [[float]],
    "spread": [[float]],
    "max_error": float,
    "about": dict,
}


def _checked(data: Any, expected: Any, where: str) -> Any:
    """The data itself; `ValueError` naming what is missing, unknown or of the wrong type."""
    if isinstance(expected, dict):
        if not isinstance(data, dict) or set(data) != set(expected):
            got = sorted(data) if isinstance(data, dict) else data
            raise ValueError(f"{where} has the fields {got!r}, expected {sorted(expected)}")
        return {name: _checked(data[name], kind, name) for name, kind in expected.items()}
    if isinstance(expected, list):
        if not isinstance(data, list):
            raise ValueError(f"{where} is {data!r}, expected a list")
        return [_checked(value, expected[0], where) for value in data]
    good = isinstance(data, int | float) if expected is float else isinstance(data, expected)
    if not good or isinstance(data, bool) != (expected is bool) or (expected is float and not abs(data) <= LARGEST):
        raise ValueError(f"{where} is {data!r}, expected a finite {expected.__name__}")
    return data


def read(path: Path | str) -> tuple[Manifest, bytes, dict[str, np.ndarray]]:
    """Manifest, model and golden arrays of an exported policy; each file is read once and checked against its hash.

    Raises:
        ValueError: naming what is missing, unknown, too large, damaged, of the wrong shape or not finite.
    """
    with ExitStack() as stack:
        try:
            files = stack.enter_context(opened(path, MOST_BYTES, links=False))
        except FileNotFoundError as error:
            raise ValueError(f"there is no exported policy at {path}") from error
        return _read(files)


def _read(files: Snapshot) -> tuple[Manifest, bytes, dict[str, np.ndarray]]:
    path = files.path
    try:
        manifest = Manifest.from_dict(parse_json(_bytes(files, MANIFEST)))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path / MANIFEST}: {error}") from error
    content = {}
    for name, stated in manifest.files.items():
        content[name] = _bytes(files, name)
        found = fingerprint(content[name])
        if found != stated:
            raise ValueError(
                f"{path / name} has {found}, its manifest says {stated}; it is damaged or another export's"
            )
    try:
        golden = _golden(content[GOLDEN], manifest)
    except Exception as error:  # damaged archives and arrays are met with errors of any kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path / GOLDEN}: {reason}") from error
    return manifest, content[MODELS[manifest.format]], golden


def fingerprint(content: bytes) -> dict[str, Any]:
    """Size and hash of a file, as the manifest states them."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _bytes(files: Snapshot, name: str) -> bytes:
    if name not in files:
        raise ValueError(f"there is no file {files.path / name}")
    return files.read(name, MOST_BYTES[name])


def _golden(content: bytes, manifest: Manifest) -> dict[str, np.ndarray]:
    """The golden arrays; `ValueError` unless they are exactly the expected ones, finite and of the right shapes."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > MOST_BYTES[GOLDEN]:
            raise ValueError(f"it unpacks to {size} bytes, more than the {MOST_BYTES[GOLDEN]} allowed")
        names = sorted(archive.namelist())  # numpy takes "x" and "x.npy" for the same array, and the last of two
        if names != sorted(f"{name}.npy" for name in manifest.shapes(1)):
            raise ValueError(f"it holds {names}, expected {sorted(f'{name}.npy' for name in manifest.shapes(1))}")
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    rows = arrays["noise"].shape[0] if "noise" in arrays and arrays["noise"].ndim else 1
    shapes, dtypes = manifest.shapes(max(1, rows)), manifest.dtypes()
    for name, value in arrays.items():
        if value.shape != shapes[name] or value.dtype != dtypes[name]:
            raise ValueError(f"{name!r} is {value.dtype} {value.shape}, expected {dtypes[name]} {shapes[name]}")
        if not np.isfinite(value).all():
            raise ValueError(f"{name!r} has NaN or infinity")
    return arrays


def is_export(path: Path | str) -> bool:
    """Whether the directory is an export and no checkpoint."""
    try:
        with opened(path, (MANIFEST,)) as files:
            return MANIFEST in files
    except FileNotFoundError:
        return False
