"""Two processes train what one trains: the same weights up to the order of sums, and the same ends."""

from __future__ import annotations

import copy
import os
import signal
import socket

import pytest
import torch

from policies.training.distributed import OneProcess, card_of, started_by
from tests import programs
from tests.policies.distributed_cases import HALF, STEPS, TRIED, advanced, trainer_of


@pytest.fixture(scope="module")
def alone():
    """The training states of one process after all steps, and of flow after the half of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    for head in TRIED:
        trainer = advanced(trainer_of(head), HALF)
        if head == "flow":
            found["half"] = copy.deepcopy(trainer.state())
        found[head] = advanced(trainer, STEPS - HALF).state()
    yield found
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def both(alone, tmp_path_factory):
    """What two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    torch.save(alone["half"], folder / "half.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    program = ("-m", "tests.policies.distributed_cases", str(folder))
    running = [
        programs.start(*program, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        assert [each.wait(timeout=300) for each in running] == [0, 9], [each.said() for each in running]
    finally:
        for each in running:
            each.send_signal(signal.SIGKILL)
            each.wait()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def distance(a, b) -> float:
    """The norm of the difference of two sets of weights, in norms of the second."""
    x, y = (torch.cat([value.flatten() for value in each.values()]) for each in (a, b))
    return ((x - y).norm() / y.norm()).item()


@pytest.mark.parametrize("head", TRIED)
def test_two_processes_learn_what_one_learns(head, alone, both):
    states = [each[head, "whole"] for each in both]
    for name in ("policy", "ema"):
        assert distance(states[0][name], alone[head][name]) <= 1e-6
        assert distance(states[1][name], states[0][name]) == 0
    for name in ("step", "ema_updates"):
        assert states[0][name] == alone[head][name]
    assert torch.equal(states[0]["generator"], alone[head]["generator"])  # the batches are drawn with it too


def test_a_training_goes_on_with_another_number_of_processes(alone, both):
    more = both[0]["went on"]
    assert distance(more["policy"], alone["flow"]["policy"]) <= 1e-6
    assert more["optimizer"]["param_groups"][0]["lr"] == alone["flow"]["optimizer"]["param_groups"][0]["lr"]
    fewer = trainer_of("flow")
    fewer.restore(both[0]["flow", "half"])
    advanced(fewer, STEPS - HALF)
    assert distance(fewer.state()["ema"], alone["flow"]["ema"]) <= 1e-6
    assert torch.equal(fewer.state()["generator"], alone["flow"]["generator"])


def test_a_loss_that_is_no_number_ends_all_with_the_same_words(both):
    said = {each["not finite"] for each in both}
    assert len(said) == 1
    assert "not finite at step 2;" in said.pop()


def test_all_end_when_one_is_asked_to(both):
    assert [each["asked"] for each in both] == [[0, 15], [0, 15]]


def test_the_first_works_alone_or_before_the_others(both):
    assert [each["alone"] for each in both] == ["first", None]
    assert [each["in turn"] for each in both] == [0, 1]


def test_what_should_be_the_same_and_is_not_is_named(both):
    assert all("have different windows: from 80 to 81" in each["different"] for each in both)


def test_the_state_after_a_process_was_lost_is_that_before_the_step(both):
    left = both[0]["lost"]
    assert left["missing"] == "process 1"
    expected = advanced(trainer_of("flow"), 3)
    assert left["state"]["step"] == 3
    assert distance(left["state"]["policy"], expected.state()["policy"]) <= 1e-6
    went_on = trainer_of("flow")
    went_on.restore(left["state"])
    advanced(went_on, 5)
    advanced(expected, 5)
    assert distance(went_on.state()["policy"], expected.state()["policy"]) <= 1e-6
    assert torch.equal(went_on.generator.get_state(), expected.generator.get_state())


def test_without_torchrun_there_is_one_process():
    assert started_by({}) == started_by({"WORLD_SIZE": "2"}) == started_by({"WORLD_SIZE": "1", "RANK": "0"}) == (0, 1)
    assert started_by({"WORLD_SIZE": "4", "RANK": "3"}) == (3, 4)
    one = OneProcess()
    generator = torch.Generator()
    assert one.share(generator, 8) is generator
    assert torch.arange(8)[one.part(8)].tolist() == list(range(8))


def test_every_process_has_a_card_of_its_own_as_far_as_there_are_any():
    assert [card_of("auto", {"LOCAL_RANK": str(rank)}, 2) for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert card_of("cuda:1", {"LOCAL_RANK": "0"}, 2) == "cuda:1"
    assert card_of("auto", {"LOCAL_RANK": "1"}, 0) == "auto"
