"""The time grids of policies/generation/grids.py: made here, from exact denoisers, for the multistep solver.

    python -m benchmarks.grids                   find what is missing, then write the result file and print the table
    python -m benchmarks.grids --summary         only write the result file from the finished grids

A grid that is found is kept below --cells, so a killed search goes on where it was. The result file holds the grids,
which are then copied into policies/generation/grids.py, and what those that stand there do.

A case is a mixture of normal distributions on a line, whose exact denoiser is known, and so is what a sampler should
give: single ones of spread .05 to 1, and two and three separated modes of spread .05, .1 and .3. The distance of two
modes is 2 as between two ways of one number, and 6 as between those of a chunk of ten. A grid is judged by

    largest |ln ratio| + mean |ln ratio| + 10 * largest error of a share + largest bias

over the cases. The ratio is of the root mean square distance from the nearest mode to what the distribution itself has;
a share is that of the samples nearest to a mode; the bias is that of the mean, in spreads of it all. The noise is 201
quantiles, so that nothing is drawn. Every grid is found by Nelder-Mead on the logarithms of alpha / sigma, from the
grid with one step less, and from steps equal in that logarithm, with a short second one and without; the best of the
three is improved further.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from scipy.optimize import minimize
from torch import Tensor

from benchmarks import cells
from benchmarks.result import write
from policies.generation.grids import POWER, power, tabulated, uniform
from policies.generation.solvers import ddim, multistep, walk

QUANTILES = 201
SHARE_WEIGHT = 10.0
STEPS = range(2, 17)
SHOWN = (2, 4, 6, 8, 10, 16)  # numbers of evaluations in the table
COLUMNS = (("euler", "uniform"), ("multistep", "uniform"), ("multistep", "power"), ("multistep", "tabulated"))


@dataclass(frozen=True)
class Case:
    """A mixture on the line."""

    modes: tuple[float, ...]
    shares: tuple[float, ...]
    spread: float

    @property
    def name(self) -> str:
        """For tables."""
        apart = "" if len(self.modes) == 1 else f" {self.modes[1] - self.modes[0]:g} apart"
        return f"{len(self.modes)} mode{'s' * (len(self.modes) > 1)}{apart}, spread {self.spread:g}"


CASES = [
    *(Case((0.0,), (1.0,), spread) for spread in (0.05, 0.1, 0.2, 0.5, 1.0)),
    *(Case((-1.0, 1.0), (0.3, 0.7), spread) for spread in (0.05, 0.1, 0.3)),
    *(Case((-3.0, 3.0), (0.3, 0.7), spread) for spread in (0.05, 0.1, 0.3)),
    *(Case((-2.0, 0.0, 2.0), (0.2, 0.5, 0.3), spread) for spread in (0.05, 0.1, 0.3)),
]


class Exact:
    """The exact denoisers of several cases at once, on rows of one chunk per case."""

    def __init__(self, cases: list[Case] = CASES):
        self.cases = cases
        most = max(len(case.modes) for case in cases)
        fill = [(case, most - len(case.modes)) for case in cases]
        table: dict[str, Any] = {"dtype": torch.float64}
        self.modes = torch.tensor([[*c.modes, *[c.modes[0]] * n] for c, n in fill], **table).T[..., None]  # (M, C, 1)
        self.shares = torch.tensor([[*c.shares, *[0.0] * n] for c, n in fill], **table).T[..., None]
        self.spread = torch.tensor([c.spread for c in cases], **table)[:, None]  # (C, 1)
        self.mean = (self.shares * self.modes).sum(0)
        self.std = (self.spread**2 + (self.shares * (self.modes - self.mean) ** 2).sum(0)).sqrt()
        noise = stats.norm.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES)
        self.noise = torch.from_numpy(noise / noise.std()).expand(len(cases), -1)

    def data(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x1 | alpha x1 + sigma x0 = x] of rows (C, N)."""
        total = alpha**2 * self.spread**2 + sigma**2
        away = x - alpha * self.modes
        exponent = away**2 / (2 * total)
        weight = self.shares * torch.exp(exponent.amin(0) - exponent)
        return (weight * (self.modes + alpha * self.spread**2 / total * away)).sum(0) / weight.sum(0)

    def sample(self, times: list[float], update: Callable = multistep) -> Tensor:
        """Samples (C, N) by the walk along the linear path's times."""
        levels = [(t, 1 - t) for t in times]
        updates = [update(levels, i) for i in range(len(times) - 1)]

        def denoise(x: Tensor, i: int) -> tuple[Tensor, Tensor | None]:
            (alpha, sigma), wanted = levels[i], updates[i].noise
            data = self.data(x, alpha, sigma)
            return data, (x - alpha * data) / sigma if wanted else None

        return walk(denoise, self.noise, updates)

    @cached_property
    def rms(self) -> Tensor:
        """Root mean square distance (C,) of each distribution from the nearest mode, by quadrature."""
        found = []
        for case in self.cases:
            x = torch.linspace(-8, 8, 40_001, dtype=torch.float64)
            modes, shares = torch.tensor(case.modes), torch.tensor(case.shares)
            density = (shares * torch.exp(-((x[:, None] - modes) ** 2) / (2 * case.spread**2))).sum(1)
            square = (x[:, None] - modes).square().amin(1)
            found.append((density * square).sum() / density.sum())
        return torch.stack(found).sqrt()

    def judge(self, samples: Tensor) -> dict[str, Tensor]:
        """Of each case (C,): ratio of spreads, largest error of a share, bias in spreads of the whole distribution."""
        distance = torch.where(self.shares > 0, (samples - self.modes).abs(), torch.inf)
        near, nearest = distance.min(0)
        shares = (nearest == torch.arange(len(self.modes))[:, None, None]).double().mean(-1, keepdim=True)
        bias = (samples.mean(1, keepdim=True) - self.mean) / self.std
        ratio = near.square().mean(1).sqrt() / self.rms
        return {"ratio": ratio, "share_error": (shares - self.shares).abs().amax(0)[:, 0], "bias": bias.abs()[:, 0]}

    def objective(self, samples: Tensor) -> float:
        """What a grid is judged by; less is better."""
        judged = self.judge(samples)
        log_ratio = judged["ratio"].log().abs()
        told = log_ratio.max() + log_ratio.mean() + SHARE_WEIGHT * judged["share_error"].max() + judged["bias"].max()
        return float(told)


def times_of(numbers: np.ndarray) -> list[float]:
    """A grid from ln(alpha / sigma) of its first time after 0, and the logarithms of the steps in it that follow."""
    places = np.cumsum([numbers[0], *np.exp(numbers[1:])])
    return [0.0, *(1 / (1 + np.exp(-places))).tolist(), 1.0]


def numbers_of(times: list[float]) -> np.ndarray:
    """The inverse of `times_of`."""
    inner = np.array(times[1:-1])
    places = np.log(inner / (1 - inner))
    return np.array([places[0], *np.log(np.diff(places))])


def starts(steps: int, before: list[float] | None) -> list[list[float]]:
    """Grids to begin with."""
    equal = np.linspace(-2, 4.5, steps - 1)
    short = np.array([-2.0, *np.linspace(-1.5, 4.5, steps - 2)])
    found = [[0.0, *(1 / (1 + np.exp(-places))).tolist(), 1.0] for places in (equal, short)]
    if before:
        places = numbers_of(before)
        widest = int(np.argmax(places[1:])) + 1 if len(places) > 1 else 0
        halved = np.insert(places, widest, places[widest] if len(places) > 1 else 0.5)
        if len(places) > 1:
            halved[widest : widest + 2] -= np.log(2)
        found.append(times_of(halved))
    return found


def best(exact: Exact, steps: int, before: list[float] | None, rounds: int) -> list[float]:
    """The best grid found, its times rounded to five digits."""

    def cost(numbers: np.ndarray) -> float:
        return exact.objective(exact.sample(times_of(numbers)))

    def improved(numbers: np.ndarray) -> np.ndarray:
        options = {"maxfev": 60 * steps, "adaptive": True, "xatol": 1e-3, "fatol": 1e-4}
        return minimize(cost, numbers, method="Nelder-Mead", options=options).x

    numbers = min((improved(numbers_of(start)) for start in starts(steps, before)), key=cost)
    for _ in range(rounds):  # a simplex that has collapsed is set up anew
        numbers = improved(numbers)
    return [round(t, 5) for t in times_of(numbers)]


def measured(exact: Exact) -> list[dict[str, Any]]:
    """Every solver and grid at several numbers of evaluations."""
    rows = []
    for steps in SHOWN:
        for solver, update in (("euler", ddim), ("multistep", multistep)):
            for name, grid in (("uniform", uniform), ("power", power), ("tabulated", tabulated)):
                samples = exact.sample(grid(steps), update)
                judged = {key: value.tolist() for key, value in exact.judge(samples).items()}
                told = {"solver": solver, "grid": name, "evaluations": steps}
                rows.append({**told, "objective": exact.objective(samples), **judged})
    return rows


def page(rows: list[dict[str, Any]]) -> str:
    """The table of docs/heads.md: least and largest ratio, largest error of a share."""
    told = {(row["solver"], row["grid"], row["evaluations"]): row for row in rows}
    lines = [f"| evaluations | {' | '.join(map(', '.join, COLUMNS))} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for steps in SHOWN:
        cells_of = [told[(*column, steps)] for column in COLUMNS]
        values = [
            f"{min(row['ratio']):.2f} to {max(row['ratio']):.2f}, {max(row['share_error']):.3f}" for row in cells_of
        ]
        lines.append(f"| {steps} | {' | '.join(values)} |".replace(" 0.", " ."))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", choices=STEPS, default=STEPS, help="numbers of evaluations")
    parser.add_argument("--rounds", type=int, default=3, help="of Nelder-Mead from the best start's end")
    parser.add_argument("--cells", type=Path, default=Path("outputs/grids"), help="folder of the grids that were found")
    parser.add_argument("--summary", action="store_true", help="find nothing, only write the result file")
    parser.add_argument("--out", type=Path, default=None, help="result file (default: in benchmarks/results)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    exact = Exact()
    found: dict[int, list[float]] = {}
    for steps in arguments.steps:
        file = arguments.cells / f"{steps}.json"
        with cells.claim(file) as save:
            if save is not None and not arguments.summary:
                save({"grid": best(exact, steps, found.get(steps - 1), arguments.rounds)})
        if file.exists():
            found[steps] = json.loads(file.read_text())["grid"]
            print(f"    {steps}: {tuple(found[steps][1:-1])},  # {exact.objective(exact.sample(found[steps])):.3f}")
    content = {
        "cases": [{"name": case.name, **asdict(case)} for case in exact.cases],
        "power": POWER,
        "found": found,
        "objectives": {steps: exact.objective(exact.sample(times)) for steps, times in found.items()},
        "rows": measured(exact),
    }
    print(page(content["rows"]))
    print(write("grids", content, arguments.out, device="cpu", threads=1))


if __name__ == "__main__":
    main()
