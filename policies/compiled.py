"""The fast sampler: `Policy.sample` compiled for one batch size at a time, on CUDA also captured as one graph."""

from __future__ import annotations

import copy
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .nets.base import Net

if TYPE_CHECKING:
    from .policy import Policy

PRECISIONS = ("fp32", "bf16")
LAYERS = (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)  # whose weights precision=bf16 rounds
Inputs = dict[str, Tensor]
Decide = Callable[[Inputs, Tensor], Tensor]


class CompiledSampler:
    """Chunks from observations and noise, as `Policy.generate` computes them, but faster.

    For every batch size the whole decision becomes one graph of fixed shapes at the first call with that size, which
    takes from seconds to a minute; torch keeps what it compiled on disk.

    On a CPU a decision at batch 1 takes the time of reading the weights K times, of which precision=bf16 saves a part.
    On CUDA it takes the time of launching kernels, so the compiled decision is captured once more, as a CUDA graph.

    Args:
        policy: stays as it is. precision=fp32 uses its weights, whatever becomes of them; bf16 a rounded copy.
        precision: fp32 (equal to the uncompiled policy but for the order of summation) | bf16 (rounds the weights of
            linear layers and convolutions to 8 bits; where they have more than one row, their inputs as well).
        backend: what compiles the graph, by its name in `torch.compiler.list_backends()`.

    Raises:
        ValueError: an unknown precision, or no compiler on this machine.
    """

    def __init__(self, policy: Policy, precision: str = "fp32", backend: str = "inductor"):
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r} is unknown; choices: {', '.join(PRECISIONS)}")
        self.device = policy.action_normalizer.shift.device
        if backend == "inductor" and self.device.type == "cpu":
            require_compiler()
        self.precision, self.backend = precision, backend
        self.policy = prepared(policy, precision)
        self._names = sorted(policy.spec.observation)
        self._source = [*policy.parameters(), *policy.buffers()]
        self._version = self._versions()
        self._decide: dict[int, Decide] = {}

    def __call__(self, observation: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """Chunks (B, T, A), without gradients.

        Raises:
            ValueError: the policy's weights have changed and precision=bf16 has a copy of the old ones.
        """
        if self.precision == "bf16" and self._versions() != self._version:
            raise ValueError("the policy's weights have changed since compile(precision='bf16'); call compile() again")
        rows = len(noise)
        inputs = {name: observation[name].contiguous() for name in self._names}
        with torch.no_grad():
            if rows not in self._decide:
                decide = self._compiled()
                self._decide[rows] = Captured(decide, inputs, noise) if self.device.type == "cuda" else decide
            return self._decide[rows](inputs, noise.contiguous())

    def _versions(self) -> int:
        """A number that grows with every change of a weight in place."""
        return sum(tensor._version for tensor in self._source)

    def _compiled(self) -> Decide:
        """The decision as one compiled function; isolated, because torch gives up on a function with many shapes."""
        policy, net = self.policy, Repeated(self.policy.net)
        bf16, kind = self.precision == "bf16", self.device.type

        def decide(observation: Inputs, noise: Tensor) -> Tensor:
            with torch.autocast(kind, torch.bfloat16, enabled=bf16):
                return policy.generate(net, observation, noise)

        options: dict[str, Any] = {"fullgraph": True, "dynamic": False, "isolate_recompiles": True}
        return torch.compile(decide, backend=self.backend, **options)


class Repeated(Net):
    """A net whose evaluation is compiled once, however many a decision has."""

    def __init__(self, net: Net):
        super().__init__()
        self.net = net
        self.evaluate: Any = torch.compiler.nested_compile_region(lambda x_BTA, modulation: net(x_BTA, modulation))

    def prepare(self, t: Tensor, cond: Tensor, per_action: bool = False) -> Tensor:
        """The net's own."""
        return self.net.prepare(t, cond, per_action)

    def forward(self, x_BTA: Tensor, modulation: Tensor) -> Tensor:
        """The net's own."""
        return self.evaluate(x_BTA, modulation)


class RowLinear(nn.Linear):
    """A linear layer that, of a single row, is written as the sums that it is.

    The compiler fuses sums with what stands around them, so that an evaluation of the MLP is one function which reads
    every weight once. A matrix product is a call to a library instead, whose bf16 kernels are slower on one row than
    its fp32 ones.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Inputs (..., in_features) to (..., out_features); of a single row in fp32, whatever the weights' dtype."""
        if input.numel() > input.shape[-1]:
            return super().forward(input)
        parts = 4 if input.shape[-1] % 4 == 0 else 1  # independent sums, which need not wait for each other
        # A view of itself makes the compiler keep the row in memory, and not compute it anew for every output.
        row = input.float().as_strided(input.shape, input.stride()).reshape(parts, -1)
        output = (self.weight.unflatten(-1, (parts, -1)).float() * row).sum(-2).sum(-1)
        return (output if self.bias is None else output + self.bias).reshape(*input.shape[:-1], -1)


class Captured:
    """A function of fixed shapes as a CUDA graph: one launch in place of hundreds.

    Holds memory for the inputs and the output, which a call copies from and to.
    """

    def __init__(self, decide: Decide, inputs: Inputs, noise: Tensor):
        self.inputs = {name: value.clone() for name, value in inputs.items()}
        self.noise = noise.clone()
        side = torch.cuda.Stream(noise.device)
        side.wait_stream(torch.cuda.current_stream(noise.device))
        with torch.cuda.stream(side):  # compiles, and lets libraries take their workspaces outside of the graph
            for _ in range(3):
                decide(self.inputs, self.noise)
        torch.cuda.current_stream(noise.device).wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = decide(self.inputs, self.noise)

    def __call__(self, inputs: Inputs, noise: Tensor) -> Tensor:
        """The function's value, in new memory."""
        for name, value in inputs.items():
            self.inputs[name].copy_(value)
        self.noise.copy_(noise)
        self.graph.replay()
        return self.output.clone()


def prepared(policy: Policy, precision: str) -> Policy:
    """A policy that shares the weights of another, rounded ones excepted, and has layers that compile well."""
    shared = {id(tensor): tensor for tensor in (*policy.parameters(), *policy.buffers())}
    twin = copy.deepcopy(policy, shared)
    for layer in twin.modules():
        if type(layer) is nn.Linear and layer.weight.device.type == "cpu":
            layer.__class__ = RowLinear
        if precision == "bf16" and isinstance(layer, LAYERS):
            layer.weight = nn.Parameter(layer.weight.bfloat16(), requires_grad=False)
    return twin


def require_compiler() -> None:
    """Raises `ValueError` saying what to install where torch would not find a C++ compiler."""
    mac = sys.platform == "darwin"
    name = os.environ.get("CXX", "clang++" if mac else "g++")
    if not shutil.which(name):
        install = "xcode-select --install" if mac else "apt-get install g++"
        raise ValueError(
            f"compiling a policy needs the C++ compiler {name!r}, which is not there; install it ({install}), name "
            "another in the environment variable CXX, or run the policy without compile()"
        )
