"""A policy's decision as one graph: traced by torch, written as ONNX, rounded to int8, or compiled to native code."""

from __future__ import annotations

import copy
import io
import logging
import math
import platform
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.fx.config
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from ..compile import Repeated, require_compiler
from ..nets import unet1d
from ..nets.base import Modulation, Net
from .decision import Decision

EXTRA = "the export to ONNX needs onnx, onnxscript and onnxruntime: pip install onnx onnxscript onnxruntime"
MOST_ROWS = 2**16
NARROW = 64  # entries of the shorter side of a weight that int8 leaves as it is
SPARED = 4  # one of so many evaluations, the last ones, does int8 leave as they are


class TracedOnce(Repeated):
    """A net that is traced once for all evaluations of a decision, which makes tracing the slow samplers quick."""

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        """The net's own."""
        # Copies, because to the tracer a view at another place in its memory is another kind of input.
        return super().forward(x_BTA.clone(), Modulation(modulation.timed.clone(), modulation.observed))


class Product(nn.Module):
    """A convolution over steps as one matrix product, whose rows are shifted copies of the steps side by side.

    ONNX Runtime reads the weights of a convolution anew for every row of the batch, those of a product once.
    """

    def __init__(self, convolution: unet1d.Convolution):
        super().__init__()
        weight = convolution.weight.detach()  # (outputs, inputs, size)
        self.size, self.stride, self.padding = weight.shape[-1], convolution.stride[0], int(convolution.padding[0])
        self.weight = nn.Parameter(weight.permute(2, 1, 0).flatten(0, 1).contiguous(), requires_grad=False)
        assert convolution.bias is not None
        self.bias = convolution.bias

    def forward(self, input: Tensor) -> Tensor:
        """Features (B, inputs, T) to (B, outputs, ceil(T / stride))."""
        steps = F.pad(input.transpose(1, 2), (0, 0, self.padding, self.padding))
        last = (steps.shape[1] - self.size) // self.stride * self.stride
        shifted = [steps[:, first : first + last + 1 : self.stride] for first in range(self.size)]
        rows = torch.cat(shifted, dim=-1)  # (B, positions, size * inputs)
        return (rows @ self.weight + self.bias).transpose(1, 2)


def with_products(net: Net) -> Net:
    """A copy of the net whose convolutions are matrix products; other nets have none."""
    copied = copy.deepcopy(net)
    for module in list(copied.modules()):
        for name, child in module.named_children():
            if isinstance(child, unet1d.Convolution):
                setattr(module, name, Product(child))
    return copied


def program(decision: Decision, inputs: Mapping[str, np.ndarray]) -> ExportedProgram:
    """The decision as a program of torch.export for any number of rows, all loops unrolled.

    Args:
        decision: on the CPU.
        inputs: "noise" (B, *noise_shape) and "observation.<name>" (B, O, *shape), for shapes and dtypes.
    """
    # Three rows: 0 and 1 are special to the tracer.
    tensors = {name: torch.from_numpy(np.resize(value, (3, *value.shape[1:]))) for name, value in inputs.items()}
    noise = tensors.pop("noise")
    observation = {name.removeprefix("observation."): value for name, value in tensors.items()}
    any_number = {0: torch.export.Dim("rows", min=1, max=MOST_ROWS)}
    shapes = {"noise": any_number, "observation": dict.fromkeys(observation, any_number)}
    # The net chooses between a convolution and a matrix product by the number of rows, which a graph cannot.
    with quiet(), patch.object(unet1d, "POSITIONS", 0):
        exported = torch.export.export(decision.eval(), (noise, observation), dynamic_shapes=shapes, strict=True)
    for graph in (module.graph for module in exported.graph_module.modules() if isinstance(module, GraphModule)):
        for node in graph.nodes:
            node.meta.pop("stack_trace", None)  # else it tells where the source lay on this machine
    return exported


def torch_program(decision: Decision, inputs: Mapping[str, np.ndarray]) -> bytes:
    """The decision as a file of torch.export."""
    buffer = io.BytesIO()
    exported = program(decision, inputs)
    with quiet():
        torch.export.save(exported, buffer)
    return buffer.getvalue()


def native_code(decision: Decision, inputs: Mapping[str, np.ndarray]) -> bytes:
    """The decision compiled by AOTInductor for this machine's CPU, as the package that torch loads.

    Raises:
        ValueError: there is no C++ compiler.
    """
    require_compiler()
    # Flat, each evaluation written out: AOTInductor has no code for a graph inside the graph (torch 2.13).
    exported, buffer = program(decision, inputs), io.BytesIO()
    with quiet(), torch.no_grad():
        torch._inductor.aoti_compile_and_package(exported, package_path=buffer)
    return buffer.getvalue()


def this_cpu() -> str:
    """What native code that was compiled here needs of a CPU, in words."""
    able = sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True)
    return " ".join([platform.machine(), *able])


def onnx_model(decision: Decision, inputs: Mapping[str, np.ndarray]) -> bytes:
    """The decision as an ONNX file of standard operators, all weights inside.

    Raises:
        ImportError: onnx or onnxscript is missing.
    """
    try:
        from onnx_ir.passes import common
        from onnxscript.optimizer import fold_constants_ir
    except ImportError as error:
        raise ImportError(EXTRA) from error
    exported = program(decision.with_net(TracedOnce(with_products(decision.net))), inputs)
    names = ["noise", *(name for name in inputs if name != "noise")]
    with quiet():
        converted = torch.onnx.export(
            exported,
            input_names=names,
            output_names=list(decision.outputs),
            dynamo=True,
            verbose=False,
            optimize=False,
            custom_translation_table={torch.ops.aten.mish.default: mish},
        )
    assert converted is not None
    with quiet():
        # What these two remove first makes the exporter's own optimization several times as fast. Without limits of
        # size no weight stays transposed by the graph, which ONNX Runtime undoes but `rounded` cannot see through.
        fold_constants_ir(converted.model, input_size_limit=2**40, output_size_limit=2**40)
        common.RemoveUnusedNodesPass()(converted.model)
        converted.optimize()
        # Every evaluation has its own copy of the weights that were transposed for it.
        common.DeduplicateInitializersPass(size_limit=2**40)(converted.model)
        common.ClearMetadataAndDocStringPass()(converted.model)  # else it tells where the source lay on this machine
    return converted.model_proto.SerializeToString()


def mish(x: Any) -> Any:
    """Mish, x tanh(log(1 + e^x)), in ONNX's operators: x n / (n + 2) with n = e^x (e^x + 2).

    The function of that name takes ONNX Runtime longer, by a logarithm for each number.
    """
    from onnxscript import opset18

    op: Any = opset18
    power = op.Exp(op.Min(x, op.Constant(value_float=20.0)))  # beyond, n + 2 is n
    n = op.Mul(power, op.Add(power, op.Constant(value_float=2.0)))
    return op.Mul(x, op.Div(n, op.Add(n, op.Constant(value_float=2.0))))


def rounded(model: bytes) -> bytes:
    """An ONNX file with weights and activations of its matrix products rounded to int8.

    Four kinds stay as they are, which cost little or err most. Convolutions, and what is done to an image before them.
    What does not depend on the noise, the encoding of the observation and all that is computed once per decision
    (unless nothing does): its error would go into every step. The last quarter of several evaluations: where the net
    predicts data its last output is the action, while the errors of the first shrink with every step. Narrow weights,
    such as those by which an action enters the net.

    Raises:
        ValueError: nothing is left to round.
        ImportError: onnx or onnxruntime is missing.
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise ImportError(EXTRA) from error
    graph = onnx.load_from_string(model)
    nodes = graph.graph.node
    spared = {*_before_the_noise(nodes), *_last_evaluations(nodes), *_narrow(graph.graph), *_before_convolutions(nodes)}
    _own_weights(graph.graph, spared)
    with tempfile.TemporaryDirectory() as folder, quiet():
        file = Path(folder) / "int8.onnx"
        quantize_dynamic(
            graph,
            file,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=[*spared, *(f"{name}_MatMul" for name in spared)],  # a Gemm is split, and renamed, first
        )
        content = file.read_bytes()
    if not any(node.op_type == "MatMulInteger" for node in onnx.load_from_string(content).graph.node):
        raise ValueError("precision=int8 finds nothing to round in this policy's net; take precision=fp32")
    return content


def _last_evaluations(nodes: Iterable[Any]) -> list[str]:
    """Names of the nodes, in order of computation, that are the last quarter of several with the same weight."""
    uses: dict[str, list[str]] = {}
    for node in nodes:
        if node.op_type in ("MatMul", "Gemm"):
            uses.setdefault(node.input[1], []).append(node.name)
    return [name for names in uses.values() if len(names) > 1 for name in names[-math.ceil(len(names) / SPARED) :]]


def _own_weights(graph: Any, spared: set[str]) -> None:
    """Gives the spared nodes copies of the weights that they share with others, which int8 would replace for all."""
    spares = [node for node in graph.node if node.name in spared and len(node.input) > 1]
    elsewhere = {name for node in graph.node if node.name not in spared for name in node.input}
    shared = elsewhere.intersection(node.input[1] for node in spares)
    copied = {weight.name: weight for weight in graph.initializer if weight.name in shared}
    for name, weight in copied.items():
        own = graph.initializer.add()
        own.CopyFrom(weight)
        own.name = f"{name}_fp32"
    for node in spares:
        if node.input[1] in copied:
            node.input[1] = f"{node.input[1]}_fp32"


def _narrow(graph: Any) -> list[str]:
    """Names of the nodes with a weight of which one side has at most NARROW entries."""
    narrow = {weight.name for weight in graph.initializer if min(weight.dims, default=NARROW + 1) <= NARROW}
    return [node.name for node in graph.node if narrow.intersection(node.input[1:2])]


def _before_convolutions(nodes: Iterable[Any]) -> list[str]:
    """Names of the nodes of which a convolution takes the result: an image's resize has matrix products too."""
    wanted, names = set(), []
    for node in reversed(list(nodes)):  # what follows comes first
        if node.op_type == "Conv" or wanted.intersection(node.output):
            wanted.update(node.input)
            names.append(node.name)
    return names


def _before_the_noise(nodes: Iterable[Any]) -> list[str]:
    """Names of the nodes, in order of computation, that do not depend on the noise; none if no node does."""
    follows, names = {"noise"}, []
    for node in nodes:
        if follows.isdisjoint(node.input):
            names.append(node.name)
        else:
            follows.update(node.output)
    return names if len(follows) > 1 else []


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
