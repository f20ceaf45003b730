"""Small, fast policies that generate motion: what a user of a trained one needs, looked up when it is used.

    policy = flowhand.load("outputs/demo")      # a checkpoint, an export, hf://owner/name, ws://host:port
    controller = flowhand.Controller(policy)
    controller.reset(seed=0)
    action = controller.step(observation)

Nothing here imports torch or a simulator before it is needed.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .contracts.features import Spec
    from .contracts.planner import LoadedPlanner
    from .control.controller import Controller
    from .control.runtime import Runtime
    from .demos.formats import open_dataset

_HOMES = {
    "Controller": "control.controller",
    "Runtime": "control.runtime",
    "Spec": "contracts.features",
    "open_dataset": "demos.formats",
}
__all__ = ["Controller", "Runtime", "Spec", "load", "open_dataset"]

TRUSTED = {"pt2": "a program of torch", "aoti": "native code"}  # what a format of export holds that runs as it is


def load(where: Path | str, *, device: str = "cpu", trust: bool = False, threads: int = 1) -> LoadedPlanner:
    """The policy that lies there, ready to plan.

    Args:
        where: a checkpoint, the folder of a training run, an exported policy, one of these on the Hugging Face hub
            (hf://owner/name or hf://owner/name@revision), or the address of a server (ws://, wss://), whose key, if it
            wants one, stands in the environment variable FLOWHAND_API_KEY.
        device: of a checkpoint: auto (cuda if there is one) | cpu | cuda | cuda:N.
        trust: run an export that is a program; ONNX files are looked through first and need no trust.
        threads: CPU threads of a decision, for ONNX; the others take torch's.

    Raises:
        ValueError: what is wrong with it, or a format that needs trust.
        FileNotFoundError: there is nothing of the kind.
        ConnectionError, TimeoutError: the server cannot be reached.
    """
    if str(where).startswith(("ws://", "wss://")):
        import os

        from .deploy import remote

        return remote.load(str(where), os.environ.get("FLOWHAND_API_KEY"))
    if str(where).startswith("hf://"):
        from .demos import hub

        repo, revision = hub.address(str(where)) or ("", "")
        where = hub.fetched(repo, revision, kind="model")
    from flowhand.contracts.export import artifact

    if not artifact.is_export(where):
        import policies

        return policies.load(where, device)
    kind = artifact.read(where)[0].format
    if kind in TRUSTED and not trust:
        raise ValueError(
            f"{where} is an export with format={kind}, which holds {TRUSTED[kind]}: to load it is to run it. "
            "If you made it, say trust=true; format=onnx needs no trust"
        )
    if kind == "onnx":
        from .deploy import runner

        return runner.load(where, threads)
    from policies.export import runner_torch

    return runner_torch.load(where)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module 'flowhand' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
