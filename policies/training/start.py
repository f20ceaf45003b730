"""Start from a checkpoint: its weights in a policy for other data, with the same or more observation features.

What the new features add to the conditioning begins at zero, so that with the old statistics the first chunk is the old
policy's. Nothing happens silently: `start` says what differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from flowhand.contracts.data.tasks import SOURCE
from flowhand.contracts.features import GIVEN

from ..encoders.state import StateEncoder
from ..normalizer import Normalizer
from ..policy import Policy

STATISTICS = ("keep", "recompute")


def start(policy: Policy, old: Policy, statistics: str) -> list[str]:
    """Puts the old policy's weights into the new one, whose statistics are those of the new data.

    Args:
        policy: for the new data; its normalizers are fitted.
        old: of the checkpoint.
        statistics: keep the old policy's for the features it has | recompute (stay with the new data's).

    Returns:
        A table of the features, line by line, of what differs in their statistics.

    Raises:
        ValueError: another net, action, or shape of a feature, or features that are gone; nothing is changed then.
    """
    _require_same_parts(policy, old)
    _require_features(policy, old)
    new = policy.state_dict()
    weights = {name: _mapped(name, value, new[name], policy, old) for name, value in old.state_dict().items()}
    lines = list(_table(policy, old, statistics))
    if statistics == "recompute":
        weights = {name: value for name, value in weights.items() if "normalizer" not in name}
    policy.load_state_dict({**new, **weights})
    return lines


def _require_same_parts(policy: Policy, old: Policy) -> None:
    """Raises `ValueError` naming the first setting in which the two differ, beside how the head samples."""
    free = {f"head.{name}" for name in policy.config.head.sampling}
    for name, was in _flat(asdict(old.config)):
        now = dict(_flat(asdict(policy.config))).get(name)
        if now != was and name not in free and name != "chunk.execution_horizon":
            raise ValueError(f"the checkpoint of init has {name}={was}, and here it is {now}; a start needs the same")


def _flat(config: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _require_features(policy: Policy, old: Policy) -> None:
    """Raises `ValueError` unless the action is the same, and every old feature is there."""
    then, now = old.spec, policy.spec
    for what, a, b in [("action", then.action, now.action)] + [
        (f"observation {name!r}", feature, now.observation.get(name)) for name, feature in then.observation.items()
    ]:
        if b is None:
            raise ValueError(f"the checkpoint of init has the {what}, and the data have not; it has to be among them")
        same = all(getattr(a, field) == getattr(b, field) for field in ("shape", "dtype", "kind", "choices"))
        if (a.texts, a.vectors) != (b.texts, b.vectors) or (a.kind == SOURCE and a.names != b.names):
            raise ValueError(f"the checkpoint of init knows other tasks or sources than the data have, of the {what}")
        if not same or (a.names and b.names and a.names != b.names):
            said = [f"{each.dtype} {each.shape} {list(each.names or ())}".replace(" []", "") for each in (a, b)]
            raise ValueError(f"the checkpoint of init has the {what} {said[0]}, and the data {said[1]}")
    added = [name for name in now.observation if name not in then.observation]
    if added and policy.encoder.tokens[0]:
        raise ValueError(f"net={policy.config.net.kind} attends to each feature, so init cannot add {', '.join(added)}")
    others = [name for name in added if now.observation[name].dtype != "float32" or name in GIVEN]
    if others:
        raise ValueError(f"init can add vectors to what a checkpoint observes; it cannot add {', '.join(others)}")


def _mapped(name: str, value: Tensor, like: Tensor, policy: Policy, old: Policy) -> Tensor:
    """A tensor of the old policy in the shape that the new one has; the columns of new features are zero."""
    if value.shape == like.shape:
        return value
    place = name.removesuffix(".layers.0.weight")
    encoder, before = (dict(each.named_modules()).get(place) for each in (policy, old))
    if not (isinstance(encoder, StateEncoder) and isinstance(before, StateEncoder)):
        raise ValueError(f"the weights {name!r} have the shape {tuple(value.shape)} in init, here {tuple(like.shape)}")
    history = old.chunk.history
    sizes = {each: history * policy.spec.observation[each].size for each in encoder.names}
    parts = dict(zip(before.names, value.split([sizes[each] for each in before.names], dim=1), strict=True))
    zero = {each: value.new_zeros(len(value), sizes[each]) for each in encoder.names if each not in parts}
    return torch.cat([{**parts, **zero}[each] for each in encoder.names], dim=1)


def _table(policy: Policy, old: Policy, statistics: str) -> Iterator[str]:
    """How the statistics of the new data differ from the old ones, feature by feature, in the old scale."""
    kept = "the checkpoint's are kept" if statistics == "keep" else "those of the new data are taken"
    yield f"statistics (init_statistics={statistics}): {kept}"
    yield f"  {'feature':24s} {'dims':>5s} {'centre moves by':>16s} {'scale, new / old':>22s}"
    before: dict[str, Normalizer] = dict(old.normalizers())
    for name, now in policy.normalizers():
        size = now.shift.numel()
        if name not in before:
            yield f"  {name:24s} {size:5d} {'new feature':>16s}"
            continue
        was = before[name]
        moved = ((now.shift - was.shift) / was.scale).abs().max().item()
        ratio = now.scale / was.scale
        yield f"  {name:24s} {size:5d} {moved:10.3g} scales {ratio.min().item():10.3g} to {ratio.max().item():.3g}"
