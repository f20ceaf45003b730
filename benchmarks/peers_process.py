"""Another system beside ours: its own virtual environment, its own process, one JSON line asked and one answered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowhand.contracts.features import ChunkConfig, Spec
from flowhand.contracts.planner import NOTHING, PrefixArrays

# The newest release for every Python from 3.11 on (0.5 and later ask for 3.12). It pins torch < 2.11, and a comparison
# wants one torch on both sides; so it is installed without its dependencies, and then with those that a policy needs.
LEROBOT = "lerobot==0.4.4"
NEEDS = (
    "accelerate>=1.10,<2",
    "av>=15,<16",
    "datasets>=4,<5",
    "deepdiff>=7.0.1,<9",
    "diffusers>=0.27.2,<0.36",
    "draccus==0.10.0",
    "einops>=0.8,<0.9",
    "gymnasium>=1.1.1,<2",
    "huggingface-hub>=0.34.2,<0.36",
    "imageio[ffmpeg]>=2.34,<3",
    "jsonlines>=4,<5",
    "packaging>=24.2,<26",
    "pyserial>=3.5,<4",
    "termcolor>=2.4,<4",
    "jaxtyping>=0.3",  # flowhand's own, so that its plugin for LeRobot can be tried in this environment
)


class PeerError(RuntimeError):
    """The other process reported an error or died; the message has its traceback or the end of its log."""


def install(folder: Path) -> Path:
    """The Python of the environment at `folder`, made and filled unless that is done already.

    The same torch as here comes from where pip gets it; on Linux without a CPU wheel at hand that is the CUDA build.
    """
    release = torch.__version__.partition("+")[0]
    _, minor, patch = release.split(".")
    torchvision = f"torchvision==0.{int(minor) + 15}.{patch}"  # released together since torch 2.0 and torchvision 0.15
    steps = [[f"torch=={release}", *NEEDS], ["--no-deps", LEROBOT, torchvision]]
    python, stamp = folder / "bin" / "python", folder / "installed.json"
    if stamp.is_file() and json.loads(stamp.read_text()) == steps:
        return python
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    for step in steps:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *step], check=True)
    stamp.write_text(json.dumps(steps))
    return python


class Peer:
    """A program that answers requests on its standard input; between them it waits and takes no processor time.

    Args:
        command: what to run. It says one line by itself as soon as it is ready.
        log: file for what the program and its libraries print.

    Raises:
        PeerError: the program does not come up.
    """

    def __init__(self, command: Sequence[str | Path], log: Path):
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # nothing here is to be fetched
        with log.open("w") as sink:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, text=True, env=os.environ | offline
            )
        try:
            self.hello = self._answer()
        except PeerError:
            self.close()
            raise

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one question; `PeerError` if it is an error or none."""
        assert self.process.stdin
        with suppress(BrokenPipeError):  # the program has died, and what it leaves behind says more
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            raise PeerError(f"the peer ended with status {status}; {self.log} ends: {self.log.read_text()[-2000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the program."""
        assert self.process.stdin
        assert self.process.stdout
        with suppress(BrokenPipeError):  # the end of its input is its sign to stop; it may have stopped already
            self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class PeerPlanner:
    """Lets our `Controller` run a peer's policy, so that both are evaluated by the same code (`policies.Planner`)."""

    peer: Peer
    spec: Spec
    chunk: ChunkConfig
    noise_shape: tuple[int, ...]  # of one decision

    @property
    def continues(self) -> Mapping[str, int]:
        """It knows no prefix."""
        return NOTHING

    def plan(
        self, observation: Mapping[str, np.ndarray], noise: np.ndarray, prefix: PrefixArrays | None = None
    ) -> np.ndarray:
        """Chunks (B, T, A) in physical units from histories, each (B, O, *shape), and noise (B, *noise_shape)."""
        told = {name: value.tolist() for name, value in observation.items()}
        return np.array(self.peer.ask("decide", observation=told, noise=noise.tolist())["actions"], np.float32)
