"""What a trainer refuses to go on from, by the name of the field."""

import copy
import math
from dataclasses import replace
from typing import ClassVar, cast

import pytest
import torch

from benchmarks.fuzz_state import STEPS, trainer
from flowhand.commands import train
from flowhand.demos.native import Store
from policies.training.train_state import require_state


def test_a_sound_state_is_taken_and_one_without_threads_too():
    state, parameters = trainer()
    require_state(state, state, parameters, STEPS)
    require_state({name: value for name, value in state.items() if name != "threads"}, state, parameters, STEPS)
    start = copy.deepcopy(state)
    start["optimizer"]["state"] = {}
    require_state(start, state, parameters, STEPS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (("step",), -1),
        (("step",), True),
        (("step",), STEPS + 1),
        (("ema_updates",), 1.0),
        (("seconds",), math.nan),
        (("seconds",), "1"),
        (("history",), {}),
        (("history", 0), None),
        (("history", 0, "loss"), "low"),
        (("threads",), []),
        (("threads", 0), [0, 0]),
        (("threads", 0), [0, 10**9]),
        (("policy",), []),
        (("policy", "weight"), torch.ones(2, 4)),
        (("policy", "weight"), torch.ones(2, 3, dtype=torch.float64)),
        (("ema", "bias"), torch.full((2,), math.inf)),
        (("ema", "other"), torch.ones(2)),
        (("generator",), torch.zeros(3, dtype=torch.uint8)),
        (("optimizer", "state", 7), {}),
        (("optimizer", "state", 0), {}),
        (("optimizer", "state", 0, "exp_avg"), torch.ones(3, 2)),
        (("optimizer", "param_groups"), []),
        (("optimizer", "param_groups", 0, "betas"), (2.0, 2.0)),
        (("optimizer", "param_groups", 0, "lr"), -1.0),
    ],
)
def test_another_value_is_refused_by_its_name(field, value):
    own, parameters = trainer()
    state = copy.deepcopy(own)
    place = state
    for name in field[:-1]:
        place = place[name]
    place[field[-1]] = value
    with pytest.raises(ValueError, match=f"training state's {field[0]}.*resume from another checkpoint") as error:
        require_state(state, own, parameters, STEPS)
    assert "\n" not in str(error.value)


def test_a_resume_without_a_clone_keeps_the_commit(monkeypatch):
    class Demonstrations:
        meta = type("Meta", (), {"env_version": "1", "task": "reach"})
        seeds: ClassVar[list[int]] = []
        hash = staticmethod(lambda: "hash")

    config, store = train.cli.compose([]), cast(Store, Demonstrations())
    monkeypatch.setattr(train, "revision", lambda: "")
    earlier = replace(train.provenance(config, store), git_sha="a" * 40, pretrained={"file": "resnet18"})
    resumed = train.provenance(config, store, None, earlier)
    assert (resumed.git_sha, resumed.pretrained) == ("a" * 40, {"file": "resnet18"})
    monkeypatch.setattr(train, "revision", lambda: "b" * 40)
    assert train.provenance(config, store, None, earlier).git_sha == "b" * 40
