"""A setting in a printed command comes back as it was, through a shell and through Hydra."""

import random
import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from flowhand.contracts.argument import argument

ODD = [
    "",
    "null",
    "True",
    "1e5",
    "a b",
    "${seed}",
    "\\${seed}",
    "a\\",
    "a\\'",
    "$(ls)",
    "a,b",
    "{a:1}",
    "x=1",
    "*",
    "é",
    "~x",
]


def test_a_shell_and_hydra_read_the_value_that_was_given():
    rng = random.Random(0)
    signs = "ab1/'\"\\ ${}:,=()[]~+é.-#!*%@;&|<>"
    values = ODD + ["".join(rng.choice(signs) for _ in range(rng.randint(1, 8))) for _ in range(400)]
    script = "printf '%s\\0' " + " ".join(argument("out", value) for value in values)
    words = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    overrides = OverridesParser.create().parse_overrides(words)
    read = [OmegaConf.create({"out": str(override.value())}).out for override in overrides]
    assert read == values


@pytest.mark.parametrize("value", ["outputs/demo/checkpoint", "/tmp/a-b_c.d"])
def test_what_needs_no_quotes_has_none(value):
    assert argument("resume", value) == f"resume={value}"
