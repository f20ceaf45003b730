"""A process whose policies have no checked annotations, which torch's tracer cannot follow everywhere.

It serves all tests of a worker: importing torch and the exporters, and their first export, take several seconds.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import socket
import sys
from typing import Any

import pytest
from jaxtyping import config as annotations

from policies.conditioning import Conditioning
from policies.generation.paths import Coefficients
from policies.nets.base import Modulation
from tests import programs

DONE = b"."


def here(patch: pytest.MonkeyPatch) -> None:
    """Checks nothing in this process either, as far as the tracer follows what most policies do."""
    patch.setattr(annotations, "jaxtyping_disable", True)
    for cls in (Conditioning, Modulation, Coefficients):
        patch.setattr(cls, "__init__", getattr(cls.__init__, "__wrapped__", cls.__init__))


@functools.cache
def process() -> tuple[programs.Program, socket.socket]:
    """Started by the first test that asks for something, and what leads to its stdin; `stop` ends it."""
    own, other = socket.socketpair()
    with other:
        return programs.start("-m", "tests.deploy.unchecked", stdin=other.fileno()), own


def call(module: str, **order: Any) -> None:
    """Has the module's function `unchecked` called there with these arguments (what JSON can hold)."""
    child, line = process()
    line.sendall(json.dumps([module, order]).encode() + b"\n")
    assert line.recv(len(DONE)) == DONE, f"the process ended with status {child.wait()}: {child.said()}"


def stop() -> None:
    """Ends the process, if one was started."""
    if process.cache_info().currsize:
        child, line = process()
        line.close()
        child.wait()
        process.cache_clear()


if __name__ == "__main__":
    for line in sys.stdin:
        module, order = json.loads(line)
        importlib.import_module(module).unchecked(**order)
        os.write(sys.stdin.fileno(), DONE)
