"""A decision to the last bit: whatever is decided beside it, and wherever its numbers lie in memory."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch

import policies
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.features import ChunkConfig, Feature, Spec
from flowhand.contracts.planner import PlanRequest, PrefixArrays
from flowhand.control.controller import Controller, ask, steady_rows
from tests.cases import some

STATE = Feature((3,), "float32", "m", None, None)
SPEC = Spec({"state": STATE, "camera": Feature((4, 4, 3), "uint8", "", None, None)}, STATE, 0.1)


MULTISTEP = {"prediction": "preconditioned", "sigma_data": 0.8, "steps": 6}


class Sums:
    """Sums of its noise; `odd(rows)` names the rows that are summed backwards, and `mixes` adds a neighbour's scale."""

    spec, chunk, noise_shape, continues = SPEC, ChunkConfig(prediction_horizon=4), (4, 3), {"exact": 4}

    def __init__(self, odd=lambda rows: (), mixes: bool = False):
        self.odd, self.mixes, self.forms = odd, mixes, []

    def plan(self, observation, noise, prefix: PrefixArrays | None = None):
        assert observation["camera"].dtype == np.uint8
        assert observation["camera"].std() > 0
        self.forms.append((len(noise), prefix.form if prefix else ""))
        backwards = noise[:, ::-1].cumsum(1, dtype=np.float32)[:, -1:]
        sums = noise.cumsum(1, dtype=np.float32)[:, -1:]
        odd = list(self.odd(len(noise)))
        sums[odd] = backwards[odd]
        if self.mixes:
            sums = np.round(sums / np.abs(noise).max(), 3) * np.abs(noise).max()
        return np.broadcast_to(sums, noise.shape)


@pytest.mark.parametrize(
    ("odd", "rows", "steady"),
    [
        (lambda rows: (), 3, 3),
        (lambda rows: range(rows) if rows == 3 else (), 3, 3),  # all rows alike, if other than elsewhere
        (lambda rows: [rows - 1] if rows in (2, 3) else (), 1, 1),
        (lambda rows: [rows - 1] if rows in (2, 3) else (), 2, 4),  # MKL on processors of AMD
        (lambda rows: [rows - 1] if rows in (2, 3) else (), 3, 4),
        (lambda rows: [0] if rows % 8 else (), 9, 16),
        (lambda rows: range(rows - rows % 16, rows), 17, 32),
    ],
)
def test_an_inference_call_has_rows_that_are_computed_alike(odd, rows, steady):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert steady_rows(Sums(odd), rows) == steady


class Broken(Sums):
    def plan(self, observation, noise, prefix=None):
        return np.full(noise.shape, np.nan, np.float32)


@pytest.mark.parametrize("planner", [Sums(mixes=True), Sums(lambda rows: [1]), Broken()])
def test_where_no_number_of_rows_is_steady_a_line_says_so(planner):
    with pytest.warns(UserWarning, match=r"with 3 rows, or a few more, .* decide for one robot at a time"):
        assert steady_rows(planner, 3) == 3


def test_the_rows_are_tried_in_the_mode_in_which_they_decide():
    planner = Sums(lambda rows: [0] if rows == 2 else ())
    assert Controller(planner, inference_batch=2, execution=ExecutionConfig("rtc_exact")).inference_batch == 4
    assert (4, "exact") in planner.forms


@pytest.mark.parametrize("rows", some([2, 3, 5, 16, 17], [3, 16]))
@pytest.mark.parametrize(
    ("net", "head", "options"),
    [
        ("mlp", "flow", {}),
        ("unet1d", "flow", {}),
        ("transformer", "drift", {}),
        ("mlp", "flow", {**MULTISTEP, "solver": "multistep", "grid": "tabulated"}),
        ("mlp", "diffusion", {**MULTISTEP, "sampler": "multistep", "spacing": "tabulated"}),
    ],
)
def test_a_decision_depends_neither_on_its_row_nor_on_the_others(make_policy, net, head, options, rows):
    policy = make_policy(net=net, head=head, width=32, **options).requires_grad_(False)
    rows = Controller(policy, inference_batch=rows).inference_batch
    generator = np.random.default_rng(1)

    def request() -> PlanRequest:
        draw = {n: generator.standard_normal((2, *f.shape), np.float32) for n, f in policy.spec.observation.items()}
        return PlanRequest(draw, generator.standard_normal(policy.noise_shape, np.float32), np.zeros((4, 2)), 0, 0)

    requests = [request() for _ in range(rows)]
    together = ask(policy, requests, rows)
    for row in {0, rows // 2, rows - 1}:
        assert np.array_equal(ask(policy, [requests[row]], rows)[0], together[row])
    rounded = np.stack([ask(policy, [q], 1)[0] for q in requests])
    spread = policy.action_normalizer.scale.numpy()
    assert np.abs((rounded - together) / spread).max() < 1e-5


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("net", ["mlp", "unet1d", "transformer"])
def test_a_gradient_that_could_be_asked_for_changes_no_bit(make_policy, make_batch, net, rows):
    policy = make_policy(net=net, width=32)
    observation, noise = make_batch(policy, rows).observation, torch.randn(rows, *policy.noise_shape)
    with torch.no_grad():
        trainable = policy.sample(observation, noise)
        assert torch.equal(policy.requires_grad_(False).sample(observation, noise), trainable)


def elsewhere(value: np.ndarray, offset: int) -> np.ndarray:
    """A copy that begins so many bytes behind a multiple of 64."""
    memory = np.zeros(value.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    copy = memory[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
    copy[...] = value
    return copy


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize("net", ["mlp", "unet1d"])
def test_a_decision_does_not_depend_on_where_its_inputs_lie(make_policy, make_batch, net, rows):
    policy = make_policy(net=net, width=32)
    observation = {name: value.numpy() for name, value in make_batch(policy, rows).observation.items()}
    noise = np.random.default_rng(0).standard_normal((rows, *policy.noise_shape), np.float32)
    expected = policy.plan(observation, noise)
    for offset in (4, 8, 16, 32):
        moved = {name: elsewhere(value, offset) for name, value in observation.items()}
        assert np.array_equal(policy.plan(moved, elsewhere(noise, offset)), expected)


@pytest.mark.parametrize("padding", [1, 4, 8, 31])
def test_a_decision_does_not_depend_on_where_the_weights_lie_in_their_file(
    make_policy, make_batch, provenance, tmp_path, padding
):
    policy = make_policy(width=32)
    policies.save(tmp_path / "a", policy, provenance, make_batch(policy).observation, {})
    file = tmp_path / "a" / "model.safetensors"
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end])).encode()
    header += b" " * (64 - len(header) % 64 + padding)
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])
    assert safetensors.torch.load_file(file).keys() == policy.state_dict().keys()
    observation, noise = make_batch(policy, 1).observation, torch.randn(1, *policy.noise_shape)
    with torch.no_grad():
        expected = policy.sample(observation, noise)
        assert torch.equal(policies.load(tmp_path / "a").sample(observation, noise), expected)


@pytest.mark.parametrize("offset", [1, 2, 4])
def test_weights_that_lie_anywhere_decide_as_the_saved_ones(make_policy, make_batch, provenance, tmp_path, offset):
    policy = make_policy(width=32)
    for weight in policy.parameters():  # as views into one flat buffer have it
        memory = torch.empty(weight.numel() + 16)
        weight.data = memory[offset : offset + weight.numel()].view(weight.shape).copy_(weight.data)
    policies.save(tmp_path / "a", policy.eval(), provenance, make_batch(policy).observation, {})
    loaded = policies.load(tmp_path / "a")
    for rows in (1, 2, 4):
        observation, noise = make_batch(policy, rows).observation, torch.randn(rows, *policy.noise_shape)
        with torch.no_grad():
            assert torch.equal(loaded.sample(observation, noise), policy.sample(observation, noise))
