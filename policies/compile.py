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

from .conditioning import Conditioning
from .nets.base import Modulation, Net

if TYPE_CHECKING:
    from .policy import Policy

PRECISIONS = ("fp32", "bf16")
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d)  # what precision=bf16 rounds
MATRIX_ROWS = 16  # rows of a batch from which a CPU multiplies matrices faster in bf16 than in fp32

Inputs = dict[str, Tensor]
Decide = Callable[[Inputs, Tensor], Tensor]


class CompiledSampler:
    """`Policy.generate` for fixed batch sizes: on a CPU one compiled function each, on CUDA one captured graph.

    The first call with a batch size compiles, which takes from ten seconds to a minute; torch keeps the result in a
    folder for the next process (TORCHINDUCTOR_CACHE_DIR). At batch 1 a decision takes about the time of reading the
    weights K times on a CPU, and of launching the kernels on a GPU.

    Args:
        policy: stays as it is, on its device; its weights are used where they lie.
        precision: fp32 (equal to the uncompiled policy but for the order of summation) | bf16. On a CPU, bf16 rounds
            the weights of linear layers that have a single row and computes in fp32; with batches of 16 and more, and
            on CUDA, it rounds all weights of linear layers and convolutions, and what goes into them.
        backend: what compiles, a name of `torch.compiler.list_backends()` or a function.

    Raises:
        ValueError: an unknown precision, no compiler on this machine, or a torch that is too old.
    """

    def __init__(self, policy: Policy, precision: str = "fp32", backend: str | Callable = "inductor"):
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r} is unknown; choices: {', '.join(PRECISIONS)}")
        if not hasattr(torch.compiler, "nested_compile_region"):
            raise ValueError(f"compiling a policy needs torch 2.8, this is {torch.__version__}")
        self.device = policy.action_normalizer.shift.device
        if backend == "inductor" and self.device.type == "cpu":
            require_compiler()
        self.policy, self.precision, self.backend = policy, precision, backend
        self._weights = [*policy.parameters(), *policy.buffers()]
        self._versions = self._changes()
        self._decide: dict[int, Decide] = {}

    def __call__(self, observation: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """Chunks (B, T, A), without gradients.

        Raises:
            ValueError: inputs on another device; or the weights have changed, and bf16 has rounded copies of old ones.
        """
        if noise.device != self.device:
            raise ValueError(f"the policy was compiled on {self.device}, the noise is on {noise.device}; compile again")
        if self.precision != "fp32" and self._changes() != self._versions:
            raise ValueError(f"the weights have changed since compile(precision={self.precision!r}); compile again")
        inputs = {name: observation[name].contiguous() for name in self.policy.spec.observation}
        rows, noise = len(noise), noise.contiguous()
        with torch.no_grad():
            if rows not in self._decide:
                decide = self._compiled(rows)
                self._decide[rows] = Captured(decide, inputs, noise) if self.device.type == "cuda" else decide
            return self._decide[rows](inputs, noise)

    def _changes(self) -> int:
        """A number that grows whenever a weight is changed in place."""
        return sum(weight._version for weight in self._weights)

    def _compiled(self, rows: int) -> Decide:
        """The decision for so many rows as one compiled function."""
        kind = self.device.type
        autocast = self.precision == "bf16" and (kind == "cuda" or rows >= MATRIX_ROWS)
        policy = twin(self.policy, self.precision, autocast)
        net = Repeated(policy.net)

        def decide(observation: Inputs, noise: Tensor) -> Tensor:
            with torch.autocast(kind, torch.bfloat16, enabled=autocast):
                return policy.generate(net, observation, noise)

        # With code of its own: torch gives up on code that it has compiled for more than a few policies or rows.
        decide.__code__ = decide.__code__.replace()
        return torch.compile(decide, backend=self.backend, fullgraph=True, dynamic=False)


class Repeated(Net):
    """A net whose evaluation is compiled once, however many of them a decision has."""

    def __init__(self, net: Net):
        super().__init__()
        self.net = net
        self.evaluate: Any = torch.compiler.nested_compile_region(
            lambda x_BTA, timed, *observed: net(x_BTA, Modulation(timed, observed))
        )

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        """The net's own."""
        return self.net.prepare(t, cond, per_action)

    def next_action(
        self, x_B1A: Tensor, place: int, horizon: int, modulation: Modulation, earlier: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The net's own; each is another function, for it has more earlier ones."""
        return self.net.next_action(x_B1A, place, horizon, modulation, earlier)

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        """The net's own."""
        # Copies, because the compiler takes no two views of the same memory.
        return self.evaluate(x_BTA, modulation.timed, *(part.clone() for part in modulation.observed))


class RowLinear(nn.Linear):
    """A linear layer that, where it has a single row, is written as the sums that it is.

    The compiler fuses sums with what stands around them: an evaluation of the MLP becomes one function that reads every
    weight once. A matrix product is a call to a library instead, and at one row that of bf16 is slower than that of
    fp32.
    """

    kept: Tensor  # the weight, as it is read for a single row

    def forward(self, input: Tensor) -> Tensor:
        """Inputs (..., in_features) to (..., out_features)."""
        if input.numel() > input.shape[-1]:
            return super().forward(input)
        parts = 4 if input.shape[-1] % 4 == 0 else 1  # sums that need not wait for each other
        # A view of itself makes the compiler keep the row in memory, and not compute it anew for every output.
        row = input.as_strided(input.shape, input.stride()).reshape(parts, -1)
        output = (self.kept.unflatten(-1, (parts, -1)).float() * row).sum(-2).sum(-1)
        return (output if self.bias is None else output + self.bias).reshape(*input.shape[:-1], -1)


def twin(policy: Policy, precision: str, autocast: bool) -> Policy:
    """A policy with the weights of another, and layers that compile well.

    The weights are shared, but for those that precision=bf16 rounds: all that autocasting would round at every use, or
    those of single rows.
    """
    shared = {id(tensor): tensor for tensor in (*policy.parameters(), *policy.buffers())}
    policy = copy.deepcopy(policy, shared)
    for layer in policy.modules():
        if autocast and isinstance(layer, LAYERS):
            layer.weight = nn.Parameter(layer.weight.bfloat16(), requires_grad=False)
        elif type(layer) is nn.Linear and layer.weight.device.type == "cpu":
            layer.__class__ = RowLinear
            layer.kept = layer.weight.bfloat16() if precision == "bf16" else layer.weight
    return policy


class Captured:
    """A function of fixed shapes as a CUDA graph: one launch in place of hundreds.

    It has memory of its own for inputs and output, which a call copies to and from.
    """

    def __init__(self, decide: Decide, inputs: Inputs, noise: Tensor):
        self.decide = decide  # never called again, but the graph reads the weights it holds by their bare addresses
        self.inputs = {name: value.clone() for name, value in inputs.items()}
        self.noise = noise.clone()
        device, current = noise.device, torch.cuda.current_stream(noise.device)
        with torch.cuda.device(device):
            side = torch.cuda.Stream(device)
            side.wait_stream(current)
            with torch.cuda.stream(side):  # compiles, and lets libraries take their working memory before the capture
                for _ in range(3):
                    decide(self.inputs, self.noise)
            current.wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=side):  # without one torch takes a stream of the first device
                self.output = decide(self.inputs, self.noise)

    def __call__(self, inputs: Inputs, noise: Tensor) -> Tensor:
        """The function's value, in new memory."""
        for name, value in inputs.items():
            self.inputs[name].copy_(value)
        self.noise.copy_(noise)
        self.graph.replay()
        return self.output.clone()


def require_compiler() -> None:
    """Raises `ValueError` saying what to install where torch would find no C++ compiler."""
    mac = sys.platform == "darwin"
    name = os.environ.get("CXX", "clang++" if mac else "g++")
    if not shutil.which(name):
        install = "xcode-select --install" if mac else "apt-get install g++"
        raise ValueError(
            f"compiling a policy needs the C++ compiler {name!r}, which is not there; install it ({install}), name "
            "another in the environment variable CXX, or do without compiling"
        )
