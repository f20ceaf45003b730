"""A robot that never waits: the actions of the simulated delay, and what happens where there are none."""

import threading
from concurrent.futures import Executor, Future
from itertools import repeat
from types import MappingProxyType

import numpy as np
import pytest
import torch

from flowhand.contracts.execution import MODES, ExecutionConfig
from flowhand.contracts.features import ChunkConfig, Feature, Spec
from flowhand.contracts.planner import NOTHING
from flowhand.control.async_controller import AsyncController
from flowhand.control.controller import Controller
from policies import Policy, PolicyConfig
from policies.heads.flow import FlowConfig
from policies.nets.mlp import MLPConfig

SPEC = Spec({"step": Feature((1,), "float32", "")}, Feature((1,), "float32", ""), control_dt_s=0.1)


def see(step: float) -> dict[str, np.ndarray]:
    return {"step": np.array([step], np.float32)}


def tiny() -> Policy:
    config = PolicyConfig(
        ChunkConfig(2, 8, 3), net=MLPConfig(width=32, blocks=2), head=FlowConfig(steps=2, prefix_max=4)
    )
    policy = Policy(config, SPEC)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
    shown = {name: torch.randn(50, f.size, generator=generator) for name, f in SPEC.observation.items()}
    policy.fit_normalizers(shown, 0.3 * torch.randn(50, SPEC.action.size, generator=generator))
    return policy


class Ticking(Executor):
    """Runs what is submitted at once, and hands over each result after as many ticks as the next latency says."""

    def __init__(self, latencies):
        self.latencies, self.waiting = iter(latencies), []

    def submit(self, work, *arguments):  # pyright: ignore[reportIncompatibleMethodOverride]
        future = Future()
        future.set_running_or_notify_cancel()
        self.waiting.append([next(self.latencies), future, work(*arguments)])
        return future

    def tick(self):
        for entry in self.waiting:
            entry[0] -= 1
            if entry[0] == 0:
                entry[1].set_result(entry[2])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("delay", [1, 3])
def test_asynchronous_control_equals_simulated_delay_bit_for_bit(mode, delay):
    policy = tiny()
    simulated = Controller(policy, noise_seed=2, execution=ExecutionConfig(mode, delay=delay))
    simulated.reset(seed=9)
    expected = [simulated.step(see(0.3 * i)) for i in range(40)]

    worker = Ticking(repeat(delay))
    controller = AsyncController(policy, noise_seed=2, execution=ExecutionConfig(mode), worker=worker)
    controller.reset(seed=9)
    for _ in range(delay):  # the robot stands and waits
        assert controller.step(see(0.0)) is None
        worker.tick()
    for i in range(40):
        action = controller.step(see(0.3 * i))
        assert action is not None
        assert np.array_equal(action, expected[i])
        worker.tick()
    assert controller.starved == 0


class Telling:
    """Answers the decision made at observation j with the actions 100 j + k."""

    continues = NOTHING

    def __init__(self, T=8, s=4):
        self.spec, self.chunk, self.noise_shape = SPEC, ChunkConfig(1, T, s), (T, 1)
        self.asked: list[np.ndarray] = []

    def plan(self, observation, noise, prefix=None):
        self.asked.append(noise)
        return 100 * observation["step"][:, -1:] + np.arange(self.chunk.prediction_horizon, dtype=np.float32)[:, None]


def walk(controller, worker, steps, start=0):
    """Actions for the observations start, start + 1, ..."""
    taken = []
    for i in range(start, start + steps):
        action = controller.step(see(i))
        taken.append(None if action is None else action.item())
        worker.tick()
    return taken


def test_an_example_with_an_action_missing_before_and_between():
    """Chunks of 4, each three steps late: the first starts whole, of every later one the first three are past."""
    worker = Ticking(repeat(3))
    controller = AsyncController(Telling(T=4, s=2), worker=worker)
    controller.reset()
    waited, acted, then = [None] * 3, [0, 1, 2, 3], [503, None, None, 803, None, None, 1103]
    assert walk(controller, worker, 15) == [*waited, *acted, None, *then]
    assert controller.starved == 5
    controller.reset()
    assert controller.starved == 0


def test_a_long_delay_once_costs_what_it_must():
    worker = Ticking(repeat(1))
    controller = AsyncController(Telling(T=8, s=4), worker=worker)
    controller.reset()
    assert walk(controller, worker, 5) == [None, 0, 1, 2, 3]
    worker.latencies = repeat(12)  # the next decision is begun at step 5, when 4 actions are left
    assert walk(controller, worker, 12, start=5) == [4, 5, 6, 7, *[None] * 8]
    worker.latencies = repeat(1)
    assert walk(controller, worker, 4, start=17) == [None, 1701, 1702, 1703]  # all of the late chunk was past
    assert controller.starved == 9


@pytest.mark.parametrize("ticks", [2, 4])
def test_a_new_episode_takes_no_answer_of_the_last_one(ticks):
    """Whether it is there already or comes later."""
    worker = Ticking(repeat(4))
    controller = AsyncController(Telling(), worker=worker)
    controller.reset()
    assert walk(controller, worker, ticks, start=50) == [None] * ticks
    controller.reset()
    assert walk(controller, worker, 5) == [None] * 4 + [0]


class Blocking(Telling):
    """Answers only when it is told to."""

    def __init__(self, **options):
        super().__init__(**options)
        self.go, self.began, self.threads = threading.Semaphore(0), threading.Semaphore(0), set()

    def plan(self, observation, noise, prefix=None):
        self.threads.add(threading.current_thread().name)
        self.began.release()
        assert self.go.acquire(timeout=30)
        return super().plan(observation, noise)


def test_a_step_returns_while_the_policy_is_thinking():
    planner = Blocking()
    with AsyncController(planner) as controller:
        controller.reset()
        assert [controller.step(see(i)) for i in range(5)] == [None] * 5  # with inference in this thread: for ever
        assert planner.began.acquire(timeout=30)
        planner.go.release()
        while (action := controller.step(see(5))) is None:
            pass
        assert action == 0
        assert planner.asked[0].shape == (1, 8, 1)
        planner.go.release(10)
    assert threading.current_thread().name not in planner.threads
    assert len(planner.threads) == 1


def test_what_the_policy_raises_reaches_the_caller_and_the_next_decision_is_made():
    class Failing(Telling):
        def plan(self, observation, noise, prefix=None):
            if len(self.asked) == 1:
                self.asked.append(noise)
                raise ArithmeticError("overflow")
            return super().plan(observation, noise)

    class Honest(Ticking):
        def submit(self, work, *arguments):
            future = super().submit(lambda: None)
            try:
                self.waiting[-1][2] = work(*arguments)
            except ArithmeticError as error:
                self.waiting.pop()
                future.set_exception(error)
            return future

    worker = Honest(repeat(1))
    controller = AsyncController(Failing(), worker=worker)
    controller.reset()
    assert walk(controller, worker, 6) == [None, 0, 1, 2, 3, 4]
    with pytest.raises(ArithmeticError, match="overflow"):
        controller.step(see(6))
    assert walk(controller, worker, 6, start=7) == [6, 7, None, 901, 902, 903]  # the action of step 6 is lost


@pytest.mark.parametrize("simulated", [{"delay": 1}, {"latencies_ms": [5.0]}, {"latencies_file": "somewhere"}])
def test_a_simulated_delay_is_refused(simulated):
    with pytest.raises(ValueError, match="AsyncController measures the delay; delay and latencies are for simulation"):
        AsyncController(Telling(), execution=ExecutionConfig(**simulated))


def test_errors_are_those_of_the_controller():
    with pytest.raises(ValueError, match="mode='rtc_exact' is not possible with this policy"):
        AsyncController(Telling(), execution=ExecutionConfig("rtc_exact"))
    with pytest.raises(ValueError, match="noise_seed=-1"):
        AsyncController(Telling(), noise_seed=-1)
    controller = AsyncController(Telling(), worker=Ticking(repeat(1)))
    with pytest.raises(ValueError, match=r"there is no episode; call reset\(seed=\.\.\.\) first"):
        controller.step(see(0))
    controller.reset()
    with pytest.raises(ValueError, match=r"the observation has \[\], expected \['step'\]"):
        controller.step({})
    with pytest.raises(ValueError, match=r"seed=-1 must lie in \[0, 2\^32\)"):
        controller.reset(seed=-1)


def test_real_time_chunking_expects_the_delay_it_has_measured():
    told = []

    class Continuing(Telling):
        continues = MappingProxyType({"trained": 2})

        def plan(self, observation, noise, prefix=None):
            assert prefix is not None
            told.append((int(prefix.delay_B[0]), int(prefix.overlap_B[0]), prefix.actions_BTA[0, :, 0].tolist()))
            return super().plan(observation, noise)

    worker = Ticking(repeat(1))
    controller = AsyncController(Continuing(T=8, s=4), execution=ExecutionConfig("rtc_trained"), worker=worker)
    controller.reset()
    walk(controller, worker, 6)
    worker.latencies = repeat(3)
    walk(controller, worker, 12, start=6)
    assert told[0] == (0, 0, [0] * 8)
    assert told[1] == (1, 4, [4, 5, 6, 7, 0, 0, 0, 0])
    assert told[2] == (1, 4, [504, 505, 506, 507, 0, 0, 0, 0])
    assert told[3] == (2, 4, [904, 905, 906, 907, 0, 0, 0, 0])  # measured 3, and the policy knows 2
