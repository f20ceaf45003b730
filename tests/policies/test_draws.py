"""The loss of a batch does not depend on how many processes share it: here threads, that sum with each other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from policies.conditioning import Conditioning
from policies.draws import Share, drawn, own, permutation
from policies.encoders.vision.augment import coloured, shifted
from policies.heads import HEADS
from tests.policies.test_golden_losses import ACTION, COND, GOLDEN, ROWS, STEPS, Wavy, fill, wave

AGAIN = 2  # times that every row is repeated, as with several draws
SEPARABLE = [
    (kind, options)
    for kind in HEADS
    for options, _ in GOLDEN.get(kind, [({}, 0.0)])
    if options.get("coupling") != "optimal_transport"
]


class Together:
    """Sums tensors over threads, of which one computes at a time: derivatives in forward mode are for one thread."""

    def __init__(self, count: int):
        self.values: list[Tensor | None] = [None] * count
        self.barrier, self.turn = threading.Barrier(count, timeout=20), threading.Lock()

    def of(self, rank: int):
        def summed(value: Tensor) -> Tensor:
            self.values[rank] = value
            self.turn.release()
            self.barrier.wait()
            total = sum(each for each in self.values if each is not None)
            self.barrier.wait()
            self.turn.acquire()
            return total

        return summed


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def shares(count: int, rows: int, together: Together | None = None) -> list[Share]:
    together = together or Together(count)
    parts = [slice(rank * rows // count, (rank + 1) * rows // count) for rank in range(count)]
    return [Share.of(seeded(), part, rows, together.of(rank)) for rank, part in enumerate(parts)]


def loss_of(kind, options, rows: Tensor, generator) -> tuple[float, Tensor, list[Tensor]]:
    """The loss of some rows, and its gradients with respect to their conditions and the head's weights."""
    config, head_class = HEADS[kind]
    head = head_class(config(**options), COND)
    fill(head)
    mask = torch.arange(STEPS) < torch.arange(ROWS)[:, None] % (STEPS + 1)  # of the first row nothing counts
    told = wave(ROWS, COND)[rows].requires_grad_()
    loss = head.loss(Wavy(), wave(ROWS, STEPS, ACTION)[rows], Conditioning(told), mask[rows], generator)
    loss.backward()
    assert told.grad is not None
    return loss.item(), told.grad, [torch.zeros(1) if p.grad is None else p.grad for p in head.parameters()]


@pytest.mark.parametrize(("kind", "options"), SEPARABLE)
@pytest.mark.parametrize("count", [3, ROWS])
def test_the_parts_of_a_loss_are_the_loss(kind, options, count):
    index = torch.arange(ROWS).repeat(AGAIN)
    whole, told, weights = loss_of(kind, options, index, seeded())
    together = Together(count)
    parts = shares(count, ROWS, together)
    rows = [torch.arange(s.first, s.first + s.rows).repeat(AGAIN) for s in parts]
    turn = together.turn

    def part_of(row: Tensor, share: Share):
        with turn:
            return loss_of(kind, options, row, share)

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(part_of, rows, parts))
    assert sum(loss for loss, _, _ in found) == pytest.approx(whole, rel=1e-5)
    gradient = torch.cat([each.unflatten(0, (AGAIN, -1)) for _, each, _ in found], dim=1).flatten(0, 1)
    torch.testing.assert_close(gradient, told, rtol=1e-4, atol=1e-6)
    for at, weight in enumerate(weights):
        torch.testing.assert_close(sum(each[at] for _, _, each in found), weight, rtol=1e-4, atol=1e-6)
    assert all(share.asked for share in parts)
    assert all(torch.equal(share.whole.get_state(), parts[0].whole.get_state()) for share in parts)


def test_pictures_change_as_in_the_whole_batch():
    pictures = torch.arange(5 * 2 * 6 * 6 * 3).view(5, 2, 6, 6, 3).remainder(251).to(torch.uint8)

    def changed(some: Tensor, generator: torch.Generator) -> Tensor:
        moved = shifted(some, (4, 4), 2, generator)
        return coloured(moved.movedim(-1, 2).float(), 0.3, 0.2, 0.1, generator)

    whole = changed(pictures, seeded())
    for share in shares(2, 5):
        mine = slice(share.first, share.first + share.rows)
        assert torch.equal(changed(pictures[mine], share), whole[mine])


def test_rows_of_a_permutation_come_to_those_that_have_them():
    whole, values = permutation(6, seeded(), torch.device("cpu")), torch.arange(6) * 10
    first, second = shares(2, 3)
    mine, said = own(whole, first, values)  # 3 rows in two copies: 0 and 3 are the only ones of the first process
    assert mine.tolist() == [{0: 0, 3: 1}[row] for row in whole.tolist() if row in (0, 3)]
    assert said.tolist() == [10 * at for at, row in enumerate(whole.tolist()) if row in (0, 3)]
    assert len(own(whole, second)[0]) == 4
    assert torch.equal(permutation(2, first, torch.device("cpu")), whole)


def test_numbers_for_other_rows_than_the_batch_are_refused():
    first, second = shares(2, 5)
    assert drawn(torch.randn, (2, 4), first).shape == (2, 4)
    with pytest.raises(ValueError, match="random numbers for 4 rows, expected a multiple of the 3"):
        drawn(torch.randn, (4, 4), second)


def test_optimal_transport_is_refused_by_name():
    config = HEADS["flow"][0](coupling="optimal_transport")
    with pytest.raises(ValueError, match=r"head\.coupling='optimal_transport' pairs .* head\.coupling=independent"):
        config.require_separable()
    for plain, _ in HEADS.values():
        plain().require_separable()
