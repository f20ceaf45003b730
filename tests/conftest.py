"""The world of every test: seeded, deterministic, one thread, offline, and with the policies' annotations checked."""

from __future__ import annotations

import gc
import os
import random
import socket
import sys
from collections.abc import Iterator
from ipaddress import ip_address

# One thread for this process and for every program that a test starts: as many tests run at once as there are cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"  # where a test takes two, they do not keep a core busy while they wait
os.environ["PYTHONDONTWRITEBYTECODE"] = ""

import numpy as np
import pytest
from jaxtyping import install_import_hook

from tests import programs

sys.dont_write_bytecode = False  # tests and checked annotations are compiled once, not by each worker at each run: 9 s

# Before anything imports `policies`: shapes, dtypes and types of all its annotations are checked at every call.
install_import_hook("policies", "beartype.beartype")

os.environ.setdefault("WANDB_MODE", "disabled")


def pytest_configure(config: pytest.Config) -> None:
    """Prepares the libraries, but not where tests are handed out to other processes, which wait for that one."""
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        import torch
        from hydra.core.config_store import ConfigStore

        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(1)
        # Hydra copies what it was told of all verbs for each configuration that it composes, and then what it needs of
        # it once more: a third of the time of hundreds of tests.
        ConfigStore.__deepcopy__ = lambda store, _: store  # pyright: ignore[reportAttributeAccessIssue]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Nothing is garbage while tests are collected, and what is collected is there to the end: it is not searched."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _nothing_is_left() -> Iterator[None]:
    """Ends the processes that several tests have used."""
    yield
    if exporter := sys.modules.get("tests.deploy.unchecked"):
        exporter.stop()
    programs.stop()


@pytest.fixture(autouse=True)
def _seeds() -> None:
    import torch

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (simulators still draw from it)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Lets sockets reach this machine only; a test that needs more is a test that fails on a train."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _local_only(getattr(socket.socket, name)))
        yield


def _local_only(connect):
    def guarded(self: socket.socket, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
            raise OSError(f"tests must not reach the network, but this one connects to {address!r}")
        return connect(self, address)

    return guarded


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host in ("", "localhost")
