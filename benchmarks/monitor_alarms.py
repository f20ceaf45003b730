"""What a monitor's alarms are worth: judged per world, pooled over worlds, and as tables.

An episode here is what `benchmarks.monitor` keeps of one: success, length, and the scores of every decision.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import binomtest

from flowhand.contracts.export.band import Band, fit, rank, required

PROMISES = (0.9, 0.0)  # confidence; the first is the package's default
SINGLE = ("acceleration", "entropy", "stac", "logpzo", "logpz")
DETECTORS = (*SINGLE, "all", "duration")
HEAD = ("score", "confidence", "false alarms", "failures detected", "lead", "alarm after", "balanced (whole, matched)")


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


def promise(count: int, n: int, alpha: float) -> dict[str, Any]:
    """False alarms, and whether their exact interval contains what was promised or lies below it."""
    told = share(count, n)
    return {**told, "kept": told["exact"][0] <= alpha}


def judge(alarm: Alarm, episodes: list[dict[str, Any]], until: float, dt: float) -> dict[str, Any]:
    """What a detector does in these episodes, of which some fail."""
    failed, solved = ([e for e in episodes if e["success"] == kind] for kind in (False, True))
    at, wrong = (np.array([alarm(e) for e in kind]) for kind in (failed, solved))
    told: dict[str, Any] = {
        "detected": share(int((at < np.inf).sum()), len(at)),
        "false_alarms": share(int((wrong < np.inf).sum()), len(wrong)),
    }
    found = np.isfinite(at)
    if found.any():
        ends = np.array([e["length"] for e in failed])
        for name, steps in (("lead_s", ends[found] - at[found]), ("alarm_s", at[found])):
            told[name] = np.round(dt * np.quantile(steps, [0.5, 0.25, 0.75]), 2).tolist()  # median first
    if failed and solved:
        for name, limit in (("whole", np.inf), ("matched", until + 1)):
            right = [(at < limit).mean(), 1 - (wrong < limit).mean()]
            told[f"balanced_accuracy_{name}"] = round(float(np.mean(right)), 4)
    return told


def judge_world(done: dict[str, dict[str, Any]], disturbed: Collection[str], alpha: float) -> dict[str, Any]:
    """For every promise and detector: false alarms, and what it tells of perturbed episodes, together and by kind."""
    calibration, dt = done["calibration"], done["nominal"]["control_dt_s"]
    nominal = [e for e in done["nominal"]["episodes"] if e["success"]]
    lengths = [e["length"] for e in calibration["episodes"] if e["success"]]
    until, rows = float(np.median(lengths)), []
    by_kind = {name: done[name]["episodes"] for name in disturbed if name in done}
    # A promise that takes more successes than there are is left out, as `calibrated_on` tells.
    for confidence in (c for c in PROMISES if required(alpha, c) <= len(lengths)):
        for name, alarm in detectors(calibration, alpha, confidence):
            row = {
                "score": name,
                "confidence": confidence,
                "nominal": promise(sum(alarm(e) < np.inf for e in nominal), len(nominal), alpha),
                "perturbed": judge(alarm, [e for episodes in by_kind.values() for e in episodes], until, dt),
                "failures_detected": {},
                "solved_with_alarm": {},
            }
            for condition, episodes in by_kind.items():
                for key, kind in (("failures_detected", False), ("solved_with_alarm", True)):
                    alarms = [alarm(e) < np.inf for e in episodes if e["success"] == kind]
                    row[key][condition] = f"{sum(alarms)}/{len(alarms)}"
            rows.append(row)
    return {
        "head": calibration["head"],
        "finished": all(name in done for name in disturbed),
        "calibrated_on": len(lengths),
        "matched_until_s": round(until * dt, 2),
        "seconds": {name: cell["seconds"] for name, cell in done.items()},
        "detectors": rows,
    }


def pool(worlds: list[dict[str, Any]], alpha: float) -> list[dict[str, Any]]:
    """Over worlds, each with its own band: sums of counts, and means of balanced accuracies and of median times."""
    rows = []
    for confidence in PROMISES:
        for name in DETECTORS:
            found = [r for w in worlds for r in w["detectors"] if (r["score"], r["confidence"]) == (name, confidence)]
            if not found or len(found) < len(worlds):
                continue
            counted = [r["perturbed"] for r in found]
            false, nominal = (sum(r["nominal"][key] for r in found) for key in ("count", "n"))
            row = {
                "score": name,
                "confidence": confidence,
                "nominal": promise(false, nominal, alpha),
                "perturbed": {
                    kind: share(*(sum(told[kind][key] for told in counted) for key in ("count", "n")))
                    for kind in ("detected", "false_alarms")
                },
            }
            for key in ("lead_s", "alarm_s"):
                if medians := [told[key][0] for told in counted if key in told]:
                    row["perturbed"][key] = [round(float(np.mean(medians)), 2)]
            for key in ("balanced_accuracy_whole", "balanced_accuracy_matched"):
                if means := [told[key] for told in counted if key in told]:
                    row["perturbed"][key] = round(float(np.mean(means)), 4)
            rows.append(row)
    return rows


def best(rows: list[dict[str, Any]]) -> str | None:
    """The single score with the largest balanced accuracy at matched time, under the package's default promise."""
    accuracy = {
        row["score"]: row["perturbed"]["balanced_accuracy_matched"]
        for row in rows
        if row["confidence"] == PROMISES[0] and "balanced_accuracy_matched" in row["perturbed"]
    }
    return max((score for score in SINGLE if score in accuracy), key=lambda score: accuracy[score], default=None)


def table(result: dict[str, Any]) -> str:
    """Markdown: a table for the pooled worlds, and one for each world."""
    groups = {f"{name}: {', '.join(told['worlds'])}": told for name, told in result["pooled"].items() if told["worlds"]}
    lines = [f"At most {result['alpha']:.0%} false alarms are promised."]
    for title, told in {**groups, **result["worlds"]}.items():
        lines += ["", title, "", f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
        lines += [line(row) for row in told["detectors"]]
    return "\n".join(lines)


def line(row: dict[str, Any]) -> str:
    """A row of a table: rates in percent with exact intervals, median times, balanced accuracies."""
    false, perturbed = row["nominal"], row["perturbed"]
    shown = [row["score"], f"{row['confidence']:.1f}"]
    for told, more in ((false, "" if false["kept"] else ", BROKEN"), (perturbed["detected"], "")):
        low, high = (100 * bound for bound in told["exact"])
        rate = "-" if told["rate"] is None else f"{100 * told['rate']:.1f} %"
        shown.append(f"{rate} ({low:.1f} to {high:.1f}; n={told['n']:,}{more})")
    shown += [f"{perturbed[name][0]:.2f} s" if name in perturbed else "-" for name in ("lead_s", "alarm_s")]
    accuracies = [perturbed.get(f"balanced_accuracy_{name}") for name in ("whole", "matched")]
    shown.append(", ".join("-" if a is None else f"{a:.2f}" for a in accuracies))
    return f"| {' | '.join(shown)} |"
