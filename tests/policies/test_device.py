import os

import pytest
import torch

from flowhand.contracts.provenance import usable_cores
from policies.device import select_device, usable_threads


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_cpu_is_always_there():
    assert select_device("cpu") == torch.device("cpu")


def test_auto_takes_cuda_where_there_is_one():
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu-9", "device 'tpu-9' is unknown; choices: auto, cpu, cuda, cuda:N"),
        ("", "device '' is unknown"),
        ("cuda:99", "device 'cuda:99' is not there; this machine has"),
        ("meta", "device 'meta' is not supported; choices: auto, cpu, cuda, cuda:N"),
    ],
)
def test_a_device_that_cannot_be_used_is_an_error(name, message):
    with pytest.raises(ValueError, match=message):
        select_device(name)


def test_cuda_is_an_error_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="device 'cuda' is not there; this machine has 0 CUDA devices"):
        select_device("cuda")


def test_threads_are_those_asked_for():
    select_device("cpu", threads=3)
    assert torch.get_num_threads() == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux limits a process to some cores")
def test_threads_are_by_default_as_many_as_the_process_may_use(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    allowed = os.sched_getaffinity(0)
    assert usable_cores() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
        select_device("cpu")
        assert torch.get_num_threads() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("said", "threads"), [("1", 1), (" 2,1", 2), ("64", 4), ("", 4), ("0", 4), ("many", 4), ("-1", 4), (None, 4)]
)
def test_openmp_is_told_how_many_threads_there_may_be(monkeypatch, said, threads):
    """Where OpenMP takes no notice of a value, neither does this."""
    monkeypatch.setattr("policies.device.usable_cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", said) if said is not None else monkeypatch.delenv("OMP_NUM_THREADS")
    assert usable_threads() == threads
    select_device("cpu")
    assert torch.get_num_threads() == threads
