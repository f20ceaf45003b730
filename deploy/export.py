"""Exports a checkpoint: `python -m deploy.export checkpoint=outputs/demo/checkpoint format=onnx precision=fp32`.

The whole decision (normalizer, encoder, K-step sampler, de-normalizer) becomes one graph with the noise as an input and
any number of rows. Nothing is written unless the graph gives the same actions as the policy.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import logging
import platform
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from policies import checkpoint
from policies.controller import Planner
from policies.nets import unet1d
from policies.policy import Policy

from . import artifact
from .artifact import CHOICES_TOLERANCE, GOLDEN, MANIFEST, MODELS, PRECISIONS, Manifest, Parity
from .runner import Runner
from .runner_torch import TorchRunner

TOLERANCE = {"fp32": 1e-5, "int8": 0.3}  # shares of the action's spread
ROWS = (1, 3, 16, 100)  # batch sizes at which the actions are compared, in turn
EXTRA = "the export to ONNX needs onnx, onnxscript and onnxruntime: pip install onnx onnxscript onnxruntime"


@dataclass
class ExportConfig:
    """What is written, and how exact it must be."""

    format: str = "onnx"  # onnx (deploy.runner: ONNX Runtime, no torch) | pt2 (deploy.runner_torch: torch.export)
    # fp32 | int8 (onnx only: weights and activations of the matrix products are rounded; evaluate its success again)
    precision: str = "fp32"
    rows: int = 1000  # observations on which the actions are compared
    tolerance: float = 0.0  # largest error, as a share of the action's spread; 0: 1e-5 for fp32, 0.3 for int8
    seed: int = 0  # of these observations and their noise

    def __post_init__(self) -> None:
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
        """The largest allowed error, as a share of the action's spread."""
        return self.tolerance or TOLERANCE[self.precision]


class Decision(nn.Module):
    """One decision as a function of tensors alone."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy = policy

    def forward(self, noise: Tensor, observation: dict[str, Tensor]) -> Tensor:
        """Noise (B, *noise_shape) and histories (B, O, *shape) to chunks (B, T, A)."""
        return self.policy.sample(observation, noise)


def export(
    path: Path | str,
    policy: Policy,
    golden: Mapping[str, Tensor],
    source: Mapping[str, Any],
    config: ExportConfig | None = None,
) -> Manifest:
    """Writes the policy's decision as one graph, atomically, after comparing its actions with the policy's own.

    Args:
        path: the directory; an earlier export there is replaced.
        policy: on the CPU.
        golden: observation histories (B, O, *shape) and "noise" (B, *noise_shape): observations that occur.
        source: where the policy comes from, for the manifest; any JSON.
        config: see `ExportConfig`.

    Returns:
        The manifest, with the error that was measured.

    Raises:
        ValueError: an action of the graph is further from the policy's own than the tolerance allows.
        ImportError: a package that the format needs is missing.
    """
    config, path = config or ExportConfig(), Path(path)
    policy.check()
    rows = held_out(policy, golden, config)
    model = _model(policy, rows, config)
    expected = policy.plan(*_split(rows, slice(0, len(golden["noise"]))))
    stored = _npz({**{n: v[: len(expected)] for n, v in rows.items()}, "action": expected})
    manifest = Manifest(
        format=config.format,
        precision=config.precision,
        spec=policy.spec,
        chunk=policy.chunk,
        noise_shape=policy.noise_shape,
        action_spread=policy.action_normalizer.scale.double().tolist(),
        parity=Parity(config.rows, config.allowed, 0.0, [0.0] * policy.spec.action.size, 0.0),
        files={name: artifact.fingerprint(data) for name, data in ((MODELS[config.format], model), (GOLDEN, stored))},
        versions=versions(),
        source=dict(source),
    )
    manifest = measured(manifest, runner(manifest, model), policy, rows)
    with checkpoint.replacing(path, (MANIFEST, GOLDEN), "export") as new:
        (new / MODELS[config.format]).write_bytes(model)
        (new / GOLDEN).write_bytes(stored)
        (new / MANIFEST).write_text(json.dumps(manifest.to_dict(), indent=1, allow_nan=False))
        artifact.read(new)  # what cannot be read back is not put in place
    return manifest


def held_out(policy: Policy, golden: Mapping[str, Tensor], config: ExportConfig) -> dict[str, np.ndarray]:
    """The golden inputs, then random ones: golden observations moved by their spread, and fresh noise."""
    random = torch.Generator().manual_seed(config.seed)
    known, count = len(golden["noise"]), max(config.rows - len(golden["noise"]), 0)
    inputs = {"noise": torch.cat([golden["noise"], torch.randn((count, *policy.noise_shape), generator=random)])}
    spreads = {name: normalizer.scale for name, normalizer in policy.normalizers()}
    for name in policy.spec.observation:
        value = golden[f"observation.{name}"]
        drawn = value[torch.arange(count) % known]
        if name in spreads:
            drawn = drawn + torch.randn(drawn.shape, generator=random) * spreads[name].view(value.shape[2:])
        else:
            drawn = torch.randint(256, drawn.shape, generator=random, dtype=drawn.dtype)
        inputs[f"observation.{name}"] = torch.cat([value, drawn])
    return {name: value.numpy() for name, value in inputs.items()}


def measured(manifest: Manifest, exported: Planner, policy: Policy, rows: Mapping[str, np.ndarray]) -> Manifest:
    """The manifest with its parity: actions at batch sizes 1, 3, 16 and 100, compared with the policy's own.

    Raises:
        ValueError: they differ by more than the tolerance.
    """
    pairs, start = [], 0
    while start < len(rows["noise"]):
        inputs = _split(rows, slice(start, start + ROWS[len(pairs) % len(ROWS)]))
        pairs.append((exported.plan(*inputs), policy.plan(*inputs)))
        start += len(inputs[1])
    actions, expected = (np.concatenate(side) for side in zip(*pairs, strict=True))
    error, physical, changed = manifest.compare(actions, expected)
    allowed, flips = manifest.parity.tolerance, CHOICES_TOLERANCE[manifest.precision]
    if not error <= allowed or changed > flips:
        raise ValueError(
            f"the exported policy's actions differ by {error:.2g} of their spread (tolerance={allowed:g}) and in "
            f"{changed:.2%} of their choices (allowed {flips:.2%}) on {len(actions)} observations; nothing is written"
        )
    parity = Parity(len(actions), allowed, error, physical, changed)
    return Manifest(**{**vars(manifest), "parity": parity})


def runner(manifest: Manifest, model: bytes) -> Planner:
    """What runs the model, in this process."""
    if manifest.format == "onnx":
        return Runner(manifest, model)
    return TorchRunner(manifest, torch.export.load(io.BytesIO(model)))


def program(policy: Policy, rows: Mapping[str, np.ndarray]) -> torch.export.ExportedProgram:
    """The decision as a program of torch.export for any number of rows, all loops unrolled."""
    observation, noise = _split(rows, slice(0, 3))
    noise = np.resize(noise, (3, *noise.shape[1:]))  # 0 and 1 are special to the tracer
    tensors = {name: torch.from_numpy(np.resize(value, (3, *value.shape[1:]))) for name, value in observation.items()}
    any_number = {0: torch.export.Dim("rows", min=1, max=2**16)}
    shapes = {"noise": any_number, "observation": dict.fromkeys(tensors, any_number)}
    # The net chooses between a convolution and a matrix product by the number of rows, which a graph cannot.
    with _quiet(), patch.object(unet1d, "POSITIONS", 0):
        exported = torch.export.export(
            Decision(policy.eval()), (torch.from_numpy(noise), tensors), dynamic_shapes=shapes, strict=True
        )
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # else it tells where the source lay on this machine
    return exported


def _model(policy: Policy, rows: Mapping[str, np.ndarray], config: ExportConfig) -> bytes:
    """The bytes of the model's file."""
    exported = program(policy, rows)
    if config.format == "pt2":
        buffer = io.BytesIO()
        with _quiet():
            torch.export.save(exported, buffer)
        return buffer.getvalue()
    model = _onnx(exported, [name for name in rows if name != "noise"])
    return _int8(model) if config.precision == "int8" else model


def _onnx(exported: torch.export.ExportedProgram, observation: list[str]) -> bytes:
    try:
        import onnxscript  # noqa: F401  (torch's exporter needs it)
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateInitializersPass
    except ImportError as error:
        raise ImportError(EXTRA) from error
    with _quiet():
        converted = torch.onnx.export(
            exported, input_names=["noise", *observation], output_names=["action"], dynamo=True, verbose=False
        )
    assert converted is not None
    # Every step has its own copy of the weights that were transposed for it.
    DeduplicateInitializersPass(size_limit=2**40)(converted.model)
    ClearMetadataAndDocStringPass()(converted.model)  # else it tells where the source lay on this machine
    return converted.model_proto.SerializeToString()


def _int8(model: bytes) -> bytes:
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise ImportError(EXTRA) from error
    with tempfile.TemporaryDirectory() as folder, _quiet():
        file = Path(folder) / "int8.onnx"
        quantize_dynamic(
            onnx.load_from_string(model),
            file,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        return file.read_bytes()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own warnings and log lines, which are about themselves and not about the policy."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _split(rows: Mapping[str, np.ndarray], part: slice) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Observation and noise of some of the rows, as `plan` takes them."""
    observation = {name.removeprefix("observation."): v[part] for name, v in rows.items() if name != "noise"}
    return observation, rows["noise"][part]


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def versions() -> dict[str, str]:
    """Versions of what made the graph."""
    found = {"python": platform.python_version()}
    for name in ("torch", "onnx", "onnxscript", "onnxruntime", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def of_checkpoint(path: Path | str) -> tuple[Policy, dict[str, Tensor], dict[str, Any]]:
    """Policy, golden inputs and source of a checkpoint directory, as `export` takes them."""
    path = Path(path)
    policy, provenance = checkpoint.load(path, "cpu"), checkpoint.read_config(path)[2]
    golden = safetensors.torch.load_file(path / "golden.safetensors")
    del golden["action"]
    hashes = {name: artifact.fingerprint((path / name).read_bytes())["sha256"] for name in checkpoint.FILES}
    return policy, golden, {"sha256": hashes, "provenance": asdict(provenance)}


def main() -> None:
    """Exports as the Hydra config says."""
    import hydra
    from omegaconf import DictConfig, OmegaConf

    from conf import cli, schema

    schema.register()

    @hydra.main(version_base="1.3", config_path="../conf", config_name="export")
    def run(config: DictConfig) -> None:
        with cli.one_line_errors():
            root: Any = OmegaConf.to_object(config)
            out = Path(root.out or Path(root.checkpoint).parent / f"{root.format}-{root.precision}")
            parity = export(out, *of_checkpoint(root.checkpoint), root).parity
            print(  # noqa: T201
                f"{out}: largest error {parity.max_error:.2g} of the action's spread on {parity.rows} observations"
            )

    cli.run(run)


if __name__ == "__main__":
    main()
