"""A flowhand checkpoint behind LeRobot's interface of a policy."""

from __future__ import annotations

import shutil
from collections import deque
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig  # pyright: ignore[reportMissingImports]
from lerobot.configs.types import FeatureType, PolicyFeature  # pyright: ignore[reportMissingImports]
from lerobot.policies.pretrained import PreTrainedPolicy  # pyright: ignore[reportMissingImports]
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_STATE  # pyright: ignore[reportMissingImports]
from torch import Tensor

import policies
from flowhand.contracts.data.tasks import SOURCE, TASK, given

from .configuration_flowhand import TRAIN_WITH_FLOWHAND, FlowhandConfig

CHECKPOINT = "flowhand"  # the checkpoint's folder inside LeRobot's
FILES = ("config.json", "model.safetensors", "golden.safetensors")  # all of a checkpoint that a robot needs


class FlowhandPolicy(PreTrainedPolicy):
    """Runs what flowhand trained on LeRobot's robots and in its worlds; for training, choose flowhand itself.

    Args:
        config: what LeRobot knows of the policy.
        checkpoint: folder of the flowhand checkpoint.

    Raises:
        ValueError: no checkpoint, one that flowhand refuses, or one that does not agree with the configuration.
    """

    config_class = FlowhandConfig
    name = "flowhand"

    def __init__(self, config: FlowhandConfig, checkpoint: Path | None = None, **_: Any):
        super().__init__(config)
        if checkpoint is None:  # LeRobot asks for a new, untrained policy
            raise ValueError(TRAIN_WITH_FLOWHAND)
        self.config = config
        self.checkpoint = checkpoint
        self.policy = policies.load(checkpoint, config.device or "cpu")
        require_agreement(config, self.policy)
        self.reset()

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: FlowhandConfig | None = None, **_: Any
    ) -> FlowhandPolicy:
        """The policy of a folder that `python -m lerobot_policy_flowhand` wrote.

        LeRobot's other arguments are about downloads and lenient loading; flowhand always loads strictly.
        """
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a local folder; download it first, then give its path")
        config = config or PreTrainedConfig.from_pretrained(folder)
        return cls(config, folder / CHECKPOINT)

    def _save_pretrained(self, save_directory: Path) -> None:
        """LeRobot's configuration, and the checkpoint as it is: nothing here changes the weights."""
        self.config._save_pretrained(save_directory)
        (save_directory / CHECKPOINT).mkdir(exist_ok=True)
        for file in FILES:
            shutil.copyfile(self.checkpoint / file, save_directory / CHECKPOINT / file)

    def reset(self) -> None:
        """Forgets the episode; another one begins."""
        self._history: deque[dict[str, Tensor]] = deque(maxlen=self.config.n_obs_steps)
        self._queue: deque[Tensor] = deque()  # actions (B, A) still to execute

    def select_action(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """One action (B, A) for the observations of this control step, each (B, n); decides when the queue is empty."""
        if self._queue:
            self._see(batch)
        else:
            chunk = self.predict_action_chunk(batch, noise)
            self._queue.extend(chunk[:, : self.config.n_action_steps].unbind(1))
        return self._queue.popleft()

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """Actions (B, T, A) in physical units.

        Args:
            batch: observations of this control step, each (B, n), which join those of the steps before (the first step
                of an episode stands for all before it); or whole histories, each (B, O, n). `task`, a text or one of
                each row, tells a policy for several tasks which it is; `source` the same of its statistics.
            noise: standard normal (B, *noise_shape of the policy); None draws it from torch's generator.

        Raises:
            ValueError: an observation is missing or misshapen.
        """
        observation = self._see(batch)
        observation |= self._given(batch, next(iter(observation.values())))
        if noise is None:
            first = next(iter(observation.values()))
            noise = torch.randn(len(first), *self.policy.noise_shape, device=first.device)
        return self.policy.sample(observation, noise)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, None]:
        """The training loss of a batch with histories (B, O, n), actions (B, T, A) and `action_is_pad` (B, T)."""
        mask = ~batch["action_is_pad"]
        observation = self._features(batch)
        observation |= self._given(batch, next(iter(observation.values())))
        return self.policy.loss(policies.Batch(observation, batch[ACTION], mask)), None

    def _given(self, batch: dict[str, Any], like: Tensor) -> dict[str, Tensor]:
        """Task and source of every row, (B, O, D), for a policy that is given them."""
        features, rows = self.policy.spec.observation, []
        if not {TASK, SOURCE} & features.keys():
            return {}
        named = {name: batch.get(name) for name in (TASK, SOURCE)}
        for row in range(len(like)):
            said = {name: each if each is None or isinstance(each, str) else each[row] for name, each in named.items()}
            task = said[TASK] if TASK in features or said[TASK] in (features[SOURCE].names or ()) else None
            rows.append(given(features, task, said[SOURCE] if SOURCE in features else None))
        stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        steps = self.config.n_obs_steps
        return {n: torch.from_numpy(v).to(like.device)[:, None].expand(-1, steps, -1) for n, v in stacked.items()}

    def get_optim_params(self) -> NoReturn:
        """Raises `ValueError`: training stays with flowhand."""
        raise ValueError(TRAIN_WITH_FLOWHAND)

    def _see(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Histories (B, O, n) in flowhand's names, this step's observation being the last."""
        now = self._features(batch)
        if next(iter(now.values())).ndim == 3:
            return now
        self._history.extend([now] * (1 if self._history else self.config.n_obs_steps))
        return {name: torch.stack([step[name] for step in self._history], dim=1) for name in now}

    def _features(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The observations in flowhand's names, all (B, n) or all (B, O, n)."""
        if missing := sorted(set(self.config.keys.values()) - set(batch)):
            raise ValueError(f"the observation lacks {missing}; it has {sorted(batch)}")
        features = {name: batch[key].float() for name, key in self.config.keys.items()}
        dims = next(iter(features.values())).ndim
        for name, value in features.items():
            size = self.policy.spec.observation[name].size
            history = (self.config.n_obs_steps,) if dims == 3 else ()
            if value.ndim not in (2, 3) or value.shape[1:] != (*history, size):
                raise ValueError(
                    f"observation {self.config.keys[name]!r} has shape {tuple(value.shape)}, expected (rows, "
                    f"{size}) or (rows, {self.config.n_obs_steps}, {size}), the same for all"
                )
        return features


def default_keys(names: list[str]) -> dict[str, str]:
    """LeRobot's keys of flowhand's vectors: one of them is the robot's state, one more the environment's.

    Raises:
        ValueError: there are more, or two and none is called "state".
    """
    state = names[0] if len(names) == 1 else "state"
    others = [name for name in names if name != state]
    if state not in names or len(others) > 1:
        raise ValueError(f"which keys does LeRobot have for {names}? Give --key NAME=KEY for each")
    return {state: str(OBS_STATE)} | {name: str(OBS_ENV_STATE) for name in others}


def describe(policy: policies.Policy, keys: dict[str, str]) -> FlowhandConfig:
    """LeRobot's configuration of a flowhand policy.

    Raises:
        ValueError: a vector without key, a key without vector, or one key twice; or an image.
    """
    observation, chunk = policy.spec.recorded.observation, policy.chunk  # a task comes as LeRobot's own
    if own := sorted(observation.keys() - policy.spec.sensed.keys()):
        raise ValueError(f"LeRobot has no observation {own}, which a flowhand controller fills in; train without it")
    if set(keys) != set(observation) or len(set(keys.values())) < len(keys):
        raise ValueError(f"keys {keys} do not name each of {sorted(observation)} with a key of its own")
    if images := [name for name, feature in observation.items() if feature.dtype != "float32"]:
        raise ValueError(f"observations {images} are no vectors; this plugin has only vectors so far")
    kinds = {OBS_ENV_STATE: FeatureType.ENV}
    inputs = {
        key: PolicyFeature(type=kinds.get(key, FeatureType.STATE), shape=(observation[name].size,))
        for name, key in keys.items()
    }
    return FlowhandConfig(
        n_obs_steps=chunk.history,
        chunk_size=chunk.prediction_horizon,
        n_action_steps=chunk.execution_horizon,
        keys=keys,
        input_features=inputs,
        output_features={ACTION: PolicyFeature(type=FeatureType.ACTION, shape=policy.spec.action.shape)},
        device=policy.action_normalizer.shift.device.type,
    )


def require_agreement(config: FlowhandConfig, policy: policies.Policy) -> None:
    """Raises `ValueError` naming the first field in which LeRobot's configuration is not the checkpoint's."""
    expected = describe(policy, config.keys)
    for field in ("n_obs_steps", "chunk_size", "output_features"):
        got, wanted = getattr(config, field), getattr(expected, field)
        if got != wanted:
            raise ValueError(f"{field} is {got}, but the flowhand checkpoint has {wanted}")
    for key, feature in expected.input_features.items():
        got = (config.input_features or {}).get(key)
        if got is None or tuple(got.shape) != feature.shape:
            raise ValueError(f"input {key!r} is {got}, but the flowhand checkpoint has shape {feature.shape}")
