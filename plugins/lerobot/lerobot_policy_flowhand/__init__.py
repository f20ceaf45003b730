"""A LeRobot plugin: policies that flowhand trained. Importing it makes the policy type `flowhand` known to LeRobot."""

from .configuration_flowhand import FlowhandConfig
from .modeling_flowhand import FlowhandPolicy
from .processor_flowhand import make_flowhand_pre_post_processors

__all__ = ["FlowhandConfig", "FlowhandPolicy", "make_flowhand_pre_post_processors"]
