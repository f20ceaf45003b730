"""What one decision over a screen costs: refined at once, decoded action by action, or classified.

    python -m benchmarks.screen_latency

Every decision is an exported graph (ONNX Runtime, one thread) of the recipe's policy with random weights: 64 elements,
40 words, plans of 12 actions. They are timed in turns, call by call. Decoding ends where the plan does: a graph of it
that decodes n + 1 actions, the last of them the stop, stands for plans of n actions (n for plans that fill all places).
Beside each stands the least that its matrix products would take on this machine (benchmarks/latency_floor.py).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.latency_floor import Machine, work
from benchmarks.latency_turns import take_turns
from benchmarks.result import write
from conf.cli import compose
from flowhand.contracts.features import Spec
from flowhand.contracts.screen.fields import action_feature, observation_features
from policies import Policy
from policies.export.decision import Decision
from policies.export.tracing import onnx_model

PLANS = (1, 3, 6, 12)  # actions
HORIZON = 12
SHOWN, SAID = 20, 15  # elements and words that there are
RECIPE = ["experiment=web", "env=none", "eval.episodes=0"]
SPEC = Spec(observation_features(), action_feature(), None)
# What decides, by name: the head, and what its sampling is told.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "flow-1": ("flow", {"steps": 1}),
    "flow-4": ("flow", {"steps": 4}),
    "classification": ("classification", {}),
    **{f"tokens-{n}": ("tokens", {"longest": min(n + 1, HORIZON)}) for n in PLANS},
}


def screen(rows: int = 2) -> dict[str, np.ndarray]:
    """Random screens with some elements and words."""
    random = np.random.default_rng(0)
    found = {name: np.zeros((rows, 1, *f.shape), f.dtype) for name, f in SPEC.observation.items()}
    found["elements"][:, :, :SHOWN] = random.random((rows, 1, SHOWN, SPEC.observation["elements"].shape[1]))
    found["elements"][:, :, :SHOWN, 0] = 1
    found["element_strings"][:, :, :SHOWN, :, :8] = random.integers(97, 123, (rows, 1, SHOWN, 5, 8))
    found["words"][:, :, :SAID, :6] = random.integers(97, 123, (rows, 1, SAID, 6))
    return found


def policy_of(arm: str) -> Policy:
    """The recipe's policy with random weights and this head."""
    torch.manual_seed(0)
    head, fields = ARMS[arm]
    policy = Policy(compose([*RECIPE, f"head={head}"]).policy, SPEC)
    rows = {name: torch.from_numpy(value[:, 0]) for name, value in screen().items()}
    policy.fit_normalizers(rows, torch.zeros(2, SPEC.action.size))
    with torch.no_grad():
        for p in policy.parameters():
            p.copy_(0.5 * torch.randn(p.shape) / p.shape[-1] ** 0.5)
    return policy.with_head(**fields)


def session_of(policy: Policy) -> Any:
    """The exported decision, on one thread."""
    import onnxruntime

    inputs = {f"observation.{name}": value for name, value in screen().items()}
    inputs["noise"] = np.zeros((2, *policy.noise_shape), np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(onnx_model(Decision(policy), inputs), options)


def measure(arms: list[str], calls: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each arm: percentiles, floor, and the evaluations that it stands for."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    machine, programs, rows = Machine(device), {}, []
    seen = {f"observation.{name}": value[:1] for name, value in screen().items()}
    noise = np.random.default_rng(1).standard_normal((1, HORIZON, 1000), np.float32)
    for arm in arms:
        policy = policy_of(arm)
        session = session_of(policy)
        given = {**seen, "noise": np.ascontiguousarray(noise[..., : policy.chunk_shape[1]])}
        programs[arm] = lambda session=session, given=given: session.run(None, given)
        asked = work(policy)
        floor_s, bound = machine.floor_s(asked, 1)
        about = {"parameters": sum(p.numel() for p in policy.parameters()), "operations": asked.operations}
        rows.append({"arm": arm, **about, "floor_ms": 1e3 * floor_s, "bound": bound})
    timed = take_turns(programs, device, calls, seconds)
    return [{**row, **timed[row["arm"]]} for row in rows]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each arm, at most")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rows = measure(options.arms, options.calls, options.seconds)
    for row in rows:
        print(f"{row['arm']:15s} {row['p50_ms']:7.2f} ms, at least {row['floor_ms']:.2f} ({row['bound']})")
    shape = {"elements": 64, "words": 40, "horizon": HORIZON, "shown": SHOWN, "said": SAID}
    print(write("screen_latency", {**shape, "rows": rows}, options.out, device="cpu", threads=1))


if __name__ == "__main__":
    main()
