"""An evaluation that dies keeps what it has, and the same evaluation goes on from there."""

import json
from functools import partial

import pytest

import envs
from flowhand.evaluation.rollout import rollout
from flowhand.evaluation.unfinished import NAMES, Unfinished, completed, discard_unfinished, fingerprint, unfinished

WORLD = partial(envs.make, envs.DetourConfig())
SEEDS = range(1_000_000, 1_000_006)


def told(records):
    return [(r.seed, r.success, r.steps, r.return_) for r in records]


def run(path, seeds=SEEDS, mark="a", **lanes):
    kept = Unfinished(path, mark)
    try:
        return completed(kept, seeds, WORLD, "expert", lanes)
    finally:
        kept.close()


@pytest.mark.parametrize("n_envs", [1, 3])
def test_records_after_a_death_are_those_of_an_evaluation_that_never_stopped(tmp_path, n_envs, monkeypatch):
    whole = told(rollout(WORLD, "expert", SEEDS))
    written = Unfinished.write

    def dies(self, record):
        written(self, record)
        if len(self.records) == 3:
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "write", dies)
        with pytest.raises(MemoryError):
            run(tmp_path / "part", n_envs=n_envs)
    with (tmp_path / "part").open("ab") as file:
        file.write(b'{"task": "det')  # a kill in the middle of a line
    assert len((tmp_path / "part").read_bytes().splitlines()) == 1 + 3 + 1
    asked = []
    monkeypatch.setattr(
        "flowhand.evaluation.unfinished.rollout", lambda *a, **k: asked.append(a[2]) or rollout(*a, **k)
    )
    assert told(run(tmp_path / "part", n_envs=2)) == whole
    assert len(asked[0]) == 3
    assert told(run(tmp_path / "part")) == whole
    assert len(asked) == 1


def test_another_evaluation_takes_nothing_up(tmp_path, capsys):
    run(tmp_path / NAMES[0], mark="a")
    with unfinished(tmp_path, "a") as (kept, expert):
        assert (len(kept.records), len(expert.records)) == (6, 0)
    assert "6 episodes of this evaluation are there already" in capsys.readouterr().out
    with unfinished(tmp_path, "b") as (kept, _):
        assert kept.records == {}
    assert "6 episodes of another unfinished evaluation are discarded" in capsys.readouterr().out
    discard_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_line_is_named(tmp_path):
    run(tmp_path / "part")
    content = (tmp_path / "part").read_bytes().splitlines(keepends=True)
    content[2] = json.dumps({"seed": "x"}).encode() + b"\n"
    (tmp_path / "part").write_bytes(b"".join(content))
    with pytest.raises(ValueError, match=r"part, line 2: .*expected an object"):
        Unfinished(tmp_path / "part", "a")


def test_the_fingerprint_follows_settings_and_arrays():
    import numpy as np

    base = fingerprint({"a": 1}, {"w": np.zeros(2)})
    assert base == fingerprint({"a": 1}, {"w": np.zeros(2)})
    assert len({base, fingerprint({"a": 2}, {"w": np.zeros(2)}), fingerprint({"a": 1}, {"w": np.ones(2)})}) == 3
