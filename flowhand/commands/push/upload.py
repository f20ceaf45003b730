"""Puts a policy or demonstrations on the Hugging Face hub: `flowhand push where=outputs/demo repo=me/demo`."""

from __future__ import annotations

import json
import os
from pathlib import Path

from omegaconf import DictConfig

from conf import cli
from conf.verbs.push import PushRoot
from flowhand.contracts.export import artifact
from flowhand.demos import hub

POLICY = ("config.json", "model.safetensors", "golden.safetensors")  # of a checkpoint, without what only training needs
MONITOR = ("monitor/config.json", "monitor/monitor.safetensors")
LEROBOT = ("meta", "data", "videos")  # folders of a data set; what else lies there is not part of it
STORE = "meta.json"


def push(config: PushRoot) -> str:
    """Uploads what lies there as one commit; the line that says so.

    Raises:
        ValueError: it is nothing that the hub is to have, or the hub does not take it.
    """
    if not hub.is_repo_id(config.repo):
        raise ValueError(f"repo={config.repo} is no name on the hub; expected OWNER/NAME")
    folder = Path(config.where)
    folder = folder / "checkpoint" if (folder / "checkpoint" / POLICY[0]).is_file() else folder
    kind, files, tag = contents(folder)
    message = config.message or f"{folder.name}: {len(files)} files"
    options = {"private": config.private, "tag": tag, "endpoint": config.endpoint or None}
    commit = hub.pushed(folder, config.repo, kind, files, message=message, **options)
    size = sum((folder / name).stat().st_size for name in files)
    use = "flowhand.load" if kind == "model" else "data.path="
    return f"{len(files)} files, {size / 1e6:.1f} MB, are at {config.repo}@{commit}; {use} takes hf://{config.repo}@{commit}"


def contents(folder: Path) -> tuple[str, list[str], str]:
    """Kind of repository, files and tag of what lies in a folder.

    Raises:
        ValueError: it is neither a policy nor a data set, or one that is not whole.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give that of a checkpoint, an export or a data set")
    if artifact.is_export(folder):
        artifact.read(folder)  # that it is whole
        return "model", _below(folder, [""]), ""
    if all((folder / name).is_file() for name in POLICY):
        return "model", [name for name in (*POLICY, *MONITOR) if (folder / name).is_file()], ""
    from flowhand.demos.formats import open_dataset

    if (folder / "meta" / "info.json").is_file():
        data = open_dataset(folder)
        # Lerobot asks the hub for the tag of the format's version, and refuses a data set without.
        version = str(json.loads((folder / "meta" / "info.json").read_text()).get("codebase_version", ""))
        if not len(data.lengths):
            raise ValueError(f"{folder} has no episodes")
        return "dataset", _below(folder, LEROBOT), version
    if (folder / STORE).is_file():
        open_dataset(folder)
        return "dataset", _below(folder, [""]), ""
    raise ValueError(f"{folder} is no checkpoint, no export and no data set of LeRobot or flowhand")


def _below(folder: Path, parts: tuple[str, ...] | list[str]) -> list[str]:
    """The files below parts of a folder; what is hidden is left out, and a link is not followed out of it."""
    found = []
    for part in parts:
        for path, folders, files in os.walk(folder / part):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found += [Path(path, name) for name in sorted(files) if not name.startswith(".")]
    if outside := [file for file in found if not file.resolve().is_relative_to(folder.resolve())]:
        raise ValueError(f"{outside[0]} is a link to a place outside of {folder}; copy the file")
    return [file.relative_to(folder).as_posix() for file in found]


def run(cfg: DictConfig) -> None:
    """Pushes what the configuration says."""
    for name in ("where", "repo"):
        cli.require_given(cfg, name)
    print(push(cli.typed(cfg)))


def main() -> None:
    """Entry point."""
    cli.program("push", run)
