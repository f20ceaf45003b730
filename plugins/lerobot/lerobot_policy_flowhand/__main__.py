"""A flowhand checkpoint to a folder that LeRobot loads: `python -m lerobot_policy_flowhand CHECKPOINT FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path

import policies

from .modeling_flowhand import FlowhandPolicy, default_keys, describe
from .processor_flowhand import make_flowhand_pre_post_processors


def convert(checkpoint: Path, folder: Path, keys: dict[str, str] | None = None) -> None:
    """Writes the folder: LeRobot's configuration and processors, and the checkpoint unchanged.

    Args:
        checkpoint: of flowhand.
        folder: to write; made if it is not there.
        keys: flowhand's name of each vector to LeRobot's key; None: see `default_keys`.
    """
    policy = policies.load(checkpoint)
    config = describe(policy, keys or default_keys(list(policy.spec.observation)))
    folder.mkdir(parents=True, exist_ok=True)
    FlowhandPolicy(config, checkpoint).save_pretrained(folder)
    for pipeline in make_flowhand_pre_post_processors(config):
        pipeline.save_pretrained(folder)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m lerobot_policy_flowhand", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder that train.py wrote")
    parser.add_argument("folder", type=Path, help="folder to write, for --policy.path")
    parser.add_argument("--key", action="append", default=[], metavar="NAME=KEY", help="LeRobot's key of a vector")
    arguments = parser.parse_args()
    if wrong := [pair for pair in arguments.key if "=" not in pair]:
        parser.error(f"--key {wrong[0]} is not NAME=KEY")
    try:
        convert(arguments.checkpoint, arguments.folder, dict(pair.split("=", 1) for pair in arguments.key))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
