"""A server's address is loaded as a planner, and refused in one line where it says too little."""

import threading

import numpy as np
import pytest
from websockets.sync.server import serve

import flowhand
from benchmarks.toy_server import ToyPolicy
from flowhand.contracts.noise import noise as drawn
from flowhand.control.controller import Controller
from flowhand.deploy.client import pack


def rows(count, random):
    joints = random.standard_normal((count, 2, 3)).astype(np.float32)
    return {"joints": joints, "camera": random.integers(0, 256, (count, 2, 8, 8, 3), dtype=np.uint8)}


def test_a_server_plans_as_its_policy_does_with_the_noise_of_the_seed_that_is_sent(serving):
    toy, random = ToyPolicy(), np.random.default_rng(0)
    address = serving(toy, key="correct-horse-battery").uri
    with pytest.MonkeyPatch.context() as patch:
        with pytest.raises(ConnectionError, match="401"):
            flowhand.load(address)
        patch.setenv("FLOWHAND_API_KEY", "correct-horse-battery")
        planner = flowhand.load(address)
    assert planner.spec.to_dict() == toy.spec.to_dict()
    assert (planner.chunk.history, planner.chunk.prediction_horizon, planner.chunk.execution_horizon) == (2, 8, 2)
    observation, noise = rows(3, random), random.standard_normal((3, *planner.noise_shape)).astype(np.float32)
    chunks = planner.plan(observation, noise)
    seeds = noise.view(np.uint32)[:, 0]
    own = np.stack([drawn(0, int(seed), 0, toy.noise_shape) for seed in seeds])
    np.testing.assert_allclose(chunks, toy.plan(observation, own), rtol=1e-6)
    np.testing.assert_array_equal(planner.plan(observation, noise), chunks)
    assert planner.words == f"policy served at {address}"
    assert address in repr(planner)
    with pytest.raises(ValueError, match="does not say what its policy was trained on; load the checkpoint"):
        _ = planner.provenance
    controller = Controller(planner)
    controller.reset(seed=3)
    action = controller.step({name: value[0, 0] for name, value in observation.items()})
    assert action.shape == (2,)
    assert np.isfinite(action).all()
    planner.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_an_openpi_server_is_refused_in_one_line():
    with serve(lambda connection: connection.send(pack({"action_horizon": 10})), "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        with pytest.raises(ValueError, match=r"says too little of its policy to be loaded .*client\.Client") as refused:
            flowhand.load(address)
        assert "\n" not in str(refused.value)
        server.shutdown()
