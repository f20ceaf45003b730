"""What a sampler makes of two ways to do it: the spread within a way, the shares of the ways, the bias of the mean.

    python -m benchmarks.spread                 run what is missing, then write the result file and docs/spread.png
    python -m benchmarks.spread --summary       only write them from the finished cells
    python -m benchmarks.spread --exact         only the exact model, which takes no training

The data are chunks of 4 steps and 2 numbers, in 0.3 of all cases near +1 and else near -1 in every number, each number
normally distributed about its way with a spread of .05, .1 or .3. Every head with every prediction and sampler draws
5,000 chunks at several numbers of evaluations: from the exact model, where that has a closed form, and from nets (an
mlp of width 128, 4,000 steps of 256 chunks), three training seeds each. A cell is one spread with one trained head, or
with one exact one. Finished cells are kept below --cells; start the command once per core that you want to give it.

    ratio      root mean square distance from the nearer way, over the spread
    share      of the first way (0.3)
    bias       of the mean of all numbers (-0.4)
    between    share of the chunks whose numbers are further from the nearer way than half of the way to the other
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import cells
from benchmarks.result import write
from policies import EMA
from policies.conditioning import Conditioning
from policies.generation.paths import preconditioned_target
from policies.heads import HEADS
from policies.heads.base import Head
from policies.nets import NETS
from policies.nets.base import Modulation, Net
from policies.nets.mlp import MLPConfig

SHAPE = (4, 2)
SHARE = 0.3  # of the way at +1; the other is at -1
SPREADS = (0.05, 0.1, 0.3)
SEEDS = (0, 1, 2)
EVALUATIONS = (1, 2, 4, 6, 8, 10)
SAMPLES = 5_000
STEPS = 4000  # of the training
BATCH = 256
PICTURE = Path("docs/spread.png")
LOG_NORMAL = {"prediction": "preconditioned", "time": "log_normal"}
UNGUARDED = {**LOG_NORMAL, "uniform_share": 0.0}
# How a head samples, by the name of the sampler, and its fields for K evaluations.
FLOW: dict[str, dict[str, Any]] = {
    "euler": {"solver": "euler"},
    "euler tabulated": {"solver": "euler", "grid": "tabulated"},
    "multistep uniform": {"solver": "multistep"},
    "multistep power": {"solver": "multistep", "grid": "power"},
    "multistep tabulated": {"solver": "multistep", "grid": "tabulated"},
}
DIFFUSION: dict[str, dict[str, Any]] = {
    "ddim": {"sampler": "ddim"},
    "multistep trailing": {"sampler": "multistep"},
    "multistep tabulated": {"sampler": "multistep", "spacing": "tabulated"},
}
SAMPLERS = {"flow": FLOW, "diffusion": DIFFUSION}
# Name: the head, and what is trained.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "flow data": ("flow", {}),
    "flow data, uniform": ("flow", {"time": "uniform"}),
    "flow velocity": ("flow", {"prediction": "velocity", "time": "uniform"}),
    "flow preconditioned": ("flow", LOG_NORMAL),
    "flow preconditioned, no guard": ("flow", UNGUARDED),
    "flow preconditioned, log_mean -0.5": ("flow", {**LOG_NORMAL, "log_mean": -0.5}),
    "diffusion data": ("diffusion", {}),
    "diffusion preconditioned": ("diffusion", LOG_NORMAL),
    "edm": ("edm", {}),
    "edm, log_mean -1.2": ("edm", {"log_mean": -1.2, "uniform_share": 0.1}),
    **{kind: (kind, {}) for kind in ("regression", "mip", "shortcut", "mean_flow", "consistency", "drift")},
}
EXACT = ("flow data", "diffusion data", "edm")  # one of each path; with the exact model predictions are the same
PICTURED = (
    ("flow data", "euler"),
    ("flow velocity", "euler"),
    ("flow preconditioned", "euler"),
    ("flow preconditioned", "multistep tabulated"),
    ("diffusion data", "ddim"),
    ("diffusion preconditioned", "multistep tabulated"),
)


@dataclass(frozen=True)
class Cell:
    """One head for one spread, trained or exact."""

    arm: str
    spread: float
    seed: int | None  # of the training; None: the exact model

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.arm.replace(' ', '_')}-{self.spread}-{'exact' if self.seed is None else self.seed}"


PLAN = [
    *(Cell(arm, spread, None) for arm in EXACT for spread in SPREADS),
    *(Cell(arm, spread, seed) for seed in SEEDS for arm in ARMS for spread in SPREADS),
]


class ExactNet(Net):
    """The answer of the best net for the two ways, whatever the head asks for."""

    def __init__(self, head: Head, spread: float):
        super().__init__()
        self.head, self.spread = head, spread

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        """The times."""
        return Modulation(t[..., None].double())

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        """What the head asks for, of the two ways."""
        config: Any = self.head.config
        c, x = self.head.coefficients(modulation.timed[..., None]), x_BTA.double()
        if self.head.preconditioned:
            x = x * (c.alpha**2 * config.sigma_data**2 + c.sigma**2).sqrt()
        total = c.alpha**2 * self.spread**2 + c.sigma**2
        # Odds of the first way: the distances differ by 4 alpha x in every number, since the ways are +1 and -1.
        odds = np.log(SHARE / (1 - SHARE)) + (2 * c.alpha * x / total).sum((1, 2), keepdim=True)
        way = torch.tanh(odds / 2)
        away = (x - c.alpha * way) / total
        data = way + c.alpha * self.spread**2 * away
        if not self.head.preconditioned:
            return data.to(x_BTA.dtype)
        return preconditioned_target(data, (x - c.alpha * data) / c.sigma, c, config.sigma_data).to(x_BTA.dtype)


def draw(rows: int, spread: float, generator: torch.Generator) -> Tensor:
    """Chunks (rows, 4, 2) of the two ways."""
    way = torch.where(torch.rand((rows, 1, 1), generator=generator) < SHARE, 1.0, -1.0)
    return way + spread * torch.randn((rows, *SHAPE), generator=generator)


def trained(cell: Cell) -> tuple[Head, Net]:
    """The averaged head and net after the training."""
    kind, options = ARMS[cell.arm]
    torch.manual_seed(cell.seed or 0)
    net, head = NETS["mlp"][1](MLPConfig(width=128), SHAPE, 1), HEADS[kind][1](HEADS[kind][0](**options), 1)
    both = nn.ModuleList([head, net])
    average, generator = EMA(both, 0.995), torch.Generator().manual_seed(cell.seed or 0)
    optimizer = torch.optim.AdamW(both.parameters(), 2e-3, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    cond, mask = torch.ones(BATCH, 1), torch.ones(BATCH, SHAPE[0], dtype=torch.bool)
    for _ in range(STEPS):
        optimizer.zero_grad()
        head.loss(net, draw(BATCH, cell.spread, generator), Conditioning(cond), mask, generator).backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update()
    averaged_head, averaged_net = average.module
    assert isinstance(averaged_head, Head)
    assert isinstance(averaged_net, Net)
    return averaged_head, averaged_net


def settings(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of samplers with the fields of the head for each number of evaluations."""
    if kind == "edm":
        yield from (("heun", {"steps": (k + 1) // 2}) for k in EVALUATIONS if k % 2 or k > 2)
    elif kind == "shortcut":
        yield from (("jumps", {"steps": k}) for k in (1, 2, 4, 8))
    elif "steps" in HEADS[kind][0].sampling:
        for name, fields in SAMPLERS.get(kind, {"jumps": {}}).items():
            yield from ((name, {**fields, "steps": k}) for k in EVALUATIONS)
    else:
        yield "one", {}


@torch.no_grad()
def measure(samples: Tensor, spread: float) -> dict[str, float]:
    """What is told of chunks (N, 4, 2)."""
    way = torch.where(samples.mean((1, 2), keepdim=True) > 0, 1.0, -1.0)
    away = samples - way
    rms = away.square().mean((1, 2)).sqrt()
    return {
        "ratio": float(away.square().mean().sqrt()) / spread,
        "share": float((way > 0).float().mean()),
        "bias": float(samples.mean()) - (2 * SHARE - 1),
        "between": float((rms > 0.5).float().mean()),
    }


def run_cell(cell: Cell) -> dict[str, Any]:
    """Trains, where there is something to train, and samples in every way."""
    torch.set_num_threads(1)
    kind, options = ARMS[cell.arm]
    config, head_class = HEADS[kind]
    head, net = (None, None) if cell.seed is None else trained(cell)
    generator, rows = torch.Generator().manual_seed(1), []
    for name, fields in settings(kind):
        sampler = head_class(config(**{**options, **fields}), 1)
        if head is not None:
            sampler.load_state_dict(head.state_dict())
        noise = torch.randn((SAMPLES, *sampler.noise_shape(SHAPE)), generator=generator)
        with torch.no_grad():
            samples = sampler.sample(net or ExactNet(sampler, cell.spread), noise, Conditioning(torch.ones(SAMPLES, 1)))
        rows.append({"sampler": name, "evaluations": sampler.evaluations, **measure(samples, cell.spread)})
    return {**asdict(cell), "rows": rows}


def sweep(folder: Path, plan: list[Cell]) -> None:
    """Runs every cell that is not finished and that no other process is at."""
    for cell in plan:
        with cells.claim(folder / f"{cell.name}.json") as save:
            if save is not None:
                save(run_cell(cell))
                print(cell.name, flush=True)


def summarize(folder: Path) -> dict[str, Any]:
    """The finished cells, and a table: means over the seeds with the largest and least, per spread."""
    paths = [folder / f"{cell.name}.json" for cell in PLAN]
    finished = [json.loads(path.read_text()) for path in paths if path.exists()]
    groups: dict[tuple[Any, ...], list[dict[str, float]]] = {}
    for cell in finished:
        for row in cell["rows"]:
            key = (cell["arm"], cell["seed"] is None, row["sampler"], row["evaluations"], cell["spread"])
            groups.setdefault(key, []).append(row)
    table = []
    for (arm, exact, sampler, evaluations, spread), rows in groups.items():
        told = {"arm": arm, "exact": exact, "sampler": sampler, "evaluations": evaluations, "spread": spread}
        for name in ("ratio", "share", "bias", "between"):
            values = [row[name] for row in rows]
            told[name] = float(np.mean(values))
            told[f"{name}_range"] = [min(values), max(values)]
        table.append({**told, "seeds": len(rows)})
    return {"share": SHARE, "spreads": SPREADS, "evaluations": EVALUATIONS, "table": table, "cells": finished}


def page(result: dict[str, Any], exact: bool) -> str:
    """The table in Markdown: ratio / share for every spread, the mean over the seeds."""
    spreads = result["spreads"]
    lines = [
        f"| head | sampler | evaluations | {' | '.join(f'spread {s:g}' for s in spreads)} |",
        f"|---|---|---|{'---|' * len(spreads)}",
    ]
    rows: dict[tuple[str, str, int], dict[float, str]] = {}
    for row in result["table"]:
        if row["exact"] == exact:
            told = f"{row['ratio']:.2f} / {row['share']:.3f}"
            rows.setdefault((row["arm"], row["sampler"], row["evaluations"]), {})[row["spread"]] = told
    for (arm, sampler, evaluations), told in rows.items():
        values = " | ".join(told.get(spread, "") for spread in spreads)
        lines.append(f"| {arm} | {sampler} | {evaluations} | {values} |")
    return "\n".join(lines) + "\n"


def draw_picture(result: dict[str, Any], path: Path) -> None:
    """Ratio and share over the evaluations, one column per spread; lines are learned, dots are of the exact model."""
    from matplotlib.figure import Figure

    told: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in sorted(result["table"], key=lambda row: row["evaluations"]):
        told.setdefault((row["arm"], row["sampler"], row["exact"], row["spread"]), []).append(row)
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots(2, len(SPREADS), sharex=True, sharey="row")
    quantities = (("ratio", 1.0, (0, 2)), ("share", SHARE, (0.2, 0.4)))
    for (row, (name, right, limits)), (column, spread) in product(enumerate(quantities), enumerate(SPREADS)):
        axis = axes[row, column]
        axis.axhline(right, color="black", linewidth=0.8)
        for number, (arm, sampler) in enumerate(PICTURED):
            exact_arm = next(other for other in EXACT if ARMS[other][0] == ARMS[arm][0])
            for key, style in (((arm, sampler, False, spread), "-"), ((exact_arm, sampler, True, spread), "o")):
                points = [(one["evaluations"], one[name]) for one in told.get(key, [])]
                title = f"{arm}, {sampler}" if style == "-" else None
                axis.plot(*np.array(points).reshape(-1, 2).T, style, color=f"C{number}", label=title)
        axis.set_ylim(*limits)
        axes[0, column].set_title(f"spread {spread:g}")
        axes[1, column].set_xlabel("evaluations")
        axes[row, 0].set_ylabel(name)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="only these heads")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS, help="only these trainings")
    parser.add_argument("--exact", action="store_true", help="only the exact model")
    parser.add_argument("--cells", type=Path, default=Path("outputs/spread"), help="folder of the finished cells")
    parser.add_argument("--summary", action="store_true", help="run nothing, only write the result file")
    parser.add_argument("--out", type=Path, default=None, help="result file (default: in benchmarks/results)")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="the picture")
    arguments = parser.parse_args()
    seeds = {None} if arguments.exact else {None, *arguments.seeds}
    if not arguments.summary:
        sweep(arguments.cells, [cell for cell in PLAN if cell.arm in arguments.arms and cell.seed in seeds])
    result = summarize(arguments.cells)
    print(page(result, exact=True), page(result, exact=False), sep="\n")
    draw_picture(result, arguments.picture)
    print(write("spread", result, arguments.out, device="cpu", threads=1))


if __name__ == "__main__":
    main()
