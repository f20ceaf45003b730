"""Which device to compute on, and with how many CPU threads."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from flowhand.contracts.provenance import usable_cores


def select_device(name: str, threads: int = 0) -> torch.device:
    """The device named `auto` (cuda if there is one), `cpu`, `cuda` or `cuda:N`, and torch's CPU threads.

    Args:
        name: the device.
        threads: CPU threads of torch; 0 takes as many as this process may use (`usable_threads`).

    Raises:
        ValueError: the device is unknown or not there.
    """
    torch.set_num_threads(threads or usable_threads())
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown; choices: auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not there; this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported; choices: auto, cpu, cuda, cuda:N")
    return device


def usable_threads() -> int:
    """CPU threads that this process may use: one per usable core, and no more than OMP_NUM_THREADS says.

    Two busy threads on one core are several times slower than one.
    """
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "4", or "4,2" with nested ones
    return min(usable_cores(), int(said)) if said.isdecimal() and int(said) > 0 else usable_cores()


def has_bf16_units(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices several times faster than fp32 ones: CUDA, and CPUs with AMX."""
    return device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16", False))


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """So many torch threads inside the block.

    Inference on a small batch is fastest on one thread, which leaves the other cores to the simulations, and its last
    bits then do not depend on how many cores a machine has.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def hardware(device: torch.device, threads: int | str | None = None) -> str:
    """The processor that computed, in words, with torch's CPU threads: this process's now, unless others are told."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    return f"{cpu}, {usable_cores()} cores, {threads or torch.get_num_threads()} torch threads"
