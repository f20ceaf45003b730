"""A flowhand checkpoint in the real LeRobot: found as a plugin, loaded by its factory, and the same actions as here.

LeRobot lives in the environment that `python -m benchmarks.peers` makes; where there is none, this file is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import policies

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "v1"
VENV = ROOT / "outputs" / "peers" / "venv"
MAKE = "python -c 'from benchmarks.peers_process import install; from pathlib import Path; install(Path(\"{}\"))'"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (VENV / "installed.json").is_file(), reason=f"no LeRobot; {MAKE.format(VENV.relative_to(ROOT))} installs it"
    ),
]


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def requests():
    """Histories of four robots and noise for them; and six control steps of three robots with noise for each step."""
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.standard_normal(shape, np.float32)

    one_decision = {"state": normal(4, 2, 3), "goal": normal(4, 2, 2), "noise": normal(4, 4, 2)}
    episode = {"states": normal(6, 3, 3), "goals": normal(6, 3, 2), "noises": normal(6, 3, 4, 2)}
    return {**one_decision, **episode, "action": normal(4, 4, 2), "padded": np.zeros((4, 4), bool)}


@pytest.fixture(scope="module")
def told(tmp_path_factory, requests):
    """What LeRobot says, with both distributions installed beside it as wheels."""
    folder = tmp_path_factory.mktemp("lerobot")
    site, python = folder / "site", VENV / "bin" / "python"
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", site]
    run(sys.executable, "-m", "pip", "install", *options, ROOT, ROOT / "plugins" / "lerobot")
    np.savez(folder / "requests.npz", allow_pickle=False, **requests)
    environment = {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "HF_LEROBOT_HOME": str(folder / "home")}
    declared = "import sys; sys.path.append(sys.argv.pop(1)); import peers_lerobot as p; p.declare_vision_operators()"
    convert = f"{declared}; import runpy; runpy.run_module('lerobot_policy_flowhand', run_name='__main__')"
    run(python, "-P", "-c", convert, ROOT / "benchmarks", GOLDEN, folder / "converted", **environment)
    side = Path(__file__).with_name("lerobot_side.py")
    run(python, "-P", side, folder / "converted", folder / "requests.npz", folder / "answers.json", **environment)
    answers = json.loads((folder / "answers.json").read_text())
    return {**answers, "eval": json.loads((folder / "eval" / "eval_info.json").read_text())}


def sample(observation, noise):
    tensors = {name: torch.from_numpy(value) for name, value in observation.items()}
    with torch.no_grad():
        return policies.load(GOLDEN).sample(tensors, torch.from_numpy(noise)).numpy()


def test_lerobot_finds_the_plugin_by_itself(told):
    assert told["known_before_and_after"] == [False, True]
    assert told["type"] == "flowhand"


def test_the_chunk_is_that_of_flowhand(told, requests):
    expected = sample({name: requests[name] for name in ("state", "goal")}, requests["noise"])
    assert expected.std() > 0.01
    np.testing.assert_allclose(np.array(told["chunk"]), expected, rtol=0, atol=1e-6)


def test_an_episode_is_that_of_receding_horizon_control(told, requests):
    """Two actions per decision, the checkpoint's own execution horizon; before the first step it repeats."""
    for decided in (0, 2, 4):
        steps = [max(decided - 1, 0), decided]
        seen = {"state": requests["states"][steps], "goal": requests["goals"][steps]}
        histories = {name: np.ascontiguousarray(value.swapaxes(0, 1)) for name, value in seen.items()}
        chunk = sample(histories, requests["noises"][decided])
        for ahead in (0, 1):
            np.testing.assert_allclose(told["actions"][decided + ahead], chunk[:, ahead], rtol=0, atol=1e-6)


def test_without_noise_it_comes_from_the_generator_of_torch(told, requests):
    noise = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(3)).numpy()
    seen = {"state": requests["states"][[0, 0]].swapaxes(0, 1), "goal": requests["goals"][[0, 0]].swapaxes(0, 1)}
    chunk = sample({name: np.ascontiguousarray(value) for name, value in seen.items()}, noise)
    np.testing.assert_allclose(told["drawn"], chunk[:, 0], rtol=0, atol=1e-6)


def test_the_evaluation_of_lerobot_runs_it(told):
    assert told["eval"]["overall"]["n_episodes"] == 3
    assert told["eval"]["overall"]["pc_success"] == 100.0


def test_what_is_saved_is_the_checkpoint(told):
    assert told["saves"] == told["saved_again"] == ["flowhand/golden.safetensors", "flowhand/model.safetensors"]
    assert told["loss_is_finite"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("untrained", "train with flowhand's train.py and convert"),
        ("optimizer", "LeRobot runs flowhand policies and does not train them"),
        ("history", "n_obs_steps is 3, but the flowhand checkpoint has 2"),
        ("too_long", "n_action_steps=99 must lie in 1..4"),
        ("lacks", "the observation lacks ['observation.environment_state']"),
        ("misshapen", "'observation.environment_state' has shape (3, 3), expected (rows, 2) or (rows, 2, 2)"),
    ],
)
def test_what_does_not_fit_is_said(told, case, message):
    assert message in told[case]
