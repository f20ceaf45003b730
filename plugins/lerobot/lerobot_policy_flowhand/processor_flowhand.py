"""What LeRobot does to observations before a flowhand policy and to actions after it: no normalization of its own."""

from __future__ import annotations

from typing import Any

from lerobot.processor import (  # pyright: ignore[reportMissingImports]
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
)
from lerobot.processor.converters import (  # pyright: ignore[reportMissingImports]
    policy_action_to_transition,
    transition_to_policy_action,
)
from lerobot.utils.constants import (  # pyright: ignore[reportMissingImports]
    POLICY_POSTPROCESSOR_DEFAULT_NAME,
    POLICY_PREPROCESSOR_DEFAULT_NAME,
)

from .configuration_flowhand import FlowhandConfig


def make_flowhand_pre_post_processors(
    config: FlowhandConfig, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """The pipelines around the policy: names, batch dimension, device; and back to the CPU.

    `dataset_stats` is part of LeRobot's call and not needed: the statistics are in the checkpoint's weights.
    """
    before = [
        RenameObservationsProcessorStep(rename_map={}),
        AddBatchDimensionProcessorStep(),
        DeviceProcessorStep(device=config.device),
    ]
    return (
        PolicyProcessorPipeline[dict[str, Any], dict[str, Any]](steps=before, name=POLICY_PREPROCESSOR_DEFAULT_NAME),
        PolicyProcessorPipeline[PolicyAction, PolicyAction](
            steps=[DeviceProcessorStep(device="cpu")],
            name=POLICY_POSTPROCESSOR_DEFAULT_NAME,
            to_transition=policy_action_to_transition,
            to_output=transition_to_policy_action,
        ),
    )
