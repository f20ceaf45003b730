"""A process whose policies have no checked annotations, which torch's tracer cannot follow everywhere.

It serves all tests of a worker: importing torch and the exporters, and their first export, take several seconds.
"""

from __future__ import annotations

import functools
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import config as annotations

from policies.conditioning import Conditioning
from policies.generation.paths import Coefficients
from policies.nets.base import Modulation

DONE = "done"


def here(patch: pytest.MonkeyPatch) -> None:
    """Checks nothing in this process either, as far as the tracer follows what most policies do."""
    patch.setattr(annotations, "jaxtyping_disable", True)
    for cls in (Conditioning, Modulation, Coefficients):
        patch.setattr(cls, "__init__", getattr(cls.__init__, "__wrapped__", cls.__init__))


@functools.cache
def process() -> subprocess.Popen[str]:
    """Started by the first test that asks for something; `stop` ends it."""
    command = [sys.executable, "-m", "tests.deploy.unchecked"]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdin=-1, stdout=-1, text=True)


def call(module: str, **order: Any) -> None:
    """Has the module's function `unchecked` called there with these arguments (what JSON can hold)."""
    child = process()
    assert child.stdin
    assert child.stdout
    child.stdin.write(json.dumps([module, order]) + "\n")
    child.stdin.flush()
    while (line := child.stdout.readline().rstrip("\n")) != DONE:
        assert line, f"the process ended with status {child.wait()}; its stderr says why"


def stop() -> None:
    """Ends the process, if one was started."""
    if process.cache_info().currsize:
        process().communicate()
        process.cache_clear()


if __name__ == "__main__":
    for line in sys.stdin:
        module, order = json.loads(line)
        importlib.import_module(module).unchecked(**order)
        print(DONE, flush=True)  # noqa: T201
