"""A click on the element that the instruction names, made of numpy alone: small screens for tests."""

from __future__ import annotations

import numpy as np
import torch

from flowhand.contracts.features import ChunkConfig, Spec
from flowhand.contracts.screen.fields import (
    ACTIONS,
    FIELDS,
    LETTERS,
    NUMBERS,
    STRINGS,
    action_feature,
    observation_features,
)
from policies import Batch, Policy, PolicyConfig
from policies.encoders import ENCODERS
from policies.heads import HEADS
from policies.nets import NETS
from policies.normalizer import NormalizerConfig

SPEC = Spec(observation_features(), action_feature(), None)
HORIZON = 3
FIELD = {name: i for i, name in enumerate(FIELDS)}


def text(*rows: str, length: int = LETTERS) -> np.ndarray:
    """Strings as bytes (len(rows), length), zero where they have ended."""
    found = np.zeros((len(rows), length), np.uint8)
    for row, each in zip(found, rows, strict=True):
        data = each.encode()[:length]
        row[: len(data)] = list(data)
    return found


def word(random: np.random.Generator) -> str:
    return "".join(random.choice(list("abcdefghijklmnopqrstuvwxyz"), random.integers(3, 7)))


def blank(count: int) -> dict[str, np.ndarray]:
    """Screens without anything, and their instruction, (count, 1, ...)."""
    return {name: np.zeros((count, 1, *f.shape), f.dtype) for name, f in SPEC.observation.items()}


def named_element(count: int, seed: int = 0, buttons: int = 5) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Screens with buttons and a field, in any rows: type the second word into the field, click the named button.

    Plans (count, HORIZON, 8): type, click with an offset of a tenth of the element's height, stop.
    """
    random, observation = np.random.default_rng(seed), blank(count)
    plan = np.zeros((count, HORIZON, len(FIELDS)), np.float32)
    for i in range(count):
        rows = random.permutation(12)[: buttons + 1]
        names = [word(random) for _ in range(buttons)]
        chosen, typed = random.integers(buttons), word(random)
        strings, numbers = observation["element_strings"][i, 0], observation["elements"][i, 0]
        for row, name in zip(rows, [*names, ""], strict=True):
            strings[row, STRINGS.index("tag")] = text("button" if name else "input")
            strings[row, STRINGS.index("text")] = text(name)
            numbers[row, NUMBERS.index("present")] = 1
            numbers[row, 1:5] = random.random(4)
        said = ["type", typed, "then", "click", names[chosen]]
        observation["words"][i, 0, : len(said)] = text(*said)
        plan[i, 0, [FIELD["action"], FIELD["element"]]] = ACTIONS.index("type"), rows[-1]
        plan[i, 0, [FIELD["first"], FIELD["last"]]] = 1
        plan[i, 1, [FIELD["action"], FIELD["element"]]] = ACTIONS.index("click"), rows[chosen]
        plan[i, 1, FIELD["dy"]] = 0.1 * numbers[rows[chosen], NUMBERS.index("height")]
    return {name: torch.from_numpy(value) for name, value in observation.items()}, plan


def batch_of(observation: dict[str, torch.Tensor], plan: np.ndarray) -> Batch:
    return Batch(observation, torch.from_numpy(plan), torch.ones(plan.shape[:2], dtype=torch.bool))


def make_policy(head: str, horizon: int = HORIZON, seed: int = 0, width: int = 32, **options) -> Policy:
    torch.manual_seed(seed)
    config = PolicyConfig(
        ChunkConfig(1, horizon, horizon),
        NormalizerConfig(),
        ENCODERS["elements"][0](width=32, layers=1, heads=2, text=16, letters=8, size=32),  # pyright: ignore
        NETS["transformer"][0](width=width, blocks=2, heads=2, expansion=2),  # pyright: ignore
        HEADS[head][0](**options),
    )
    return Policy(config, SPEC)


def fitted(policy: Policy, observation: dict[str, torch.Tensor], plan: np.ndarray) -> Policy:
    policy.fit_normalizers({n: v[:, 0] for n, v in observation.items()}, torch.from_numpy(plan).flatten(0, 1))
    return policy
