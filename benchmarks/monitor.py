"""Monitor: false alarms against what was promised, and how many failures of perturbed episodes are told, how early.

    python -m benchmarks.monitor                  run what is missing, then write the result file
    python -m benchmarks.monitor --summary        only write the result file from the finished cells
    python -m benchmarks.monitor --restore FILE   go on from the worlds that a result file has finished

A cell is one world under one condition: calibration, nominal (other seeds, until there are enough successes), or one
strength of one perturbation. Every decision is scored by all scores, and nothing acts on an alarm, so bands of every
score, promise and combination are fitted to the same episodes afterwards. A band sees calibration alone. The default
score of the package was settled on the development worlds, which the pooled rows of the others leave out: the cheapest
whose balanced accuracy at matched time is within 0.02 of the best.

An alarm's lead is the time from the decision that raised it to the end of the failed episode, which for most failures
is the time limit; `alarm_s` is its time from the episode's start. Balanced accuracy is the mean of the share of failed
and the share of solved perturbed episodes that are told right: over the whole episode, and at matched time, where only
alarms up to the median length of calibrated successes count, so that failures, which run longer, do not have more
opportunity. `duration`, an alarm for what takes longer than successes do, is there to be compared with. Finished cells
and trained policies are kept below --cells, so a killed run goes on where it was; start the command once per core that
you want to give it.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import envs
from benchmarks import cells
from benchmarks.monitor_alarms import best, judge_world, pool, table
from benchmarks.result import write
from conf.verbs.train import TrainRoot
from flowhand.commands.calibrate import demonstrations, learn, watched_episodes
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.export.band import fit
from policies.device import cpu_threads
from policies.monitor.calibrated import CalibratedMonitor, Calibration, MonitorConfig, load_monitor, save_monitor
from policies.monitor.watched_policy import WatchedPolicy, possible

TASKS = ("push", "hammer", "pick-place", "assembly")
WORLDS: dict[str, list[str]] = {
    **{task: [f"env.task={task}-v3", "chunk.execution_horizon=8"] for task in TASKS},
    "detour": ["env=detour", "data.noise=0.05", "chunk.execution_horizon=8"],
}
DEVELOPMENT = ("pick-place", "assembly")  # the default score was settled on these
CONDITIONS: dict[str, dict[str, float]] = {  # what is set in `eval.perturb`
    "calibration": {},
    "nominal": {},
    "initial_shift-1": {"initial_shift": 1.0},
    "initial_shift-2": {"initial_shift": 2.0},
    "observation_noise_relative-0.1": {"observation_noise_relative": 0.1},
    "observation_noise_relative-0.3": {"observation_noise_relative": 0.3},
    "frame_drop-0.75": {"frame_drop": 0.75},
    "observation_delay-8": {"observation_delay": 8},
    "push-20": {"push": 20.0},
    "action_noise-0.5": {"action_noise": 0.5},
    "friction_scale-0.25": {"friction_scale": 0.25},
}
FIRST_SEED = {"calibration": 3_000_000}  # all others: 1,000,000
PUBLISHED = {  # reported by others, for other policies and tasks
    "fmaccel (pi0.5, LIBERO, alpha .1): TPR": {
        "acceleration": 0.85,
        "entropy": 0.85,
        "stac": 0.90,
        "FIPER": 0.81,
        "logpzo": 0.38,
    },
    "fmaccel: average of 8 cells (its measure)": {
        "acceleration": 0.66,
        "entropy": 0.55,
        "stac": 0.60,
        "FIPER": 0.55,
        "logpzo": 0.41,
    },
    "FIPER, time-wise thresholds": {"TPR": 0.92, "TNR": 0.65, "false alarms": 0.35},
    "FIPER, guaranteed band": {"TPR": 0.72, "TNR": 0.84},
    "note": "other policies and tasks: to be read beside these figures, not compared with them",
}


@dataclass(frozen=True)
class Plan:
    """How much is run."""

    folder: Path
    calibration: int  # episodes
    successes: int  # nominal ones held out
    episodes: int  # of every perturbation
    alpha: float
    steps: int | None  # optimizer steps instead of the recipe's


@dataclass(frozen=True)
class Cell:
    """One world under one condition."""

    world: str
    condition: str

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.world}-{self.condition}"


def configure(world: str, condition: str, plan: Plan) -> TrainRoot:
    """The configuration of a cell."""
    perturb = [f"eval.perturb.{name}={value}" for name, value in CONDITIONS[condition].items()]
    steps = [f"train.steps={plan.steps}"] if plan.steps else []
    return cells.configure([*WORLDS[world], *perturb, *steps], plan.episodes)


def run_cell(cell: Cell, plan: Plan) -> dict[str, Any] | None:
    """Runs a world's episodes under a condition; None while another process makes what it needs."""
    world, condition = cell.world, cell.condition
    config, checkpoint = configure(world, condition, plan), plan.folder / world
    policy = cells.trained(plan.folder, world, config)
    ready = condition == "calibration" or (plan.folder / f"{world}-calibration.json").exists()
    if policy is None or not ready:
        return None
    execution, monitor, density = ExecutionConfig(), None, None
    if condition == "calibration":
        monitor = MonitorConfig(possible(policy, execution), plan.alpha, 0.0)
        with cpu_threads(1):
            density = learn(policy, demonstrations(checkpoint, config.data), monitor.density)
        watch = partial(WatchedPolicy, policy, monitor.scores, execution, monitor.samples, density)
    else:
        watch = partial(load_monitor(checkpoint, policy).watch, policy, execution)
    spreads = {name: normalizer.scale.tolist() for name, normalizer in policy.normalizers()[:-1]}
    run = partial(watched_episodes, watch, partial(envs.make, config.env, config.eval.perturb, spreads), execution)
    first, started = FIRST_SEED.get(condition, 1_000_000), time.perf_counter()
    wanted = {"calibration": plan.calibration, "nominal": plan.successes}.get(condition, plan.episodes)
    episodes = run(range(first, first + wanted), n_envs=8)
    while condition == "nominal" and (missing := wanted - sum(record.success for record, _ in episodes)):
        if len(episodes) >= 3 * wanted:
            break  # the summary says how many there are
        start = first + len(episodes)
        episodes += run(range(start, start + missing), n_envs=min(8, missing))
    if monitor is not None:
        band = fit([np.array(trace.scores) for record, trace in episodes if record.success], plan.alpha)
        interval = watch().interval
        about = Calibration(monitor, execution.mode, interval, asdict(config.env), first, wanted, band.calibrated)
        save_monitor(checkpoint, CalibratedMonitor(about, band, density))
    about = {"names": watch().names, "control_dt_s": policy.spec.control_dt_s, "head": policy.config.head.kind}
    seconds = round(time.perf_counter() - started, 1)
    kept = [
        {"seed": r.seed, "success": r.success, "length": r.steps, "steps": t.steps, "scores": np.round(t.scores, 5)}
        for r, t in episodes
    ]
    for episode in kept:
        episode["scores"] = episode["scores"].tolist()
    told = cells.outcomes([record for record, _ in episodes])
    return {**vars(cell), **told, **about, "seconds": seconds, "episodes": kept}


def restore(result: Path, folder: Path) -> None:
    """Makes the finished worlds of an earlier, perhaps partial, result file finished worlds here."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, world in json.loads(result.read_text())["worlds"].items():
        if world["finished"]:
            (folder / f"{name}.judged.json").write_text(json.dumps(world))


def summarize(folder: Path, alpha: float) -> dict[str, Any]:
    """Every world that has its calibration and nominal episodes, and the pooled rows of those that are finished."""
    worlds = {}
    for world in WORLDS:
        found = {c: folder / f"{world}-{c}.json" for c in CONDITIONS}
        done = {c: json.loads(path.read_text()) for c, path in found.items() if path.exists()}
        if (restored := folder / f"{world}.judged.json").exists():
            worlds[world] = json.loads(restored.read_text())
        elif {"calibration", "nominal"} <= done.keys():
            worlds[world] = judge_world(done, [c for c in CONDITIONS if CONDITIONS[c]], alpha)
    groups = {"benchmark": [w for w in WORLDS if w not in DEVELOPMENT], "development": list(DEVELOPMENT)}
    pooled = {}
    for group, names in groups.items():
        names = [name for name in names if name in worlds and worlds[name]["finished"]]
        rows = pool([worlds[name] for name in names], alpha)
        pooled[group] = {"worlds": names, "best_single_score": best(rows), "detectors": rows}
    about = {"alpha": alpha, "execution_horizon": 8, "configurations": WORLDS, "conditions": CONDITIONS}
    return {**about, "pooled": pooled, "worlds": worlds, "published": PUBLISHED}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(CONDITIONS)
    parser.add_argument("--worlds", nargs="*", choices=WORLDS, default=list(WORLDS), help="only these worlds")
    parser.add_argument("--conditions", nargs="*", choices=names, default=names, help="only these, and calibration")
    parser.add_argument("--calibration", type=int, default=300, help="undisturbed episodes to calibrate on")
    parser.add_argument("--successes", type=int, default=400, help="held-out nominal successes for the false alarms")
    parser.add_argument("--episodes", type=int, default=60, help="episodes of every perturbation")
    parser.add_argument("--alpha", type=float, default=0.05, help="promised rate of false alarms")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps instead of the recipe's, for a trial")
    cells.options(parser, "monitor")
    a = parser.parse_args()
    if a.restore:
        restore(a.restore, a.cells)
    if not a.summary:
        plan = Plan(a.cells, a.calibration, a.successes, a.episodes, a.alpha, a.steps)
        worlds = [world for world in a.worlds if not (a.cells / f"{world}.judged.json").exists()]
        chosen = [Cell(w, c) for w in worlds for c in names if c in a.conditions or c == "calibration"]
        cells.sweep(a.cells, chosen, partial(run_cell, plan=plan))
    result = summarize(a.cells, a.alpha)
    print(table(result))
    print(write("monitor", result, a.out, device="cpu", threads=1))


if __name__ == "__main__":
    main()
