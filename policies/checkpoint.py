"""The checkpoint directory: a contract. See docs/concepts.md for the files in it.

config.json and model.safetensors are the policy; golden.safetensors proves at every load that they still give the
action they once gave. These three are all that a robot needs. train_state.pt is what a training run needs to go on.
There is no pickle that could run code, and nothing in a checkpoint names code to import.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .batch import DTYPES
from .config import build, mapping, policy_config
from .policy import Policy, PolicyConfig
from .spec import Spec

FORMAT_VERSION = 1
FILES = ("config.json", "model.safetensors", "golden.safetensors")  # what every checkpoint must have
# The golden action may differ by this share of an action's spread: other CPUs sum in another order.
GOLDEN_TOLERANCE = 1e-3
MAX_CONFIG_BYTES = 16 * 2**20


@dataclass
class Provenance:
    """Where a policy comes from: what evaluation needs to know and a reader wants to know."""

    env: dict[str, Any]  # the environment's configuration, kind included
    env_version: str  # versions of the simulator packages
    task: str  # instruction in words
    demonstrations: str  # content hash of the demonstrations
    demonstration_seeds: list[int]  # start-state seeds of the demonstrations; evaluation must not use them
    versions: dict[str, str]  # packages at the time of training
    git_sha: str  # commit of the working tree, "" if there was none
    train_steps: int  # optimizer steps behind these weights


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
    path = Path(path)
    policy.check()
    with replacing(path) as new:
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
        torch.save(dict(train_state), new / "train_state.pt")


def load(path: Path | str, device: torch.device | str = "cpu") -> Policy:
    """The policy of a checkpoint directory, ready to sample.

    Raises:
        ValueError: naming what is missing, unknown, of the wrong shape, not finite, or no longer gives the stored
            action.
    """
    path = _complete(Path(path))
    config, spec, _ = read_config(path)
    tensors = read_tensors(path / "model.safetensors")
    _require_same_tensors(tensors, _expected_tensors(config, spec), path / "model.safetensors")
    policy = Policy(config, spec)
    policy.load_state_dict(tensors)
    policy.eval().requires_grad_(False)
    policy.check()
    _check_golden(policy, path / "golden.safetensors")
    return policy.to(device)


def read_config(path: Path | str) -> tuple[PolicyConfig, Spec, Provenance]:
    """Configuration, specification and provenance of a checkpoint directory, without its weights."""
    path = _complete(Path(path))
    file = path / "config.json"
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{file} has {file.stat().st_size} bytes, more than any checkpoint's configuration")
    try:
        data = mapping(json.loads(file.read_text()), "the checkpoint")
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
        raise ValueError(f"{file}: {error}") from error


def load_train_state(path: Path | str) -> dict[str, Any]:
    """What `save` was given as `train_state`; tensors on the CPU. Runs no code from the file."""
    file = _complete(Path(path)) / "train_state.pt"
    if not file.is_file():
        raise ValueError(f"{file} is missing, so no run can go on from this checkpoint")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler meets damaged bytes with errors of any kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file} cannot be read ({reason}); resume from another checkpoint") from error
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


def _check_golden(policy: Policy, file: Path) -> None:
    """Raises `ValueError` when the policy no longer gives the stored action."""
    stored = read_tensors(file)
    rows = max(1, len(stored["noise"])) if "noise" in stored and stored["noise"].ndim else 1
    with torch.device("meta"):
        expected = {
            f"observation.{name}": torch.empty(
                (rows, policy.config.chunk.history, *feature.shape), dtype=DTYPES[feature.dtype]
            )
            for name, feature in policy.spec.observation.items()
        }
        expected["noise"] = torch.empty(rows, *policy.noise_shape)
        expected["action"] = torch.empty(rows, policy.chunk.prediction_horizon, policy.spec.action.size)
    _require_same_tensors(stored, expected, file)
    observation = {name: stored[f"observation.{name}"] for name in policy.spec.observation}
    with torch.no_grad():
        action = policy.sample(observation, stored["noise"])
    error = ((action - stored["action"]) / policy.action_normalizer.scale).abs().max().item()
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


def read_tensors(file: Path, otherwise: str = "the checkpoint is truncated or damaged") -> dict[str, Tensor]:
    """The tensors of a file; `ValueError` in one line if it has none, whatever the file made safetensors say."""
    try:
        return safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read ({' '.join(str(error).split())}); {otherwise}") from error


def _complete(path: Path) -> Path:
    """The directory with all its files; finishes a replacement that a kill interrupted between its two renames."""
    previous = path.with_name(path.name + ".previous")
    if not path.exists() and previous.is_dir():
        os.rename(previous, path)
    if not path.is_dir():
        raise ValueError(f"there is no checkpoint directory at {path}")
    for name in FILES:
        if not (path / name).is_file():
            raise ValueError(f"{path} is no complete checkpoint: {name} is missing")
    return path


@contextmanager
def replacing(path: Path, files: Collection[str] = FILES, what: str = "checkpoint") -> Iterator[Path]:
    """Gives a new directory beside `path` and puts it in its place when the block ends without an error.

    Raises:
        ValueError: something is at `path` that lacks these files, so it is not what would be replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not all((path / name).is_file() for name in files):
        raise ValueError(f"{path} exists and is no {what}; it is not overwritten, choose another path")
    for left_by_a_killed_writer in path.parent.glob(f"{path.name}.tmp-*"):
        shutil.rmtree(left_by_a_killed_writer, ignore_errors=True)
    new = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    new.mkdir()
    previous = path.with_name(path.name + ".previous")
    try:
        yield new
        for file in (*new.iterdir(), new):
            _sync(file)
        if path.exists():
            shutil.rmtree(previous, ignore_errors=True)
            os.rename(path, previous)
        os.rename(new, path)
        _sync(path.parent)
        shutil.rmtree(previous, ignore_errors=True)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    """Forces a file's content, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
