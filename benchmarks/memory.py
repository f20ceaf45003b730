"""The largest policy that one GPU can train: its memory, computed from weights, optimizer, average and activations.

    python -m benchmarks.memory

Of each weight a training holds 20 bytes: the weight, its gradient, two moments of AdamW and its average, all in fp32;
2 more with bf16 (autocast keeps a copy for the backward pass), and 4 where several processes sum gradients in a buffer.
What the backward pass needs of each row of a batch is measured on a CPU, as the bytes of the tensors that autograd
keeps, at four sizes of the net; it is linear in the width and in the number of blocks, and a fifth size is held
against it. Nothing here was measured on a GPU: its allocator, cuBLAS and the context take about 2 GB more, for which a
tenth of the card is left free, and attention by fused kernels keeps less than on a CPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.result import write
from conf.cli import compose
from flowhand.contracts.features import Feature, Spec
from policies.batch import Batch
from policies.policy import Policy

CARDS = {"24 GB": 24e9, "80 GB": 80e9}
FREE = 0.1  # of a card
WEIGHT_BYTES, BF16_BYTES, BUFFER_BYTES = 20, 2, 4
BATCH = 256
BLOCK_EVERY = 64  # of the width: one block for each 64
SIZES, HELD = ((128, 2), (128, 4), (256, 2), (256, 4)), (384, 6)
STATE, ACTION = 39, 4


def policy_of(net: str, width: int, blocks: int, device: str = "cpu") -> Policy:
    """A policy of that size from states, its statistics those of nothing."""
    heads = [f"net.heads={width // 64}"] if net == "transformer" else []
    words = [f"net={net}", f"net.width={width}", f"net.blocks={blocks}", f"encoder.width={width}", *heads]
    spec = Spec({"state": Feature((STATE,), "float32", "")}, Feature((ACTION,), "float32", ""), 0.05)
    with torch.device(device):
        return Policy(compose([*words, "env=none"]).policy, spec)


def weights(net: str, width: int, blocks: int) -> int:
    """How many numbers it learns; no memory is taken for them."""
    return sum(parameter.numel() for parameter in policy_of(net, width, blocks, "meta").parameters())


def kept_bytes(net: str, width: int, blocks: int, bf16: bool) -> float:
    """Bytes that autograd keeps for the backward pass of one more row."""
    policy = policy_of(net, width, blocks)
    own = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    found = []
    for rows in (8, 16):
        storages: dict[int, tuple[int, Tensor]] = {}

        def pack(tensor: Tensor, storages: dict[int, tuple[int, Tensor]] = storages) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no other gets its place
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            loss = policy.loss(batch_of(policy, rows), torch.Generator().manual_seed(0))
        found.append(sum(size for size, _ in storages.values()))
        del loss
    return (found[1] - found[0]) / 8


def batch_of(policy: Policy, rows: int) -> Batch:
    """Random windows."""
    chunk = policy.chunk
    action = torch.randn(rows, chunk.prediction_horizon, ACTION)
    mask = torch.ones(rows, chunk.prediction_horizon, dtype=torch.bool)
    return Batch({"state": torch.randn(rows, chunk.history, STATE)}, action, mask)


class Law:
    """Bytes of a row by width and number of blocks: a + b width + c blocks + d width blocks."""

    def __init__(self, net: str, bf16: bool):
        self.net, self.bf16 = net, bf16
        measured = [kept_bytes(net, *size, bf16) for size in SIZES]
        self.terms = np.linalg.solve([_terms(*size) for size in SIZES], measured)

    def __call__(self, width: int, blocks: int) -> float:
        """Bytes of a row."""
        return float(np.dot(_terms(width, blocks), self.terms))


def _terms(width: int, blocks: int) -> list[float]:
    return [1, width, blocks, width * blocks]


def need(law: Law, width: int, blocks: int, batch: int, shared: bool) -> float:
    """Bytes of a training on one card."""
    each = WEIGHT_BYTES + BF16_BYTES * law.bf16 + BUFFER_BYTES * shared
    return each * weights(law.net, width, blocks) + batch * law(width, blocks)


def largest(law: Law, card: float, batch: int, shared: bool) -> dict[str, Any]:
    """The widest net that fits, with a block for each 64 of its width."""
    width = BLOCK_EVERY
    while need(law, width + BLOCK_EVERY, width // BLOCK_EVERY + 1, batch, shared) <= (1 - FREE) * card:
        width += BLOCK_EVERY
    blocks = width // BLOCK_EVERY
    return {
        "width": width,
        "blocks": blocks,
        "parameters": weights(law.net, width, blocks),
        "gb_of_weights": (WEIGHT_BYTES + BF16_BYTES * law.bf16 + BUFFER_BYTES * shared)
        * weights(law.net, width, blocks)
        / 1e9,
        "gb_of_activations": batch * law(width, blocks) / 1e9,
    }


def measured() -> list[dict[str, Any]]:
    """A row for each net and card."""
    found = []
    for net in ("mlp", "transformer"):
        law = Law(net, bf16=True)
        error = law(*HELD) / kept_bytes(net, *HELD, True) - 1
        for name, size in CARDS.items():
            row = {"net": net, "card": name, "batch": BATCH, "law_errs_by": error}
            found.append({**row, **largest(law, size, BATCH, shared=False)})
            print(found[-1], flush=True)
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file, if not the usual one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    content = {"weight_bytes": WEIGHT_BYTES, "bf16_bytes": BF16_BYTES, "free": FREE, "largest": measured()}
    print(write("memory", content, arguments.out, device="cpu", threads=1))


if __name__ == "__main__":
    main()
