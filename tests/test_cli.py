"""The command line: no verb lets a key through that its configuration does not have, or loses one that it has."""

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from conf import cli, schema

VERBS = ("train", "eval", "collect", "control", "serve", "export", "calibrate", "verify")
GIVEN = {**dict.fromkeys(VERBS[3:7], ("checkpoint",)), "eval": ("checkpoint",), "verify": ("journal",)}


def told(verb, *overrides):
    """What one line says of this command line; empty if it is taken."""
    GlobalHydra.instance().clear()
    schema.register()
    given = [f"{name}=somewhere" for name in GIVEN.get(verb, ())]
    try:
        with hydra.initialize(version_base="1.3", config_path="../conf"), cli.one_line_errors():
            cli.typed(hydra.compose(verb, [*given, *overrides]))
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
        ("collect", "+demos.epsiodes=3", "unknown configuration key 'demos.epsiodes'; did you mean 'episodes'?"),
        ("calibrate", "+density.widht=3", "unknown configuration key 'density.widht'; did you mean 'width'?"),
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
