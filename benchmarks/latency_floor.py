"""The time that the machine asks for one decision at least: to read the weights, or to multiply, whichever is longer.

Both are counted in the matrix products of a real decision. A weight is read as often as a product uses it: what depends
on time and conditioning alone once for all K steps, the rest of the net K times. Everything that is no matrix product
is left out, which only lowers the floor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from policies import Policy
from policies.batch import DTYPES

LARGE = 2**29  # bytes; more than any cache holds


@dataclass(frozen=True)
class Work:
    """What one decision at batch 1 asks for."""

    weights: int  # numbers in all matrices that are used
    reads: int  # numbers read from them
    operations: int  # floating point operations; of B rows B times as many


class CountProducts(TorchDispatchMode):
    """Counts the matrix products and convolutions inside the block, and what they read of a policy's weights."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
        self.reads = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every operator."""
        aten = torch.ops.aten
        places = {aten.mm.default: (0, 1), aten.bmm.default: (0, 1), aten.addmm.default: (1, 2)}.get(func)
        if places:
            a, b = (args[place] for place in places)
            self.operations += 2 * a.numel() * b.shape[-1]
            self.reads += sum(x.numel() for x in (a, b) if x.untyped_storage().data_ptr() in self.weights)
        result = func(*args, **(kwargs or {}))
        if func is aten.convolution.default and not args[6]:  # not a transposed one
            self.operations += 2 * result.numel() * args[1][0].numel()
            self.reads += args[1].numel()
        return result


def work(policy: Policy) -> Work:
    """Counts a decision; the policy is on the CPU."""
    observation = {
        n: torch.zeros(1, policy.chunk.history, *f.shape, dtype=DTYPES[f.dtype])
        for n, f in policy.spec.observation.items()
    }
    with torch.no_grad(), CountProducts(policy) as counted:
        policy.generate(policy.net, observation, torch.zeros(1, *policy.noise_shape))
    weights = sum(p.numel() for p in policy.parameters() if p.ndim > 1)
    return Work(weights, counted.reads, counted.operations)


class Machine:
    """What a device can do, measured where it is needed and kept."""

    def __init__(self, device: torch.device, seconds: float = 0.5):
        self.device, self.seconds = device, seconds
        self.bandwidths: dict[int, float] = {}  # bytes: bytes per second
        self.rates: dict[str, float] = {}  # dtype: floating point operations per second

    def bandwidth(self, size: int) -> float:
        """Bytes per second of reading so many bytes over and over: from a cache, if they fit into one."""
        if size not in self.bandwidths:
            data = torch.ones(size // 4, device=self.device)
            self.bandwidths[size] = data.numel() * 4 / self._best(data.sum)
        return self.bandwidths[size]

    def rate(self, dtype: torch.dtype = torch.float32) -> float:
        """Floating point operations per second of a square matrix product, large enough for the device."""
        name = str(dtype).removeprefix("torch.")
        if name not in self.rates:
            size = 8192 if self.device.type == "cuda" else 1024
            a, b = (torch.randn(size, size, device=self.device).to(dtype) for _ in range(2))
            self.rates[name] = 2 * size**3 / self._best(lambda: a @ b)
        return self.rates[name]

    def floor_s(self, work: Work, rows: int) -> tuple[float, str]:
        """Seconds that a decision in fp32 needs at least, and which of the two it is."""
        memory = 4 * work.reads / self.bandwidth(4 * work.weights)
        arithmetic = rows * work.operations / self.rate()
        return max((memory, "memory"), (arithmetic, "arithmetic"))

    def _best(self, call: Callable[[], Tensor]) -> float:
        """The shortest of the calls that fit into the time, at least three."""
        times, end = [timed(call, self.device) for _ in range(3)], time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            times.append(timed(call, self.device))
        return min(times)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds from the call until its result is there."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Returns when the device has done all that it was asked for; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
