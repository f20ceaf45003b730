"""A result file is labelled by what computed, whatever the process that writes it has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import result, success
from flowhand.commands import eval as evaluation

BENCHMARKS = Path(result.__file__).parent


def test_the_device_and_the_threads_are_those_that_are_stated(tmp_path, monkeypatch):
    monkeypatch.setattr(result, "FOLDER", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # a machine with a GPU, which was not asked
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    path = result.write("toy", {"cells": [3]}, device="cpu", threads="1 and 2")
    told = json.loads(path.read_text())
    assert path.name == f"toy_cpu_{told['date']}.json"
    assert told["hardware"].endswith("cores, 1 and 2 torch threads")
    assert (told["benchmark"], told["device"], told["threads"], told["cells"]) == ("toy", "cpu", "1 and 2", [3])


def test_a_result_of_a_gpu_has_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(result, "FOLDER", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the GPU {device.index}")
    path = result.write("toy", {}, device=torch.device("cuda:1"), threads=1)
    told = json.loads(path.read_text())
    assert path.name == f"toy_cuda_{told['date']}.json"
    assert (told["hardware"], told["device"]) == ("the GPU 1", "cuda")


def test_hardware_has_the_threads_of_this_process_unless_others_are_told():
    now = f"{torch.get_num_threads()} torch threads"
    assert evaluation.hardware(torch.device("cpu")).endswith(now)
    assert evaluation.hardware(torch.device("cpu"), 7).endswith(" 7 torch threads")


@pytest.mark.parametrize(
    ("hardware", "name"),
    [
        ("Intel(R) Xeon(R) Processor, 2 cores, 1 torch threads", "Intel Xeon"),
        ("AMD EPYC, 2 cores, 1 torch threads", "AMD EPYC"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"),
    ],
)
def test_a_processor_as_a_reader_calls_it(hardware, name):
    assert result.processor(hardware) == name


def test_the_page_of_all_tasks_is_what_its_result_file_gives():
    source = result.FOLDER / "success_cpu_2026-11-22.json"
    page = result.FOLDER.parents[1] / "docs" / "metaworld.md"
    assert success.page(json.loads(source.read_text()), source) == page.read_text()
