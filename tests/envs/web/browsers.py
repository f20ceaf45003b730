"""One browser for all tests of a process, and pages and actions for them."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

import envs
from envs import WebConfig
from envs.web.chromium import find_chromium
from envs.web.devtools import Browser, acquire
from flowhand.contracts.screen.fields import ACTIONS, FIELDS, KEYS, PIXEL_FIELDS

KEPT: list[Browser] = []  # ended with the process


def require_browser(miniwob: bool = True) -> None:
    """Skips the test where there is no browser; starts the one that all tests share."""
    try:
        find_chromium()
    except FileNotFoundError as error:
        pytest.skip(f"no Chromium: {error}")
    if miniwob and importlib.util.find_spec("miniwob") is None:
        pytest.skip("miniwob is not installed: pip install 'flowhand[web]'")
    if not KEPT or not KEPT[-1].running:
        KEPT.append(acquire())


def act(action: str, *, pixels: bool = False, **fields) -> np.ndarray:
    """An action from the names of its fields."""
    names = PIXEL_FIELDS if pixels else FIELDS
    values = np.zeros(len(names), np.float32)
    values[0] = ACTIONS.index(action)
    for name, value in fields.items():
        values[names.index(name)] = KEYS.index(value) if name == "key" else value
    return values


def row(info: dict, **wanted) -> int:
    """The row of the one element that has these."""
    found = [e["row"] for e in info["expert_observation"]["elements"] if wanted.items() <= e.items()]
    assert len(found) == 1, (wanted, found)
    return found[0]


PAGE = """<!DOCTYPE html><html><head><style>body { margin: 0; font: 10px Arial }</style><script>
const log = [];
var score = 0, over = false;
const flowhand = {
  reset(seed) { begin(seed); return {instruction: INSTRUCTION, fields: {seed: String(seed)}}; },
  reward() { return {reward: score, done: over}; },
};
function begin(seed) {}
SCRIPT
</script></head><body>BODY</body></html>"""


def world(**settings) -> Any:
    """The world of a page; of any type, for tests look inside."""
    return envs.make(WebConfig(**settings))


def write_page(folder, body: str, script: str = "", instruction: str = "do it", name: str = "page.html") -> str:
    """Writes a page that keeps to the contract; its path."""
    text = PAGE.replace("SCRIPT", script).replace("BODY", body).replace("INSTRUCTION", repr(instruction))
    path = folder / name
    path.write_text(text)
    return str(path)
