"""Exports a checkpoint: `flowhand export checkpoint=outputs/demo/checkpoint format=onnx precision=fp32`.

The whole decision (normalizer, encoder, K-step sampler, de-normalizer) becomes one graph with the noise as an input and
any number of rows. Nothing is written unless the graph gives the same actions as the policy.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from conf import cli
from conf.verbs.export import ExportConfig, ExportRoot
from flowhand.contracts.durable import replacing
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.export import artifact
from flowhand.contracts.export.artifact import GOLDEN, MANIFEST, MODELS, Manifest, Parity
from flowhand.contracts.export.exported_policy import Exported
from flowhand.contracts.features import GIVEN
from flowhand.contracts.planner import Planner
from flowhand.deploy.runner import Runner
from policies import checkpoint
from policies.device import cpu_threads
from policies.export import runner_torch, tracing
from policies.export.decision import Decision, ScoredDecision
from policies.export.runner_torch import TorchRunner
from policies.monitor.calibrated import CalibratedMonitor, load_monitor
from policies.monitor.watched_policy import WatchedPolicy
from policies.policy import Policy

MOVED = 0.1  # of the spread of an observation: random ones near those that occur
ROWS = (1, 3, 16, 100)  # batch sizes at which the actions are compared, in turn
SCORES = 1e-3  # largest error of a monitor's scores, see ExportedMonitor.compare
SCORED = slice(0, 100)  # the rows on which they are compared


def export(
    path: Path | str,
    policy: Policy,
    golden: Mapping[str, Tensor],
    source: Mapping[str, Any],
    config: ExportConfig | None = None,
    monitor: CalibratedMonitor | None = None,
) -> Manifest:
    """Writes the policy's decision as one graph, atomically, after comparing its actions with the policy's own.

    The manifest that it returns has the error that was measured.

    Args:
        path: the directory; an earlier export there is replaced.
        policy: on the CPU.
        golden: observation histories (B, O, *shape) and "noise" (B, *noise_shape): observations that occur.
        source: where the policy comes from, for the manifest; any JSON.
        config: see `ExportConfig`.
        monitor: of this policy, to be exported with it; None: none.

    Raises:
        ValueError: an action or a score of the graph is further from the policy's own than the tolerance allows; a
            monitor whose scores are not to be had of an export.
        ImportError: a package that the format needs is missing.
    """
    config, path = config or ExportConfig(), Path(path)
    if monitor and config.precision != "fp32":
        raise ValueError(f"the monitor was calibrated for fp32 and says nothing of precision={config.precision}")
    watched = monitor.exported() if monitor else None
    policy.check()
    rows = held_out(policy, golden, config)
    model = _model(_decision(policy, monitor), rows, config)
    first = slice(0, len(golden["noise"]))
    answers = {"action": policy.plan(*_split(rows, first))}
    answers |= {"scores": scores(policy, monitor, rows, first)} if monitor else {}
    stored = _npz({**{name: value[first] for name, value in rows.items()}, **answers})
    manifest = Manifest(
        format=config.format,
        precision=config.precision,
        spec=policy.spec,
        chunk=policy.chunk,
        noise_shape=policy.noise_shape,
        action_spread=policy.action_spread.double().tolist(),
        observation_spread=policy.observation_spread,
        parity=Parity(config.rows, config.allowed, 0.0, [0.0] * policy.spec.action.size, 0.0),
        files={name: artifact.fingerprint(data) for name, data in ((MODELS[config.format], model), (GOLDEN, stored))},
        versions=versions() | ({"cpu": tracing.this_cpu()} if config.format == "aoti" else {}),
        source=dict(source),
        monitor=watched,
    )
    exported = runner(manifest, model)
    manifest = measured(manifest, exported, policy, rows)
    if monitor:
        manifest = scored(manifest, exported, scores(policy, monitor, rows, SCORED), rows)
    with replacing(path, (MANIFEST, GOLDEN), "export") as new:
        (new / MODELS[config.format]).write_bytes(model)
        (new / GOLDEN).write_bytes(stored)
        (new / MANIFEST).write_text(json.dumps(manifest.to_dict(), indent=1, allow_nan=False))
        artifact.read(new)  # what cannot be read back is not put in place
    return manifest


def held_out(policy: Policy, golden: Mapping[str, Tensor], config: ExportConfig) -> dict[str, np.ndarray]:
    """The golden inputs, then random ones: golden observations moved by a tenth of their spread, and fresh noise.

    A whole spread would leave all that was ever demonstrated. There a policy may answer with dozens of spreads, of
    which float32 has no five digits left, and no action of any form of it means anything.
    """
    random = torch.Generator().manual_seed(config.seed)
    known, count = len(golden["noise"]), max(config.rows - len(golden["noise"]), 0)
    inputs = {"noise": torch.cat([golden["noise"], torch.randn((count, *policy.noise_shape), generator=random)])}
    spreads = {name: n.scale.mean(0) if policy.sources else n.scale for name, n in policy.normalizers()}
    for name, feature in policy.spec.observation.items():
        value = golden[f"observation.{name}"]
        drawn = value[torch.arange(count) % known]
        if name in spreads:  # of each dimension of a state, of all pixels of depth
            spread = spreads[name].view(value.shape[2:] if spreads[name].numel() > 1 else ())
            drawn = moved(drawn, MOVED * torch.randn(drawn.shape, generator=random) * spread)
        elif feature.kind not in GIVEN:  # a task and a source stay as they are
            drawn = torch.randint(256, drawn.shape, generator=random, dtype=drawn.dtype)
        inputs[f"observation.{name}"] = torch.cat([value, drawn])
    return {name: value.numpy() for name, value in inputs.items()}


def moved(values: Tensor, by: Tensor) -> Tensor:
    """Values moved by so much; whole numbers are rounded, and stay in their range."""
    if values.is_floating_point():
        return values + by
    return (values.float() + by).round().clamp(0, torch.iinfo(values.dtype).max).to(values.dtype)


def measured(manifest: Manifest, exported: Planner, policy: Policy, rows: Mapping[str, np.ndarray]) -> Manifest:
    """The manifest with its parity: actions at batch sizes 1, 3, 16 and 100, compared with the policy's own.

    Raises:
        ValueError: they differ by more than the tolerance, or there is none to judge them by.
    """
    pairs, start = [], 0
    while start < len(rows["noise"]):
        inputs = _split(rows, slice(start, start + ROWS[len(pairs) % len(ROWS)]))
        pairs.append((exported.plan(*inputs), policy.plan(*inputs)))
        start += len(inputs[1])
    actions, expected = (np.concatenate(side) for side in zip(*pairs, strict=True))
    error, physical, changed = manifest.compare(actions, expected)
    largest = (
        f"on {len(actions)} observations the exported policy's actions differ by {error:.2g} of their spread and in "
        f"{changed:.2%} of their choices"
    )
    if not manifest.parity.tolerance:
        raise ValueError(
            f"precision={manifest.precision} needs a tolerance: {largest}; give tolerance=... above that, and see with "
            "eval.py on the export what it costs in success. Nothing is written"
        )
    if not error <= manifest.parity.tolerance or changed > manifest.choices_allowed:
        raise ValueError(
            f"{largest} (allowed: {manifest.parity.tolerance:g} and {manifest.choices_allowed:.2%}); nothing is written"
        )
    parity = replace(
        manifest.parity, rows=len(actions), max_error=error, max_error_physical=physical, choices_changed=changed
    )
    return replace(manifest, parity=parity)


def scores(policy: Policy, monitor: CalibratedMonitor, rows: Mapping[str, np.ndarray], part: slice) -> np.ndarray:
    """A monitor's scores (B, D) of some of the rows, as it has them of the policy itself, one decision at a time."""
    about = monitor.about
    watched = WatchedPolicy(policy, about.monitor.scores, ExecutionConfig(about.mode), density=monitor.density)
    for row in range(len(rows["noise"][part])):
        watched.plan(*_split(rows, slice(row, row + 1)))
    return np.array(watched.scores_ND, np.float32)


def scored(manifest: Manifest, exported: Exported, expected: np.ndarray, rows: Mapping[str, np.ndarray]) -> Manifest:
    """The manifest with the largest error of the monitor's scores, which are compared with the expected ones (B, D).

    Raises:
        ValueError: they differ by more than `SCORES`.
    """
    assert manifest.monitor is not None
    error = manifest.monitor.compare(exported.outputs(*_split(rows, slice(0, len(expected))))["scores"], expected)
    if not error <= SCORES:
        raise ValueError(
            f"on {len(expected)} observations the exported scores differ by {error:.2g} from the checkpoint's own "
            f"(allowed: {SCORES:g}); nothing is written"
        )
    return replace(manifest, monitor=replace(manifest.monitor, max_error=error))


def runner(manifest: Manifest, model: bytes) -> Exported:
    """What runs the model, in this process."""
    if manifest.format == "onnx":
        return Runner(manifest, model)
    return TorchRunner(manifest, runner_torch.decision(manifest, model))


def _decision(policy: Policy, monitor: CalibratedMonitor | None) -> Decision:
    """What becomes the graph."""
    return ScoredDecision(policy, monitor.about.monitor.scores, monitor.density) if monitor else Decision(policy)


def _model(decision: Decision, rows: Mapping[str, np.ndarray], config: ExportConfig) -> bytes:
    """The bytes of the model's file."""
    if config.format == "pt2":
        return tracing.torch_program(decision, rows)
    if config.format == "aoti":
        return tracing.native_code(decision, rows)
    model = tracing.onnx_model(decision, rows)
    return tracing.rounded(model) if config.precision == "int8" else model


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


def of_checkpoint(
    path: Path | str, head: Mapping[str, Any] | None = None
) -> tuple[Policy, dict[str, Tensor], dict[str, Any]]:
    """Policy, golden inputs and source of a checkpoint directory, as `export` takes them.

    Args:
        path: the directory.
        head: fields of the head to sample with in place of the checkpoint's own (`Policy.with_head`).
    """
    with checkpoint.snapshot(path) as files:  # a training may go on writing
        loaded, provenance = checkpoint.load(files, "cpu"), checkpoint.read_config(files)[2]
        golden = checkpoint.read_golden(files, loaded)
        contents = {name: files.read(name, checkpoint.MOST_TENSOR_BYTES) for name in checkpoint.FILES}
        hashes = {name: artifact.fingerprint(content)["sha256"] for name, content in contents.items()}
    policy = loaded.with_head(**head) if head else loaded
    del golden["action"]
    if policy.noise_shape != loaded.noise_shape:  # a sampler that draws again on the way, or no longer does
        shape = (len(golden["noise"]), *policy.noise_shape)
        golden["noise"] = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    changed = policy.config.head.changed_from(loaded.config.head)
    return policy, golden, {"sha256": hashes, "provenance": asdict(provenance), "head": changed}


def run(config: DictConfig) -> None:
    """Exports as the configuration says and prints one line about it."""
    # One thread, so that the stored answers do not depend on how many cores a machine has.
    with cpu_threads(1):
        cli.require_given(config, "checkpoint")
        root: ExportRoot = cli.typed(config)
        policy, golden, source = of_checkpoint(root.checkpoint, root.head.changes)
        if root.monitor and root.head.changes:
            raise ValueError("monitor=true was calibrated for the checkpoint's own sampler; leave head.* as it is")
        monitor = load_monitor(root.checkpoint, policy) if root.monitor else None
        name = f"{root.export.format}-{root.export.precision}"
        name += "".join(f"-{field}-{value}" for field, value in source["head"].items())
        out = Path(root.out or checkpoint.checkpoint_in(root.checkpoint).parent / name)
        manifest = export(out, policy, golden, source, root.export, monitor)
        parity, watched = manifest.parity, manifest.monitor
        line = f"largest error {parity.max_error:.2g} of the action's spread on {parity.rows} observations"
        line += f"; with a monitor, error of its scores {watched.max_error:.2g}" if watched else ""
        print(f"{out}: {line}")


def main() -> None:
    """Entry point."""
    cli.program("export", run)
