"""The command line: no verb lets a key through that its configuration does not have, or loses one that it has."""

import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from conf import cli, groups, help
from flowhand import __main__ as program_of_all
from flowhand.__main__ import main
from tests import programs

ROOT = Path(__file__).parents[1]
VERBS = [verb for verb in program_of_all.VERBS if (ROOT / "conf/verbs" / f"{verb}.py").exists()]  # composed by Hydra
GIVEN = {**dict.fromkeys(("eval", "export", "serve", "control", "calibrate"), "checkpoint"), "verify": "journal"}
GIVEN |= {"inspect": "where", "push": "where repo", "replay": "where"}
SELF_EVIDENT = {"kind"}


def told(verb, *overrides):
    """What one line says of this command line; empty if it is taken."""
    GlobalHydra.instance().clear()
    given = [f"{name}=somewhere" for name in GIVEN.get(verb, "").split()]
    try:
        with cli.one_line_errors(verb=verb):
            cli.compose([*given, *overrides], verb)
    except SystemExit as stop:
        return str(stop.code)
    return ""


@pytest.mark.parametrize("sign", ["+"])
@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_key_is_refused_by_every_verb(verb, sign):
    assert told(verb) == ""
    assert "'nonsense'" in told(verb, f"{sign}nonsense=1")
    assert "\n" not in told(verb, f"{sign}nonsense={{a: 1}}") != ""


@pytest.mark.parametrize(
    ("verb", "override", "expected"),
    [
        ("control", "+safety.velocty=[0.1]", "unknown configuration key 'safety.velocty'; did you mean 'velocity'?"),
        ("control", "++safety.velocty=[0.1]", "unknown configuration key 'safety.velocty'; did you mean 'velocity'?"),
        ("control", "safety={velocty: [0.1]}", "velocty"),
        ("control", "++safety={velocty: [0.1]}", "velocty"),
        ("train", "+eval.perturb.noise=1", "unknown configuration key 'eval.perturb.noise'"),
        ("train", "+env.tusk=reach-v3", "unknown configuration key 'env.tusk'; did you mean 'task'?"),
        ("train", "+net.widht=3", "unknown configuration key 'net.widht'; did you mean 'width'?"),
        ("collect", "+data.epsiodes=3", "unknown configuration key 'data.epsiodes'; did you mean 'episodes'?"),
        (
            "calibrate",
            "+calibration.density.widht=3",
            "unknown configuration key 'calibration.density.widht'; did you mean 'width'?",
        ),
        ("eval", "+eval.perturb.psuh=3", "unknown configuration key 'eval.perturb.psuh'; did you mean 'push'?"),
    ],
)
def test_an_unknown_key_at_any_depth_is_named_with_the_nearest(verb, override, expected):
    assert expected in told(verb, override)


@pytest.mark.parametrize("verb", ["control", "train"])
def test_nothing_is_taken_away_without_a_word(verb):
    group = {"control": "safety", "train": "eval"}[verb]
    assert f"{group} was taken away; leave out ~{group}" in told(verb, f"~{group}")
    assert told(verb, f"~{group}.nothing") != ""


def test_signs_that_change_nothing_else_are_taken():
    assert told("control", "++safety.velocity=[0.1]") == ""
    assert told("train", "++train.steps=3") == ""
    assert told("train", "experiment=demo", "env.task=reach-v3") == ""


def program(*words, cwd=ROOT, imports=False, **environment):
    """A verb in a process of its own: exit status, what it printed, and what it said of errors.

    Args:
        imports: the process imports all modules itself.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    run = ["-m", "flowhand", *words]
    if imports:
        alone = [sys.executable, *run]
        done = subprocess.run(alone, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    else:
        done = programs.run(*run, cwd=cwd, env=env)
    return done.returncode, done.stdout, done.stderr


def test_the_verbs_are_listed_without_torch_in_half_a_second():
    program_text = "import sys; sys.argv[1:] = ['--help']; import flowhand.__main__ as m; m.main(); print(*sys.modules)"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program_text], cwd=ROOT, capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 5  # 0.15 s on a quiet machine
    *lines, loaded = done.stdout.splitlines()
    assert {line.split()[0] for line in lines if line.startswith("  ")} == set(program_of_all.VERBS)
    assert not {"torch", "hydra", "numpy", "mujoco"} & set(loaded.split())


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_fits_on_a_screen_and_knows_every_setting(verb):
    groups.register(verb)
    short, whole = help.page(verb, False), help.page(verb, True)
    assert len(short.splitlines()) <= 45
    assert max(map(len, short.splitlines())) <= 120
    keys = help.keys(verb)
    assert all(f"\n  {key}=" in whole for key in keys)
    assert set(import_module(f"conf.verbs.{verb}").MATTER) <= set(keys)
    assert "  execution.mode=receding_horizon  receding_horizon | temporal_ensembling" in whole or verb in (
        *("check", "collect", "convert", "export", "inspect", "push", "replay", "serve", "verify"),
    )


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_says_what_it_means(verb):
    groups.register(verb)
    found = help.settings(groups.root(verb), groups.choices(verb))
    silent = [key for key, _, comment in found if not comment and key.rpartition(".")[2] not in SELF_EVIDENT]
    assert silent == []


def test_the_help_follows_the_choice_of_a_component():
    assert "head.sigma_max=" in help.page("train", True, ["head=edm"])
    assert "head.sigma_max=" not in help.page("train", True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "head=diffussion"], "unknown head 'diffussion'; did you mean diffusion"),
        (["train", "batch_size=64"], "unknown configuration key 'batch_size'; did you mean 'train.batch_size'?"),
        (["train", "train.lr=1"], "unknown configuration key 'train.lr'; did you mean 'train.learning_rate'?"),
        (["train", "--env.task=x"], "'--env.task=x' is no option; a setting is written env.task=VALUE"),
        (["eval", "checkpoint=x", "env.task=reach-v3"], "env.task needs a choice of env before it; env=: aloha"),
        (["tarin"], "unknown verb 'tarin'; did you mean train"),
        (["export"], "which checkpoint? Give checkpoint=PATH"),
        (["verify"], "which journal? Give journal=PATH"),
    ],
)
def test_a_mistake_is_told_with_the_nearest_that_exists(words, expected, monkeypatch):
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", ["flowhand", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert str(stop.value).startswith(f"error: {expected}")
    assert "\n" not in str(stop.value)


def test_the_shell_completes_verbs_choices_and_settings():
    found = {line: program("--complete", COMP_LINE=line)[1].split() for line in ("flowhand e", "flowhand train head=e")}
    assert found == {"flowhand e": ["eval", "export"], "flowhand train head=e": ["head=edm"]}
    assert "head.steps=" in program("--complete", COMP_LINE="flowhand train head.st")[1].split()
    assert "complete -o nospace -o default -F _flowhand flowhand" in program("--completion")[1]


def test_folders_of_the_user_neither_break_nor_shadow_a_verb(tmp_path):
    for name in ("conf", "envs", "policies"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not this one')")
    (tmp_path / "train.py").write_text("raise RuntimeError('not this one')")
    (tmp_path / "conf" / "train.yaml").write_text("nonsense: 1")
    (tmp_path / "mine.py").write_text("import envs\nprint('mine', *sorted(envs.ENVS))")
    status, out, errors = program("train", "modules=[mine]", "--cfg", "job", cwd=tmp_path, imports=True)
    assert (status, errors) == (0, "")
    assert out.startswith("mine aloha detour gymnasium metaworld pusht so101 web\n")
    assert "nonsense" not in out


def test_recipes_of_the_user_come_from_a_folder(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 41")
    status, out, errors = program("train", "--config-dir", str(tmp_path), "experiment=mine", "--cfg", "job")
    assert (status, errors) == (0, "")
    assert "\nseed: 41\n" in out


HEAD = """
from dataclasses import dataclass
from policies.heads import HEADS
from policies.heads.regression import RegressionConfig, RegressionHead

@dataclass
class MineConfig(RegressionConfig):
    kind: str = "mine"
    strength: float = 2.0  # of nothing

HEADS["mine"] = (MineConfig, RegressionHead)
"""


def test_a_package_of_the_user_brings_a_head(tmp_path):
    (tmp_path / "mine.py").write_text(HEAD)
    tiny = ["env=detour", "head=mine", "train.steps=2", "train.batch_size=8", "data.episodes=1", "eval.episodes=0"]
    tiny += ["wandb.mode=disabled", "encoder.width=8", "net.width=8", "train.threads=1", "out=run"]
    status, _, errors = program("train", "modules=[mine]", *tiny, cwd=tmp_path)
    assert status == 0, errors
    brief = ["checkpoint=run/checkpoint", "eval.episodes=1", "eval.videos=0", "eval.workers=inline"]
    brief += ["eval.expert=false", "wandb.mode=disabled"]
    (refused, _, told), (status, *_) = (
        program("eval", *brief, *words, cwd=tmp_path) for words in ([], ["modules=[mine]"])
    )
    assert (refused, status) == (1, 0)
    assert "policy.head.kind is 'mine'; choices: " in told
    assert "modules=[mine]" in told
    assert "mine" in program("train", "modules=[mine]", "head=mine", "--help", cwd=tmp_path)[1]


def test_a_robot_needs_neither_torch_nor_a_simulator_to_compose_its_verbs():
    text = "import sys\nfor name in ('torch', 'mujoco', 'gymnasium', 'safetensors'): sys.modules[name] = None\n"
    text += "from flowhand.__main__ import run\nrun(sys.argv[1], sys.argv[2:])"
    for verb, given in (("control", "checkpoint"), ("verify", "journal")):
        words = [sys.executable, "-c", text, verb, f"{given}=nowhere"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.stderr.startswith("error: ")
        assert "nowhere" in done.stderr
