"""Run by lerobot's own Python (0.6.1): a policy of lerobot decides, one question after the other over a pipe.

    python side.py FOLDER

A message is one line of JSON, and after it the bytes of its arrays in the order of its `arrays` (name, dtype, shape).
The first message tells what the policy is. Nothing of flowhand is imported.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from typing import IO, Any

import numpy as np


def send(file: IO[bytes], message: dict[str, Any], arrays: dict[str, np.ndarray] | None = None) -> None:
    """Writes a message."""
    given = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
    head = {**message, "arrays": [[name, str(array.dtype), list(array.shape)] for name, array in given.items()]}
    file.write(json.dumps(head).encode() + b"\n")
    for array in given.values():
        file.write(array.tobytes())
    file.flush()


def receive(file: IO[bytes]) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Reads a message; None where there is no more."""
    line = file.readline()
    if not line:
        return None
    head = json.loads(line)
    arrays = {}
    for name, dtype, shape in head["arrays"]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(file.read(size), dtype).reshape(shape)
    return head, arrays


class Policy:
    """The policy that lies in a folder, with lerobot's own processors."""

    def __init__(self, folder: str):
        import torch
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        self._torch = torch
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self.config = PreTrainedConfig.from_pretrained(folder)
        self.config.device = "cpu"
        self.policy = get_policy_class(self.config.type).from_pretrained(folder, config=self.config)
        self.policy.eval()
        overrides = {"device_processor": {"device": "cpu"}}
        self.before, self.after = make_pre_post_processors(
            self.config, pretrained_path=folder, preprocessor_overrides=overrides
        )

    def about(self) -> dict[str, Any]:
        """What it sees, commands and executes."""
        seen = {name: list(feature.shape) for name, feature in self.config.input_features.items()}
        (action,) = self.config.output_features.values()
        steps = int(self.config.n_action_steps)
        predicted = int(getattr(self.config, "chunk_size", steps))
        return {
            "type": self.config.type,
            "version": version("lerobot"),
            "seen": seen,
            "action": list(action.shape),
            "history": int(self.config.n_obs_steps),
            "predicted": predicted,
            "executed": min(steps, predicted),
        }

    def decide(self, histories: dict[str, np.ndarray], seed: int) -> np.ndarray:
        """The chunk (T, A) for one row's histories, each (O, *shape); all its randomness is the seed's."""
        torch, steps = self._torch, self.config.n_obs_steps
        batch: dict[str, Any] = {}
        for name, values in histories.items():
            tensor = torch.from_numpy(values.copy())
            if tensor.ndim == 4:  # pictures (O, H, W, C) of bytes
                tensor = tensor.permute(0, 3, 1, 2).float() / 255
            batch[name] = tensor[None] if steps > 1 else tensor  # one row; the policy has no history of one step
        self.policy.reset()
        torch.manual_seed(seed)
        with torch.inference_mode():
            chunk = self.after(self.policy.predict_action_chunk(self.before(batch)))
        return chunk[0].float().cpu().numpy()


def main() -> None:
    """Answers until the pipe is closed."""
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed goes to the standard error
    try:
        policy = Policy(sys.argv[1])
    except Exception as error:  # whatever lerobot raises of a folder that is none of its own
        return send(answers, {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"})
    send(answers, policy.about())
    while (message := receive(questions)) is not None:
        head, arrays = message
        try:
            rows = []
            for row, seed in enumerate(head["seeds"]):
                rows.append(policy.decide({name: values[row] for name, values in arrays.items()}, seed))
            send(answers, {}, {"chunks": np.stack(rows)})
        except Exception as error:  # of one question; the next may be another
            send(answers, {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"})
    return None


if __name__ == "__main__":
    main()
