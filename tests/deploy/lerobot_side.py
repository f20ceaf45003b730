"""Run by test_lerobot_plugin.py in LeRobot's environment: what LeRobot makes of a converted checkpoint, as JSON.

python lerobot_side.py FOLDER QUESTIONS.npz ANSWERS.json
"""

# ruff: noqa: E402 - torchvision must not be imported before its operators are declared
# pyright: reportMissingImports=false
from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from peers_lerobot import declare_vision_operators

declare_vision_operators()

import gymnasium
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.policies.factory import make_policy, make_pre_post_processors
from lerobot.scripts import lerobot_eval
from lerobot.utils.import_utils import register_third_party_plugins

STEPS = 6


@EnvConfig.register_subclass("tiny")
@dataclass
class TinyConfig(EnvConfig):
    """A world with the vectors of tests/golden/v1."""

    task: str | None = "Tiny-v0"
    features: dict = field(
        default_factory=lambda: {
            "action": PolicyFeature(FeatureType.ACTION, (2,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (3,)),
            "environment_state": PolicyFeature(FeatureType.ENV, (2,)),
        }
    )
    features_map: dict = field(
        default_factory=lambda: {
            "action": "action",
            "agent_pos": "observation.state",
            "environment_state": "observation.environment_state",
        }
    )

    @property
    def gym_kwargs(self) -> dict:
        return {}


class Tiny(gymnasium.Env):
    """Succeeds at the last step if all the actions were those of a policy: finite, and not the same twice."""

    metadata: ClassVar[dict] = {"render_modes": ["rgb_array"], "render_fps": 10}  # pyright: ignore[reportIncompatibleVariableOverride]
    render_mode = "rgb_array"
    task = task_description = "be tiny"
    _max_episode_steps = STEPS
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    observation_space = gymnasium.spaces.Dict(
        {
            "agent_pos": gymnasium.spaces.Box(-1, 1, (3,), np.float32),
            "environment_state": gymnasium.spaces.Box(-1, 1, (2,), np.float32),
        }
    )

    def _observe(self) -> dict[str, np.ndarray]:
        draw = self.np_random.uniform
        return {"agent_pos": draw(-1, 1, 3).astype("f"), "environment_state": draw(-1, 1, 2).astype("f")}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.actions = []
        return self._observe(), {"is_success": False}

    def step(self, action):
        self.actions.append(np.array(action))
        done = len(self.actions) == STEPS
        success = done and np.isfinite(self.actions).all() and len(np.unique(self.actions, axis=0)) == STEPS
        return self._observe(), 0.0, done, False, {"is_success": bool(success)}

    def render(self):
        return np.zeros((64, 64, 3), np.uint8)


gymnasium.register("gym_tiny/Tiny-v0", lambda **_: Tiny())


def complaint(work: Callable[[], object]) -> str:
    """The message of the error that the work raises."""
    try:
        work()
    except ValueError as error:
        return str(error)
    return ""


def main() -> None:
    folder, requests, answers = map(Path, sys.argv[1:4])
    before = "flowhand" in PreTrainedConfig.get_known_choices()
    register_third_party_plugins()
    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = folder
    policy = make_policy(config, env_cfg=TinyConfig())
    preprocess, postprocess = make_pre_post_processors(config, pretrained_path=str(folder))
    with np.load(requests) as data:
        q = {name: torch.from_numpy(data[name]) for name in data.files}

    def names(state: torch.Tensor, goal: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"observation.state": state, "observation.environment_state": goal}

    chunk = policy.predict_action_chunk(preprocess(names(q["state"], q["goal"])), noise=q["noise"])
    policy.reset()
    actions = []
    for i in range(STEPS):
        batch = preprocess(names(q["states"][i], q["goals"][i]))
        actions.append(postprocess(policy.select_action(batch, noise=q["noises"][i])))
    torch.manual_seed(3)
    policy.reset()
    drawn = policy.select_action(preprocess(names(q["states"][0], q["goals"][0])))
    batch = {**names(q["state"], q["goal"]), "action": q["action"], "action_is_pad": q["padded"]}
    told = {
        "known_before_and_after": [before, "flowhand" in PreTrainedConfig.get_known_choices()],
        "type": config.type,
        "chunk": chunk.tolist(),
        "actions": torch.stack(actions).tolist(),
        "drawn": drawn.tolist(),
        "loss_is_finite": bool(torch.isfinite(policy.forward(batch)[0])),
        "untrained": complaint(lambda: make_policy(replace(config, pretrained_path=None), env_cfg=TinyConfig())),
        "optimizer": complaint(config.get_optimizer_preset),
        "history": complaint(lambda: type(policy).from_pretrained(folder, config=replace(config, n_obs_steps=3))),
        "too_long": complaint(lambda: replace(config, n_action_steps=99)),
        "lacks": complaint(lambda: policy.select_action({"observation.state": q["states"][0]})),
        "misshapen": complaint(lambda: policy.select_action(names(q["states"][0], q["states"][0]))),
    }
    policy.save_pretrained(folder.with_name("again"))
    told["saved_again"] = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.safetensors"))
    told["saves"] = sorted(
        str(p.relative_to(folder.with_name("again"))) for p in folder.with_name("again").rglob("*.safetensors")
    )
    answers.write_text(json.dumps(told))
    out = answers.with_name("eval")
    options = ["--env.type=tiny", "--eval.n_episodes=3", "--eval.batch_size=2", "--policy.device=cpu"]
    sys.argv = ["lerobot-eval", f"--policy.path={folder}", f"--output_dir={out}", "--policy.n_action_steps=3", *options]
    lerobot_eval.main()


if __name__ == "__main__":
    main()
