"""Steps at which somebody had taken over are drawn as often as they weigh."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import Feature, Spec
from flowhand.demos.config import TrainingDataConfig
from flowhand.demos.meta import StoreMeta
from flowhand.demos.native import Store
from flowhand.demos.recording.interventions import step_weights
from flowhand.demos.recording.recorder import Recorder
from policies.training.weighted import Draws

SPEC = Spec({"state": Feature((1,), "float32", "m")}, Feature((1,), "float32", "m"), 0.1)


def test_without_weights_the_draws_are_those_of_before():
    ours = Draws(1000)(64, torch.Generator().manual_seed(3), torch.device("cpu"))
    assert torch.equal(ours, torch.randint(1000, (64,), generator=torch.Generator().manual_seed(3)))


def test_draws_follow_the_weights():
    weights = np.array([1.0, 0.0, 3.0, 1.0])
    drawn = Draws(4, weights)(40_000, torch.Generator().manual_seed(0), torch.device("cpu"))
    shares = torch.bincount(drawn, minlength=4).numpy() / 40_000
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.01)
    assert shares[1] == 0


@pytest.mark.parametrize("weights", [np.ones(3), np.zeros(4), np.array([1, 1, 1, np.nan]), -np.ones(4)])
def test_weights_that_cannot_be_are_refused(weights):
    with pytest.raises(ValueError, match="got weights"):
        Draws(4, weights)


def store(path, interventions):
    found = Store.create(path, StoreMeta(SPEC.to_dict(), "go", "arm", "", {}))
    for acted in interventions:
        steps = np.zeros((3, 1), np.float32)
        rest = (np.zeros(3, np.float32), np.zeros(3, bool), "go", 0, 0.1)
        found.append(Episode({"state": steps}, steps, *rest, intervention=None if acted is None else np.array(acted)))
    return found


def test_weights_of_recorded_steps(tmp_path):
    data = store(tmp_path / "store", [None, [False, True, True]])
    assert step_weights(data, [0, 1], 1.0) is None
    weights = step_weights(data, [1, 0], 2.5)
    assert weights is not None
    assert weights.tolist() == [1, 2.5, 2.5, 1, 1, 1]
    with pytest.raises(ValueError, match="at no step"):
        step_weights(data, [0], 2.0)


def test_weights_of_a_recorded_lerobot_set(tmp_path):
    from flowhand.demos.lerobot.dataset import LeRobotDataset

    with Recorder(tmp_path / "set", SPEC) as recorder:
        recorder.begin()
        for step in range(4):
            recorder.add({"state": np.zeros(1)}, np.zeros(1), intervention=step >= 2)
        recorder.end()
    data = LeRobotDataset(tmp_path / "set")
    weights = step_weights(data, [0], 3.0)
    assert weights is not None
    assert weights.tolist() == [1, 1, 3, 3]
    assert data.recorded() == set()


def test_a_weight_below_zero_is_refused():
    with pytest.raises(ValueError, match="intervention_weight"):
        TrainingDataConfig(intervention_weight=-1)
