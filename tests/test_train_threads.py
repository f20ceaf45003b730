"""CPU threads of a training: what times them changes nothing, and a resumed run repeats what was chosen, to the bit."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flowhand.commands import train
from policies.training import trainer as training
from tests import test_train
from tests.test_train import assert_same_state

SHORT = ("train.steps=16", "train.save_every=6", "train.log_every=4")
WIDE = (*SHORT, "net.width=64", "train.batch_size=256")  # two threads sum otherwise than one


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_trainer(*overrides):
    torch.set_num_threads(1)
    return test_train.make_trainer(*overrides)


class Scripted:
    """Chooses at given steps, and tries another number between all others, as the real chooser does now and then."""

    def __init__(self, trainer, choices):
        self.trainer, self.choices, self.count = trainer, choices, torch.get_num_threads()

    def after_step(self, seconds):
        assert seconds > 0
        torch.set_num_threads(3 - self.count)
        self.trainer.trial()
        torch.set_num_threads(self.count)
        before, self.count = self.count, self.choices.get(self.trainer.step, self.count)
        return self.count != before


def run(trainer, choices, dies_after=None):
    """Trains; returns the saved states by step, the threads of every step, and the log."""
    torch.set_num_threads(trainer.threads[-1][1])
    saved, used, log = {}, {}, []
    honest = trainer.loss

    def watched(batch, generator, *draws):
        if generator is trainer.generator:
            if trainer.step == dies_after:
                raise KeyboardInterrupt
            used[trainer.step] = torch.get_num_threads()
        return honest(batch, generator, *draws)

    def save():
        torch.save(trainer.state(), file := io.BytesIO())
        saved[trainer.step] = torch.load(io.BytesIO(file.getvalue()), weights_only=True)

    trainer.loss = watched
    trainer.thread_chooser = lambda: Scripted(trainer, choices)
    try:
        train.fit(trainer, save, dict, lambda entry, step: log.append(entry))
    except KeyboardInterrupt:
        assert dies_after is not None
    return saved, used, log


def schedule(record, steps):
    """The threads of every step, as a state's record says."""
    return {step: next(count for start, count in reversed(record) if start <= step) for step in steps}


def test_a_trial_changes_nothing():
    plain, tried = make_trainer(*SHORT), make_trainer(*SHORT)
    for _ in range(3):
        plain.advance()
        tried.trial()
        tried.advance()
        tried.trial()
    assert_same_state(plain.state(), tried.state())


def test_a_switch_is_saved_noted_and_logged():
    saved, used, log = run(make_trainer(*SHORT), {5: 2, 9: 1, 16: 2})
    assert sorted(saved) == [5, 6, 9, 12, 16]  # 16 is the last step, after which nothing is chosen
    assert saved[16]["threads"] == [[0, 1], [5, 2], [9, 1]]
    assert saved[5]["threads"] == [[0, 1], [5, 2]]  # whoever goes on from here begins with two
    assert used == schedule(saved[16]["threads"], range(16))
    assert [entry["threads"] for entry in log] == [1, 2, 1, 1]


def test_a_killed_run_repeats_what_was_chosen():
    """Killed between a choice's checkpoint and the next one."""
    choices = {5: 2, 9: 1, 14: 2}
    whole, used, _ = run(make_trainer(*WIDE), choices)
    half, before, _ = run(make_trainer(*WIDE), choices, dies_after=7)
    del half[6]  # as if it had not come that far; the choice's own is left
    resumed = make_trainer(*WIDE, "train.threads=0")
    torch.set_num_threads(4)  # whatever the new process begins with
    resumed.restore(half[5])
    assert torch.get_num_threads() == 2
    rest, after, _ = run(resumed, {9: 1, 14: 2})
    assert before | after == used
    assert rest[16]["threads"] == whole[16]["threads"] == [[0, 1], [5, 2], [9, 1], [14, 2]]
    assert_same_state(whole[16], rest[16])


def test_a_resumed_run_may_choose_otherwise_and_says_so():
    half, _, _ = run(make_trainer(*SHORT), {5: 2}, dies_after=8)
    resumed = make_trainer(*SHORT, "train.threads=0")
    resumed.restore(half[6])
    rest, after, _ = run(resumed, {7: 1})
    assert rest[16]["threads"] == [[0, 1], [5, 2], [7, 1]]
    assert after == schedule(rest[16]["threads"], range(6, 16))


def test_a_given_number_wins_over_the_recorded_one():
    trainer = make_trainer(*SHORT)
    trainer.step = 6
    state = trainer.state() | {"threads": [[0, 4], [3, 2]]}
    resumed = make_trainer(*SHORT, "train.threads=1")
    resumed.restore(state)
    assert torch.get_num_threads() == 1
    assert resumed.threads == [[0, 4], [3, 2], [6, 1]]
    del state["threads"]  # as an earlier version wrote it
    resumed = make_trainer(*SHORT)
    resumed.restore(state)
    assert resumed.threads == [[0, 1]]


def test_what_is_chosen_among(monkeypatch):
    monkeypatch.setattr(training, "usable_threads", lambda: 8)
    assert make_trainer("train.threads=0").thread_chooser().choices == [1, 2, 4, 8]
    assert make_trainer("train.threads=1").thread_chooser().choices == [1]
    on_a_gpu: Any = make_trainer("train.threads=0")
    on_a_gpu.bad_step = SimpleNamespace(device=torch.device("cuda"))
    assert on_a_gpu.thread_chooser().choices == [1]
