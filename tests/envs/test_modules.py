"""Packages that register worlds: named by a person, imported here and in workers, and by nothing else."""

import sys
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from omegaconf import OmegaConf

import envs
import policies
from conf import cli
from conf.verbs.collect import CollectRoot
from flowhand.commands.collect import _meta
from flowhand.contracts import modules
from flowhand.contracts.modules import import_modules, imported_modules
from flowhand.demos.config import DataConfig
from flowhand.evaluation.rollout import rollout
from flowhand.evaluation.workers import WorkerError

PACKAGE = """
import gymnasium, numpy as np
from gymnasium.spaces import Box

class Push(gymnasium.Env):
    def __init__(self, obs_type, render_mode=None):
        self.observation_space = Box(-1, 1, (2 if obs_type == "state" else 3,))
        self.action_space = Box(-1, 1, (1,))
    def reset(self, *, seed=None, options=None):
        return np.zeros(self.observation_space.shape, np.float32), {}
    def step(self, action):
        return np.zeros(self.observation_space.shape, np.float32), 1.0, False, False, {"success": True}

gymnasium.register("own/Push-v0", Push, max_episode_steps=5)
"""
FIELDS: dict[str, Any] = {"id": "own/Push-v0", "control_dt_s": 0.1, "kwargs": {"obs_type": "state"}}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Name of a package that can be imported and has not been."""
    (tmp_path / "own_worlds.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(modules, "_imported", [])
    yield "own_worlds"
    sys.modules.pop("own_worlds", None)
    gymnasium.registry.pop("own/Push-v0", None)


class Still:
    def reset(self, lane, seed):
        pass

    def act(self, observations):
        return {lane: np.zeros(1, np.float32) for lane in observations}


def make():
    return envs.make(envs.GymnasiumConfig(**FIELDS))


def test_workers_import_them_too(package):
    with pytest.raises(
        ValueError, match=r"unknown Gymnasium id 'own/Push-v0'.*modules=\[PACKAGE\] on the command line"
    ):
        make()
    import_modules([package])
    assert make().features.observation["state"].shape == (2,)
    make_env = partial(envs.make, envs.GymnasiumConfig(**FIELDS))
    assert rollout(make_env, Still(), [1], workers="process", processes=1)[0].success


def test_arguments_stand_in_the_recipe(package):
    import_modules([package])
    recipes = [
        _meta(make(), replace(envs.GymnasiumConfig(**FIELDS), kwargs={"obs_type": kind}), DataConfig()).recipe_hash
        for kind in ("state", "pixels")
    ]
    assert recipes[0] != recipes[1]


def test_collectors_import_them_too(package):
    import_modules([package])
    with pytest.raises(WorkerError, match="has no scripted expert"):  # the worker has made the world
        rollout(partial(envs.make, envs.GymnasiumConfig(**FIELDS)), "expert", [7], workers="process", processes=1)


@pytest.mark.parametrize("name", ["no_such_package", "os;print", "", "..x", 3])
def test_what_cannot_be_imported_is_named(name):
    with pytest.raises(ValueError, match=r"modules"):
        import_modules([name])
    assert imported_modules() == []


def test_no_file_names_code(package):
    """The configuration holds what a file said, and the command line does not."""
    config = OmegaConf.structured(CollectRoot(env=envs.DetourConfig(), modules=[package]))
    for said in ([], ["env.id=x"], ["resume=modules=[own_worlds]"], ["modules.x=1"], None):
        with pytest.raises(ValueError, match="stands in a file, and only you may name code to run"):
            cli.typed(config, said)
    assert package not in sys.modules
    assert cli.typed(config, [f"modules=[{package}]"]).modules == imported_modules() == [package]


def test_the_command_line_names_them(package):
    words = ["env=gymnasium", "env.id=own/Push-v0", "env.kwargs={obs_type: pixels}", f"modules=[{package}]"]
    config = cli.compose(words)
    assert isinstance(config.env, envs.GymnasiumConfig)
    assert config.env.kwargs == {"obs_type": "pixels"}
    assert config.modules == [package] == imported_modules()


def test_a_checkpoint_asks_for_them(package):
    env = {
        "kind": "gymnasium",
        "max_steps": 0,
        "success_key": "success",
        "success_return": None,
        "task_text": "",
    } | FIELDS
    source = policies.Provenance(env, "", "", "", [], {}, "", 0, [package])
    with pytest.raises(
        ValueError, match=r"trained with modules=\[own_worlds\].*never imports by itself: give modules="
    ):
        envs.env_of(source)
    assert package not in sys.modules
    import_modules([package])
    found = envs.env_of(source)
    assert isinstance(found, envs.GymnasiumConfig)
    assert found.kwargs == {"obs_type": "state"}


def test_a_checkpoint_from_before_has_no_arguments():
    env = {"kind": "gymnasium", "id": "Pendulum-v1", "max_steps": 0, "success_key": "success", "success_return": None}
    source = policies.Provenance(env | {"task_text": "", "control_dt_s": 0.1}, "", "", "", [], {}, "", 0)
    found = envs.env_of(source)
    assert isinstance(found, envs.GymnasiumConfig)
    assert found.kwargs == {}
