"""The sweep over few demonstrations: its plan, what arms share, and its summary; no simulator and no training."""

from __future__ import annotations

import operator
from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from benchmarks import cells, data_efficiency
from benchmarks.data_efficiency import ARMS, EXPERT, TRAININGS, TUNING, Cell, plan, run, summarize
from conf.cli import compose
from policies.heads import HEADS

CELL = Cell("pick-place-v3", 10, "default", 0, 5_000_000, 4)


def asked(**options) -> Namespace:
    given = {"tasks": list(TUNING), "demonstrations": [10], "arms": ["default", "steps-4000"], "seeds": [0, 1]}
    return Namespace(**{**given, "episodes": 4, "first_seed": 5_000_000, **options})


def test_a_plan_has_the_experts_first_and_every_cell_once():
    cells_of = plan(asked(demonstrations=[10, 50]))
    assert [cell.arm for cell in cells_of[:5]] == [EXPERT] * 5
    assert len(cells_of) == 5 + 2 * 2 * 5 * 2
    assert len({cell.name for cell in cells_of}) == len(cells_of)
    assert len(plan(asked(tasks=["all"], arms=["default"], seeds=[0]))) == 100


@pytest.fixture(scope="module")
def default():
    """Composed once, for it takes a second."""
    return compose(CELL.overrides)


def trained_head(default, name: str):
    """The head of a training, and its other settings with a value each."""
    settings = {key: yaml.safe_load(value) for key, value in (line.split("=") for line in TRAININGS[name])}
    kind = settings.pop("head", default.head.kind)
    fields = {key.removeprefix("head."): settings.pop(key) for key in list(settings) if key.startswith("head.")}
    head = default.head if kind == default.head.kind else HEADS[kind][0]()
    return replace(head, **fields), settings


@pytest.mark.parametrize("name", TRAININGS)
def test_every_training_changes_settings_that_there_are(default, name):
    assert (default.data.episodes, default.seed, default.eval.seed) == (10, 0, 5_000_000)
    head, others = trained_head(default, name)
    assert all(operator.attrgetter(key)(default) != value for key, value in others.items())
    assert bool(others or head != default.head) == (name != "default")
    assert set(TRAININGS[name]) <= set(replace(CELL, arm=name).overrides)


@pytest.mark.parametrize("arm", ARMS)
def test_every_sampler_is_one_of_its_head(default, arm):
    training, fields = ARMS[arm]
    changed = trained_head(default, training)[0].resampled(fields)
    assert all(getattr(changed, name) == value for name, value in fields.items())


def test_arms_that_differ_in_the_sampler_share_a_policy_and_others_do_not():
    one, other = (replace(CELL, arm=arm).trained for arm in ("preconditioned", "multistep-8"))
    assert one == other
    apart = [replace(CELL, arm="default"), replace(CELL, seed=1), replace(CELL, demonstrations=50)]
    assert len({cell.trained for cell in apart} | {one}) == 4


def test_a_cell_samples_as_its_arm_says_and_tells_of_a_training_that_took_too_long(tmp_path, monkeypatch):
    told, policy = [], SimpleNamespace(head=SimpleNamespace(evaluations=8))
    policy.with_head = lambda **fields: told.append(fields) or policy

    def trained(folder, name, config):
        told.append((name, config.train.threads))
        folder.mkdir(parents=True)
        (folder / f"{name}.trained.json").write_text('{"name": "x", "steps": 2000, "train_cpu_seconds": 120.1}')
        return policy

    monkeypatch.setattr(cells, "trained", trained)
    records = [SimpleNamespace(success=i > 0, seed=5_000_000 + i) for i in range(4)]
    monkeypatch.setattr(data_efficiency.evaluation, "evaluate", lambda *_: records)
    kept = run(tmp_path, replace(CELL, arm="multistep-8"))
    assert told == [
        ("pick-place-v3-10-preconditioned-0", 1),
        {"solver": "multistep", "grid": "tabulated", "steps": 8},
    ]
    assert kept is not None
    assert (kept["outcomes"], kept["too_long"], kept["evaluations_per_decision"]) == ("0111", True, 8)


def test_the_summary_compares_with_experts_and_with_the_default_on_the_same_episodes(tmp_path):
    outcomes = {EXPERT: "1111", "default": "1100", "steps-4000": "1110"}
    asked_for = plan(asked(seeds=[0]))
    for cell in asked_for:
        with cells.claim(tmp_path / f"{cell.name}.json") as save:
            assert save is not None
            save({**vars(cell), "outcomes": outcomes[cell.arm], "n": 4})
    result = summarize(tmp_path, asked_for)
    assert len(result["cells"]) == 15
    rows = {row["arm"]: row for row in result["rows"]}
    assert (rows["default"]["mean_success"], rows["default"]["of_expert"]) == (0.5, 0.5)
    assert rows["steps-4000"]["against_default"]["difference"] == pytest.approx(0.25)
    assert "against_default" not in rows["default"]
    (tmp_path / f"{asked_for[0].name}.json").unlink()
    assert {row["arm"]: row["of_expert"] for row in summarize(tmp_path, asked_for)["rows"]}["default"] is None
