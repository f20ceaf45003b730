"""`flowhand compare`: evaluations on the same start states, beside numbers worked out by hand."""

import sys

import pytest

from flowhand.commands import compare
from flowhand.evaluation.records import EpisodeRecord, lines


def folder(path, outcomes, task="reach", seed=1_000_000):
    path.mkdir(parents=True)
    records = [
        EpisodeRecord(
            task, seed + i, solved, solved, "" if solved else "time", "", 10 if solved else None, 10, 0.0, 0.1
        )
        for i, solved in enumerate(map(bool, outcomes))
    ]
    (path / "episodes.jsonl").write_bytes(lines(records))
    return str(path)


def test_the_table_has_the_numbers_of_the_exact_test(tmp_path, monkeypatch, capsys):
    a = folder(tmp_path / "a", [1, 1, 0, 0, 0, 0, 1, 1, 1, 1])
    b = folder(tmp_path / "b", [1, 1, 1, 1, 1, 1, 1, 1, 1, 0])
    monkeypatch.setattr(sys, "argv", ["flowhand compare", a, b, "--out", str(tmp_path / "page.html")])
    compare.main()
    head, first, second, page = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["policy", "tasks", "solved"]
    assert first.split()[1:4] == ["1", "6/10", "60.0%"]
    # Four gained and one lost: 2 (1 + 5) / 2^5 = 0.375, two-sided.
    assert second.split()[1:3] == ["1", "9/10"]
    assert second.split()[7:11] == ["+30.0%", "4", "1", "0.375"]
    assert page == f"page: {tmp_path / 'page.html'}"
    text = (tmp_path / "page.html").read_text()
    assert "+30.0%" in text
    assert "not shown (margin 2.0%)" in text


def test_tasks_of_one_policy_are_joined_by_commas(tmp_path):
    a = [folder(tmp_path / f"a{task}", [1, 0], task) for task in "xy"]
    b = [folder(tmp_path / f"b{task}", [1, 1], task) for task in "xy"]
    first, second = compare.compare([",".join(a), ",".join(b)], 0.02)
    assert (first.tasks, first.summary.successes, second.summary.successes) == (["x", "y"], 2, 4)
    assert second.against_first is not None
    assert (second.against_first.a_only, second.against_first.b_only, second.against_first.n) == (2, 0, 4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "got 1 evaluation to compare"),
        (["a", "nowhere"], r"there is no episodes\.jsonl in nowhere"),
        (["a", "other"], "only one has task reach, seed 1000000"),
        (["a,a", "a"], "has task reach, seed 1000000 twice"),
    ],
)
def test_what_cannot_be_compared_is_said(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "a", [1, 0])
    folder(tmp_path / "other", [1, 0], seed=5_000_000)
    with pytest.raises(ValueError, match=message):
        compare.compare(words, 0.02)
