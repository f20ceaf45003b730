"""The checkpoint directory: a contract. See docs/concepts.md for the files in it.

config.json and model.safetensors are the policy; golden.safetensors proves at every load that they still give the
action they once gave. These three are all that a robot needs. train_state.pt is what a training run needs to go on.
There is no pickle that could run code, and nothing in a checkpoint names code to import.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from flowhand.contracts.durable import Snapshot, exists, opened, replacing
from flowhand.contracts.features import Spec
from flowhand.contracts.modules import imported_modules
from flowhand.contracts.nearest import difference
from flowhand.contracts.provenance import Provenance
from flowhand.contracts.strict import build, mapping, parse_json

from .batch import DTYPES
from .config import policy_config
from .policy import Policy, PolicyConfig
from .training.train_state import unpacked

FORMAT_VERSION = 1
FILES = ("config.json", "model.safetensors", "golden.safetensors")  # what every checkpoint must have
TRAIN_STATE = "train_state.pt"
# The golden action may differ by this share of an action's spread: other CPUs sum in another order.
GOLDEN_TOLERANCE = 1e-3
GOLDEN_ROWS = 64  # at most; each is a decision at every load
MOST_CONFIG_BYTES = 2**24
MOST_HEADER_BYTES = 2**24  # of a file of tensors, beside the tensors themselves
MOST_TENSOR_BYTES = 2**33  # of all tensors of a file: a configuration can ask for any number

# Of what is read: a checkpoint's directory, that of the run that wrote it, or the files of one that is held open.
Source = Path | str | Snapshot


def save(
    path: Path | str,
    policy: Policy,
    provenance: Provenance,
    golden_observation: Mapping[str, Tensor],
    train_state: Mapping[str, Any],
) -> None:
    """Writes a checkpoint directory atomically: a killed writer leaves the earlier checkpoint whole.

    Args:
        path: the directory; an earlier checkpoint there is replaced.
        policy: its weights become the inference weights (give the EMA).
        provenance: see `Provenance`.
        golden_observation: observation histories (B, O, *shape) to store with the action they give.
        train_state: tensors, numbers, strings, lists and dicts of them; what `load_train_state` gives back.
    """
    rows = len(next(iter(golden_observation.values())))
    if not 1 <= rows <= GOLDEN_ROWS:
        raise ValueError(f"golden_observation has {rows} rows, expected 1 to {GOLDEN_ROWS}")
    policy.check()
    with replacing(path, FILES, "checkpoint") as new:
        config = {
            "format_version": FORMAT_VERSION,
            "policy": asdict(policy.config),
            "spec": policy.spec.to_dict(),
            "provenance": asdict(provenance),
        }
        (new / "config.json").write_bytes(json.dumps(config, indent=1).encode())
        weights = {name: value.detach().cpu().contiguous() for name, value in policy.state_dict().items()}
        (new / "model.safetensors").write_bytes(safetensors.torch.save(weights))
        (new / "golden.safetensors").write_bytes(safetensors.torch.save(_golden(policy, golden_observation)))
        packed = io.BytesIO()  # to a file, torch tells a full disk by an error that does not say so
        torch.save(dict(train_state), packed)
        (new / TRAIN_STATE).write_bytes(packed.getbuffer())


def checkpoint_in(path: Path | str) -> Path:
    """The checkpoint directory that a path stands for: itself, or the one in the folder of a training run."""
    path = Path(path)
    inner = path / "checkpoint"
    return inner if not (path / FILES[0]).exists() and exists(inner) else path


@contextmanager
def snapshot(path: Source) -> Iterator[Snapshot]:
    """The checkpoint's files as they are now.

    Every reader takes it in place of a path: what several readers give belongs together, though a training goes on
    writing.

    Raises:
        ValueError: there is no checkpoint, or a file of it is missing.
    """
    with ExitStack() as stack:
        files = path
        if not isinstance(files, Snapshot):
            try:
                files = stack.enter_context(opened(checkpoint_in(files), (*FILES, TRAIN_STATE)))
            except FileNotFoundError as error:
                raise ValueError(f"there is no checkpoint directory at {path}") from error
        for name in FILES:
            if name not in files:
                raise ValueError(f"{files.path} is no complete checkpoint: {name} is missing")
        yield files


def load(path: Source, device: torch.device | str = "cpu") -> Policy:
    """The policy of a checkpoint directory, or of the run's folder that holds it, ready to sample.

    Raises:
        ValueError: naming what is missing, unknown, of the wrong shape, not finite, or no longer gives the stored
            action.
    """
    with snapshot(path) as files:
        config, spec, provenance = read_config(files)
        expected = _expected_tensors(config, spec)
        tensors = read_tensors(files, "model.safetensors", expected)
        _require_same_tensors(tensors, expected, files.path / "model.safetensors")
        policy = Policy(config, spec)
        policy.load_state_dict(tensors)
        policy.eval().requires_grad_(False)
        policy.came_from(provenance)
        policy.check()
        _check_golden(policy, read_golden(files, policy), files.path / "golden.safetensors")
    return policy.to(device)


def read_config(path: Source) -> tuple[PolicyConfig, Spec, Provenance]:
    """Configuration, specification and provenance of a checkpoint directory, without its weights."""
    with snapshot(path) as files:
        file = files.path / "config.json"
        content = files.read("config.json", MOST_CONFIG_BYTES)
    try:
        data = mapping(parse_json(content.decode()), "the checkpoint")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}); the checkpoint is damaged") from error
    version = data.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {version!r}, this flowhand reads {FORMAT_VERSION}; "
            "a newer flowhand may have written it"
        )
    expected = {"format_version", "policy", "spec", "provenance"}
    if set(data) != expected:
        raise ValueError(f"{file} has the fields {sorted(data)}, expected {sorted(expected)}")
    try:
        spec = Spec.from_dict(mapping(data.get("spec"), "spec"))
        return policy_config(data.get("policy")), spec, build(Provenance, data.get("provenance"), "provenance")
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise ValueError(f"{file}: {error}{_missing_modules(data)}") from error


def _missing_modules(data: Mapping[str, Any]) -> str:
    """What may help where a checkpoint of a user's own components cannot be read."""
    provenance = data.get("provenance")
    named = provenance.get("modules") if isinstance(provenance, Mapping) else None
    modules = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    missing = sorted(set(modules) - set(imported_modules()))
    return f"; it was trained with modules=[{','.join(modules)}]: give them too if you trust them" if missing else ""


def load_train_state(path: Source) -> dict[str, Any]:
    """What `save` was given as `train_state`; tensors on the CPU. Runs no code from the file."""
    with snapshot(path) as files:
        file = files.path / TRAIN_STATE
        if TRAIN_STATE not in files:
            raise ValueError(f"{file} is missing, so no run can go on from this checkpoint")
        content = files.read(TRAIN_STATE, MOST_TENSOR_BYTES)
    try:
        state = unpacked(content)
    except ValueError as error:
        raise ValueError(f"{file} cannot be read ({error}); resume from another checkpoint") from error
    if not isinstance(state, dict):
        raise ValueError(f"{file} holds a {type(state).__name__}, expected a dict; resume from another checkpoint")
    return state


def _golden(policy: Policy, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The observation, noise for it, and the action that the policy gives, as they are stored."""
    rows = len(next(iter(observation.values())))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((rows, *policy.noise_shape), generator=generator).to(policy.action_normalizer.shift.device)
    with torch.no_grad():
        action = policy.sample(observation, noise)
    named = {f"observation.{name}": value for name, value in observation.items()}
    return {name: v.detach().cpu().contiguous() for name, v in {**named, "noise": noise, "action": action}.items()}


def read_golden(path: Source, policy: Policy) -> dict[str, Tensor]:
    """The observations ("observation.<name>"), "noise" and "action" that are stored with this policy.

    Raises:
        ValueError: they are not what this policy takes and gives.
    """
    with snapshot(path) as files:
        file = files.path / "golden.safetensors"
        stored = read_tensors(files, "golden.safetensors", _golden_tensors(policy, GOLDEN_ROWS))
    rows = len(stored["noise"]) if "noise" in stored and stored["noise"].ndim else 1
    _require_same_tensors(stored, _golden_tensors(policy, min(max(1, rows), GOLDEN_ROWS)), file)
    return stored


def _golden_tensors(policy: Policy, rows: int) -> dict[str, Tensor]:
    """Shapes and dtypes of the golden tensors, without memory for them."""
    with torch.device("meta"):
        expected = {
            f"observation.{name}": torch.empty(
                (rows, policy.config.chunk.history, *feature.shape), dtype=DTYPES[feature.dtype]
            )
            for name, feature in policy.spec.observation.items()
        }
        expected["noise"] = torch.empty(rows, *policy.noise_shape)
        expected["action"] = torch.empty(rows, policy.chunk.prediction_horizon, policy.spec.action.size)
    return expected


def _check_golden(policy: Policy, stored: Mapping[str, Tensor], file: Path) -> None:
    """Raises `ValueError` when the policy no longer gives the stored action."""
    observation = {name: stored[f"observation.{name}"] for name in policy.spec.observation}
    with torch.no_grad():
        action = policy.sample(observation, stored["noise"])
    # Beside a large offset the last two bits of a value may be more than this share of the spread.
    rounding = 2 * torch.finfo(action.dtype).eps * stored["action"].abs()
    apart = difference(action.numpy(), stored["action"].numpy(), policy.spec.action)
    beyond = (torch.from_numpy(apart).abs() - rounding).clamp(min=0)  # NaN stays NaN
    error = (beyond / policy.action_spread).max().item()
    if not error <= GOLDEN_TOLERANCE:
        raise ValueError(
            f"{file}: the policy's action differs from the stored one by {error:.2g} of the action's spread (allowed "
            f"{GOLDEN_TOLERANCE}); the weights or the code have changed since the checkpoint was written"
        )


def _expected_tensors(config: PolicyConfig, spec: Spec) -> dict[str, Tensor]:
    """Shapes and dtypes of the policy's tensors, without memory for them: a hostile configuration asks for any size."""
    try:
        with torch.device("meta"):
            return Policy(config, spec).state_dict()
    except (RuntimeError, TypeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the configuration asks for tensors of an impossible size ({reason})") from error


def _require_same_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Path) -> None:
    """Raises `ValueError` naming the tensor that is missing, unknown, or of another shape or dtype."""
    for name in expected:
        if name not in tensors:
            raise ValueError(f"{file} lacks the tensor {name!r}")
    for name, value in tensors.items():
        if name not in expected:
            raise ValueError(f"{file} holds the unknown tensor {name!r}")
        want = expected[name]
        if value.shape != want.shape or value.dtype != want.dtype:
            raise ValueError(
                f"{file}: {name!r} is {value.dtype} {tuple(value.shape)}, the configuration needs {want.dtype} "
                f"{tuple(want.shape)}"
            )


def read_tensors(
    files: Snapshot,
    name: str,
    expected: Mapping[str, Tensor],
    otherwise: str = "the checkpoint is truncated or damaged",
) -> dict[str, Tensor]:
    """The tensors of a file that has no more bytes than the expected ones need, whatever else it holds.

    Raises:
        ValueError: it is larger, or no file of tensors; one line, whatever the file made safetensors say.
    """
    size = sum(value.numel() * value.element_size() for value in expected.values())
    content = files.read(name, MOST_HEADER_BYTES + min(size, MOST_TENSOR_BYTES))
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{files.path / name} cannot be read ({reason}); {otherwise}") from error
