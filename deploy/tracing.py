"""A policy's decision as one graph: traced by torch, written as ONNX, rounded to int8, or compiled to native code."""

from __future__ import annotations

import io
import logging
import platform
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.fx.config
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from policies.compiled import Repeated, require_compiler
from policies.nets import Net, unet1d
from policies.policy import Policy

EXTRA = "the export to ONNX needs onnx, onnxscript and onnxruntime: pip install onnx onnxscript onnxruntime"
MOST_ROWS = 2**16


class Decision(nn.Module):
    """One decision as a function of tensors alone."""

    def __init__(self, policy: Policy, net: Net | None = None):
        super().__init__()
        self.policy, self.net = policy, net or policy.net

    def forward(self, noise: Tensor, observation: dict[str, Tensor]) -> Tensor:
        """Noise (B, *noise_shape) and histories (B, O, *shape) to chunks (B, T, A)."""
        return self.policy.generate(self.net, observation, noise)


class TracedOnce(Repeated):
    """A net that is traced once for all evaluations of a decision, which makes tracing the slow samplers quick."""

    def forward(self, x_BTA: Tensor, modulation: Tensor) -> Tensor:
        """The net's own."""
        # Copies, because to the tracer a view at another place in its memory is another kind of input.
        return super().forward(x_BTA.clone(), modulation.clone())


def program(policy: Policy, inputs: Mapping[str, np.ndarray], net: Net | None = None) -> ExportedProgram:
    """The decision as a program of torch.export for any number of rows, all loops unrolled.

    Args:
        policy: on the CPU.
        inputs: "noise" (B, *noise_shape) and "observation.<name>" (B, O, *shape), for shapes and dtypes.
        net: stands in for the policy's own.
    """
    # Three rows: 0 and 1 are special to the tracer.
    tensors = {name: torch.from_numpy(np.resize(value, (3, *value.shape[1:]))) for name, value in inputs.items()}
    noise = tensors.pop("noise")
    observation = {name.removeprefix("observation."): value for name, value in tensors.items()}
    any_number = {0: torch.export.Dim("rows", min=1, max=MOST_ROWS)}
    shapes = {"noise": any_number, "observation": dict.fromkeys(observation, any_number)}
    # The net chooses between a convolution and a matrix product by the number of rows, which a graph cannot.
    with quiet(), patch.object(unet1d, "POSITIONS", 0):
        exported = torch.export.export(
            Decision(policy.eval(), net), (noise, observation), dynamic_shapes=shapes, strict=True
        )
    for graph in (module.graph for module in exported.graph_module.modules() if isinstance(module, GraphModule)):
        for node in graph.nodes:
            node.meta.pop("stack_trace", None)  # else it tells where the source lay on this machine
    return exported


def torch_program(policy: Policy, inputs: Mapping[str, np.ndarray]) -> bytes:
    """The decision as a file of torch.export."""
    buffer = io.BytesIO()
    exported = program(policy, inputs)
    with quiet():
        torch.export.save(exported, buffer)
    return buffer.getvalue()


def native_code(policy: Policy, inputs: Mapping[str, np.ndarray]) -> bytes:
    """The decision compiled by AOTInductor for this machine's CPU, as the package that torch loads.

    Raises:
        ValueError: there is no C++ compiler.
    """
    require_compiler()
    # Flat, each evaluation written out: AOTInductor has no code for a graph inside the graph (torch 2.13).
    exported, buffer = program(policy, inputs), io.BytesIO()
    with quiet(), torch.no_grad():
        torch._inductor.aoti_compile_and_package(exported, package_path=buffer)
    return buffer.getvalue()


def this_cpu() -> str:
    """What native code that was compiled here needs of a CPU, in words."""
    able = sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True)
    return " ".join([platform.machine(), *able])


def onnx_model(policy: Policy, inputs: Mapping[str, np.ndarray]) -> bytes:
    """The decision as an ONNX file of standard operators, all weights inside.

    Raises:
        ImportError: onnx or onnxscript is missing.
    """
    try:
        from onnx_ir.passes import common
        from onnxscript.optimizer import fold_constants_ir
    except ImportError as error:
        raise ImportError(EXTRA) from error
    exported = program(policy, inputs, TracedOnce(policy.net))
    names = ["noise", *(name for name in inputs if name != "noise")]
    with quiet():
        converted = torch.onnx.export(
            exported, input_names=names, output_names=["action"], dynamo=True, verbose=False, optimize=False
        )
    assert converted is not None
    with quiet():
        # What these two remove first makes the exporter's own optimization several times as fast.
        fold_constants_ir(converted.model)
        common.RemoveUnusedNodesPass()(converted.model)
        converted.optimize()
        # Every evaluation has its own copy of the weights that were transposed for it.
        common.DeduplicateInitializersPass(size_limit=2**40)(converted.model)
        common.ClearMetadataAndDocStringPass()(converted.model)  # else it tells where the source lay on this machine
    return converted.model_proto.SerializeToString()


def rounded(model: bytes) -> bytes:
    """An ONNX file with weights and activations of its matrix products rounded to int8.

    Raises:
        ImportError: onnx or onnxruntime is missing.
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise ImportError(EXTRA) from error
    with tempfile.TemporaryDirectory() as folder, quiet():
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
def quiet() -> Iterator[None]:
    """Without the exporters' own warnings and log lines, which are about themselves and not about the policy.

    Nor do they note for each operation where in the source it stands, which takes a third of the time.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), patch.object(torch.fx.config, "do_not_emit_stack_traces", True):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
