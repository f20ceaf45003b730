"""Monitor: false alarms against what was promised, and how many failures of perturbed episodes are told, how early.

    python -m benchmarks.monitor                  run what is missing, then write the result file
    python -m benchmarks.monitor --summary        only write the result file from the finished cells

A cell is one world under one condition: calibration, nominal (other seeds, until there are enough successes), or one
strength of one perturbation. Every decision is scored by all scores, and nothing acts on an alarm, so bands of every
score, promise and combination are fitted to the same episodes afterwards. A band sees calibration alone.

Detection is judged over the whole episode, and at matched time: only alarms up to the median length of calibrated
successes count, so that failures, which run longer, do not have more opportunity. `duration`, an alarm for what takes
longer than successes do, is there to be compared with. Finished cells and trained policies are kept below --cells, so a
killed run goes on where it was; start the command once per core that you want to give it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

import envs
import policies
from benchmarks import cells
from benchmarks.result import write
from conf import schema
from deploy.calibrate import demonstrations, learn, watched_episodes
from policies.conformal import Band, fit, rank, required
from policies.device import cpu_threads
from policies.monitor import (
    CalibratedMonitor,
    Calibration,
    MonitorConfig,
    WatchedPolicy,
    load_monitor,
    possible,
    save_monitor,
)

WORLDS: dict[str, list[str]] = {
    "push": ["env.task=push-v3", "chunk.execution_horizon=8"],
    "hammer": ["env.task=hammer-v3", "chunk.execution_horizon=8"],
    "detour": ["env=detour", "demos.noise=0.05", "chunk.execution_horizon=8"],
}
CONDITIONS: dict[str, dict[str, float]] = {  # what is set in `eval.perturb`
    "calibration": {},
    "nominal": {},
    "initial_shift-1": {"initial_shift": 1.0},
    "initial_shift-2": {"initial_shift": 2.0},
    "observation_noise_relative-0.1": {"observation_noise_relative": 0.1},
    "observation_noise_relative-0.3": {"observation_noise_relative": 0.3},
    "frame_drop-0.75": {"frame_drop": 0.75},
    "observation_delay-4": {"observation_delay": 4},
    "push-10": {"push": 10.0},
    "mass_scale-4": {"mass_scale": 4.0},
    "friction_scale-0.25": {"friction_scale": 0.25},
}
FIRST_SEED = {"calibration": 3_000_000}  # all others: 1,000,000
PROMISES = (0.0, 0.9)  # confidence
PUBLISHED = {
    "fmaccel (pi0.5, LIBERO, alpha .1): TPR": {
        "acceleration": 0.85,
        "entropy (ACE)": 0.85,
        "stac": 0.90,
        "FIPER": 0.81,
        "logpzo": 0.38,
    },
    "fmaccel: 8-cell averages": {"acceleration": 0.66, "stac": 0.60, "entropy and FIPER": 0.55, "logpzo": 0.41},
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


def configure(world: str, condition: str, plan: Plan) -> schema.TrainRoot:
    """The configuration of a cell."""
    perturb = [f"eval.perturb.{name}={value}" for name, value in CONDITIONS[condition].items()]
    steps = [f"train.steps={plan.steps}"] if plan.steps else []
    return cells.configure([*WORLDS[world], *perturb, *steps], plan.episodes)


def run_cell(world: str, condition: str, plan: Plan) -> dict[str, Any] | None:
    """Runs a world's episodes under a condition; None while another process makes what it needs."""
    config, checkpoint = configure(world, condition, plan), plan.folder / world
    policy = cells.trained(plan.folder, world, config)
    ready = condition == "calibration" or (plan.folder / f"{world}-calibration.json").exists()
    if policy is None or not ready:
        return None
    execution = policies.ExecutionConfig()
    if condition == "calibration":
        names = possible(policy, execution)
        monitor = MonitorConfig(names, plan.alpha, 0.0)
        with cpu_threads(1):
            density = learn(policy, demonstrations(checkpoint, config.demos), monitor.density)
        watch = partial(WatchedPolicy, policy, names, execution, monitor.samples, density)
    else:
        watch = partial(load_monitor(checkpoint, policy).watch, policy, execution)
        monitor = density = None
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
        about = Calibration(
            monitor, execution.mode, watch().interval, asdict(config.env), first, wanted, band.calibrated
        )
        save_monitor(checkpoint, CalibratedMonitor(about, band, density))
    kept = [
        {
            "seed": r.seed,
            "success": r.success,
            "length": r.steps,
            "steps": t.steps,
            "scores": np.round(t.scores, 5).tolist(),
        }
        for r, t in episodes
    ]
    about = {"names": watch().names, "control_dt_s": policy.spec.control_dt_s, "head": policy.config.head.kind}
    seconds = round(time.perf_counter() - started, 1)
    return {"world": world, "condition": condition, **about, "seconds": seconds, "episodes": kept}


def sweep(plan: Plan, chosen: list[tuple[str, str]]) -> None:
    """Runs every cell that is not finished and that no other process is at, until nothing is left to do."""
    worked = True
    while worked:
        worked = False
        for world, condition in chosen:
            with cells.claim(plan.folder / f"{world}-{condition}.json") as save:
                finished = save and run_cell(world, condition, plan)
                if save is None or not finished:
                    continue
                save(finished)
                worked = True
                solved = sum(episode["success"] for episode in finished["episodes"])
                print(f"{world:8s} {condition:32s} {solved}/{len(finished['episodes'])}", flush=True)


Alarm = Callable[[dict[str, Any]], float]  # an episode to the control step of its alarm, infinite without


def detectors(calibration: dict[str, Any], alpha: float, confidence: float) -> Iterator[tuple[str, Alarm]]:
    """Every score by itself, all together, and the length of the episode."""
    good, names = [e for e in calibration["episodes"] if e["success"]], calibration["names"]
    columns = {**{name: [i] for i, name in enumerate(names)}, "all": list(range(len(names)))}

    def alarm(band: Band, columns: list[int], episode: dict[str, Any]) -> float:
        decision = band.alarm(np.array(episode["scores"])[:, columns])
        return np.inf if decision is None else episode["steps"][decision]

    for name, chosen in columns.items():
        band = fit([np.array(e["scores"])[:, chosen] for e in good], alpha, confidence)
        yield name, partial(alarm, band, chosen)
    longest = sorted(e["length"] for e in good)[rank(len(good), alpha, confidence) - 1]
    yield "duration", lambda episode: longest + 1 if episode["length"] > longest else np.inf


def share(count: int, n: int) -> dict[str, Any]:
    """A rate with its exact (Clopper-Pearson) 95 % interval."""
    low, high = binomtest(count, n).proportion_ci(method="exact") if n else (0.0, 1.0)
    return {"count": count, "n": n, "rate": count / n if n else None, "exact": [round(low, 4), round(high, 4)]}


def judge(alarm: Alarm, episodes: list[dict[str, Any]], until: float, dt: float) -> dict[str, Any]:
    """What a detector does in these episodes, of which some fail."""
    found = {kind: [e for e in episodes if e["success"] == kind] for kind in (True, False)}
    steps = {kind: np.array([alarm(e) for e in found[kind]]) for kind in found}
    lead_s = [dt * (e["length"] - s) for e, s in zip(found[False], steps[False], strict=True) if s < np.inf]
    told = {
        "detected": share(int((steps[False] < np.inf).sum()), len(steps[False])),
        "false_alarms": share(int((steps[True] < np.inf).sum()), len(steps[True])),
        "lead_s": np.round(np.quantile(lead_s, [0.25, 0.5, 0.75]), 2).tolist() if lead_s else None,
    }
    if len(steps[True]) and len(steps[False]):
        for name, limit in (("whole", np.inf), ("matched", until + 1)):
            right = [(steps[False] < limit).mean(), 1 - (steps[True] < limit).mean()]
            told[f"balanced_accuracy_{name}"] = round(float(np.mean(right)), 4)
    return told


def summarize(folder: Path, alpha: float) -> dict[str, Any]:
    """For every world and promise: false alarms of each detector, and what it tells of each perturbation and of all."""
    worlds = {}
    for world in WORLDS:
        found = {c: folder / f"{world}-{c}.json" for c in CONDITIONS}
        done = {c: json.loads(path.read_text()) for c, path in found.items() if path.exists()}
        if not {"calibration", "nominal"} <= done.keys():
            continue
        calibration, dt = done.pop("calibration"), done["nominal"]["control_dt_s"]
        nominal = [e for e in done.pop("nominal")["episodes"] if e["success"]]
        lengths = [e["length"] for e in calibration["episodes"] if e["success"]]
        until, rows = float(np.median(lengths)), []
        conditions = {name: cell["episodes"] for name, cell in done.items()}
        conditions["all perturbations"] = [episode for episodes in conditions.values() for episode in episodes]
        # A promise that takes more successes than there are is left out, as `calibrated_on` tells.
        for confidence in (c for c in PROMISES if required(alpha, c) <= len(lengths)):
            for name, alarm in detectors(calibration, alpha, confidence):
                false = share(int(sum(alarm(e) < np.inf for e in nominal)), len(nominal))
                false["kept"] = false["exact"][0] <= alpha
                told = {c: judge(alarm, episodes, until, dt) for c, episodes in conditions.items() if episodes}
                rows.append({"score": name, "confidence": confidence, "false_alarms": false, "perturbed": told})
        about = {"head": calibration["head"], "calibrated_on": len(lengths), "matched_until_s": round(until * dt, 2)}
        worlds[world] = {**about, "detectors": rows}
    return {"alpha": alpha, "worlds": worlds, "published": PUBLISHED}


def table(result: dict[str, Any]) -> str:
    """One line per world, promise and detector."""
    lines = [f"promised: at most {result['alpha']:.1%} false alarms; detection over all perturbations"]
    for world, told in result["worlds"].items():
        for row in told["detectors"]:
            false, of_all = row["false_alarms"], row["perturbed"].get("all perturbations", {})
            rate, (low, high) = false["rate"] or 0.0, false["exact"]
            line = f"{world:8s} confidence {row['confidence']:.1f} {row['score']:13s} false alarms {rate:.1%}"
            line += f" [{low:.1%}, {high:.1%}] of {false['n']} {'kept' if false['kept'] else 'BROKEN'}"
            if of_all and of_all["detected"]["n"]:
                lead = of_all["lead_s"][1] if of_all["lead_s"] else float("nan")
                line += f"; detected {of_all['detected']['rate']:.0%} of {of_all['detected']['n']}, lead {lead:.1f} s"
                line += f", balanced {of_all.get('balanced_accuracy_whole', float('nan')):.2f}"
                line += f", matched {of_all.get('balanced_accuracy_matched', float('nan')):.2f}"
            lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(CONDITIONS)
    parser.add_argument("--worlds", nargs="*", choices=WORLDS, default=list(WORLDS), help="only these worlds")
    parser.add_argument("--conditions", nargs="*", choices=names, default=names, help="only these conditions")
    parser.add_argument("--calibration", type=int, default=300, help="undisturbed episodes to calibrate on")
    parser.add_argument("--successes", type=int, default=400, help="held-out nominal successes for the false alarms")
    parser.add_argument("--episodes", type=int, default=100, help="episodes of every perturbation")
    parser.add_argument("--alpha", type=float, default=0.05, help="promised rate of false alarms")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps instead of the recipe's, for a trial")
    parser.add_argument("--cells", type=Path, default=Path("outputs/monitor"), help="folder of the finished cells")
    parser.add_argument("--summary", action="store_true", help="run nothing, only write the result file")
    parser.add_argument("--out", type=Path, default=None, help="result file (default: in benchmarks/results)")
    a = parser.parse_args()
    if not a.summary:
        plan = Plan(a.cells, a.calibration, a.successes, a.episodes, a.alpha, a.steps)
        sweep(plan, [(world, condition) for world in a.worlds for condition in names if condition in a.conditions])
    result = summarize(a.cells, a.alpha)
    print(table(result))
    print(write("monitor", result, a.out))


if __name__ == "__main__":
    main()
