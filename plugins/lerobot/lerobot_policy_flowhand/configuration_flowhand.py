"""What LeRobot must know of a flowhand policy before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from lerobot.configs.policies import PreTrainedConfig  # pyright: ignore[reportMissingImports]

TRAIN_WITH_FLOWHAND = (
    "LeRobot runs flowhand policies and does not train them: train with flowhand's train.py and convert the checkpoint "
    "with `python -m lerobot_policy_flowhand CHECKPOINT FOLDER`, then give --policy.path=FOLDER"
)


@PreTrainedConfig.register_subclass("flowhand")
@dataclass
class FlowhandConfig(PreTrainedConfig):
    """The config.json of a converted checkpoint. All but `n_action_steps` must agree with the checkpoint beside it."""

    n_obs_steps: int = 2  # control steps of observation
    chunk_size: int = 16  # control steps predicted
    n_action_steps: int = 2  # control steps executed before the next decision, at most chunk_size
    keys: dict[str, str] = field(default_factory=dict)  # flowhand's name of a vector: LeRobot's key of it

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(f"n_action_steps={self.n_action_steps} must lie in 1..{self.chunk_size} (chunk_size)")

    @property
    def observation_delta_indices(self) -> list[int]:
        """Steps of observation in a batch, from the current one."""
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def action_delta_indices(self) -> list[int]:
        """Steps of action in a batch, from the current one."""
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""

    def validate_features(self) -> None:
        """Raises `ValueError` unless every key is among the inputs."""
        if missing := sorted(set(self.keys.values()) - set(self.input_features or {})):
            raise ValueError(f"the inputs lack {missing}; they have {sorted(self.input_features or {})}")

    def get_optimizer_preset(self) -> NoReturn:
        """Raises `ValueError`: training stays with flowhand."""
        raise ValueError(TRAIN_WITH_FLOWHAND)

    def get_scheduler_preset(self) -> NoReturn:
        """Raises `ValueError`: training stays with flowhand."""
        raise ValueError(TRAIN_WITH_FLOWHAND)
