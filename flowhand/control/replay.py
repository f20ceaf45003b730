"""Decides again what a journal says was decided, from the policy and the recorded observations alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .background import in_words
from .journal import Journal, Recording, layout, observation_of
from .limits.vectors import vector
from .runtime import REASONS
from .safety import CLAMPS, REFUSALS, Safety, Verdict
from .sensors import Policy, pass_by


@dataclass
class Replayed:
    """What a replay compared; every number is of equal ones, to the last bit."""

    steps: int  # control steps
    actions: int  # of the policy
    commands: int  # of safety
    lost_bytes: int  # at the journal's end, of a record that was being written when it was cut off

    def line(self) -> str:
        """One line with all that matters."""
        end = f"; {self.lost_bytes} bytes at the end are no whole record" if self.lost_bytes else ""
        return (
            f"{self.actions} actions of the policy and {self.commands} commands of safety in {self.steps} steps are "
            f"equal to the last bit{end}"
        )


def open_journal(path: str | Path, spec: Any, about: Mapping[str, Any]) -> Journal:
    """A new journal for a runtime of this specification (`policies.Spec`); `about` goes into its header as JSON."""
    content = {**about, "spec": spec.to_dict()}
    return Journal(path, spec.sensed, spec.action.size, content, REASONS, CLAMPS)


def replay(recording: Recording, policy: Policy, safety: Safety) -> Replayed:
    """Asks policy and safety again, as they were when the journal was written, and compares every answer.

    Args:
        recording: the journal.
        policy: as it was then; if it decides beside the control, one that hands its decisions over where `arrived`,
            which is set before every step, says so (`InferenceThread(..., replaying=True)`).
        safety: as it was then.

    Raises:
        ValueError: the first step at which something differs, and what.
    """
    _require_layout(recording, safety.size)
    done = Replayed(0, 0, 0, recording.lost_bytes)
    refusals, clamps = recording.header["refusals"], recording.header["clamps"]
    episode, asked = -1, 0
    for record in recording.records:
        if record["episode"] != episode:
            episode = record["episode"]
            safety.reset(record["start"] if record["started"] else None)
        action = _ask(record, policy, asked)
        asked = int(record["step"]) if record["asked"] else asked
        if action is not None:
            done.actions += 1
        if record["late"]:
            continue
        verdict = _judge(record, refusals[record["refused"]], action, safety)
        _compare(record, "refusal", refusals[record["refused"]], verdict.refused)
        _compare(record, "command", record["safe"] if record["told"] else None, verdict.action)
        _compare(record, "clamps", record["clamps"], _bits(verdict.clamps, clamps, safety.size))
        if record["told"] and not record["sent"]:
            safety.rollback()
        done.steps += 1
        done.commands += verdict.action is not None
    return done


def _require_layout(recording: Recording, size: int) -> None:
    """Raises `ValueError` unless the records have all that a replay reads, as a `Journal` writes it."""
    kind, header = recording.records.dtype, recording.header
    for name, form, shape in layout({}, size):
        if name != "message" and (name not in (kind.names or ()) or kind[name] != np.dtype((form, shape))):
            found = kind[name] if name in (kind.names or ()) else "missing"
            raise ValueError(f"the journal's field {name!r} is {found}, expected {form} of shape {shape}")
    if unknown := [int(r["refused"]) for r in recording.records if r["refused"] >= len(header["refusals"])]:
        raise ValueError(f"the journal has the refusal {unknown[0]}, and names only {len(header['refusals'])}")
    if missing := sorted(set(CLAMPS) - set(header["clamps"])):
        raise ValueError(f"the journal names no clamps {', '.join(missing)}")


def _ask(record: np.ndarray, policy: Policy, asked: int) -> np.ndarray | None:
    """The policy's answer, if it gave one then; before, it was asked at the control step `asked`."""
    if record["restarted"]:
        policy.reset(seed=int(record["seed"]))
    if not record["asked"]:
        return None
    pass_by(policy, 0 if record["restarted"] else int(record["step"]) - asked - 1)
    policy.arrived = bool(record["arrived"])  # pyright: ignore[reportAttributeAccessIssue]
    try:
        action = policy.step(observation_of(record))
    except Exception as error:  # of any kind: then it answered
        where = f"episode {record['episode']}, step {record['step']}"
        raise ValueError(f"{where}: the policy answered, and now it raises {in_words(error)}") from error
    recorded = record["action"] if record["acted"] else None
    action = None if action is None else vector(action)
    fits = action is not None and action.shape == record["action"].shape
    _compare(record, "action", recorded, action if fits else None)
    return action


def _judge(record: np.ndarray, refused: str, action: np.ndarray | None, safety: Safety) -> Verdict:
    """What safety says to it now."""
    observation = observation_of(record) if record["observed_ns"] else None
    if action is None or (refused and refused not in REFUSALS):
        return safety.refuse(refused, observation)
    ages = {name: float(record[name]) for name in ("observation_age_s", "chunk_age_s")}
    return safety.step(action, observation, **ages, chunk_start=bool(record["chunk_start"]))


def _bits(clamps: Mapping[str, tuple[int, ...]], order: list[str], size: int) -> np.ndarray:
    bits = np.zeros(size, np.uint16)
    for reason, dimensions in clamps.items():
        bits[list(dimensions)] |= 1 << order.index(reason)
    return bits


def _compare(record: np.ndarray, what: str, recorded: Any, now: Any) -> None:
    """Raises `ValueError` unless both are the same to the last bit."""
    arrays = isinstance(recorded, np.ndarray) and isinstance(now, np.ndarray)
    same = recorded.tobytes() == now.tobytes() if arrays else type(recorded) is type(now) and recorded == now
    if not same:
        then, now = (" ".join(str(each).split()) for each in (recorded, now))
        raise ValueError(
            f"episode {record['episode']}, step {record['step']}: the {what} was {then}, and now it is {now}"
        )
