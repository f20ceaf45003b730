"""How often `flowhand check` finds a planted fault, and how often it finds one where there is none.

    python -m benchmarks.robot_check lagging [--seeds 20] [--clean 200]
    python -m benchmarks.robot_check so101 [--seeds 3] [--clean 20]

Two robots, on a clock that passes only when somebody waits: four joints with a lag, noise and two cameras, and the arm
of so101 in MuJoCo with its camera (which has no second one to be exchanged with).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import envs
from benchmarks.result import write
from flowhand.contracts.features import Spec
from flowhand.evaluation.statistics import wilson
from flowhand.robots.check.config import CheckConfig
from flowhand.robots.check.findings import judged
from flowhand.robots.check.probe import Probe
from flowhand.robots.simulated import SimulatedRobot
from tests.robots.planted import FAULTS, SPEC, Clock, Lagging, Planted
from tests.robots.test_check import KINDS

CONFIG = CheckConfig(still_s=1.0, ramp_s=0.6, rest_s=0.3)
NAMED = {  # where the arm has another name
    ("frozen", "front"): "front",
    ("dead", "roll"): "elbow_flex.pos",
    ("sign", "lift"): "shoulder_lift.pos",
    ("unit", "pan"): "shoulder_lift.pos",
    ("limit", "pan"): "shoulder_pan.pos",
    ("dead", "gripper"): "gripper.pos",
    ("delay", "pan"): "shoulder_pan.pos",
}


def lagging(seed: int) -> tuple[Any, Spec]:
    """Four joints, with noise at every second seed."""
    return Lagging(seed % 2, seed), SPEC


def arm(seed: int) -> tuple[Any, Spec]:
    """The arm in MuJoCo."""
    robot = SimulatedRobot(envs.make(envs.SO101Config(max_steps=100_000)), stop_at_success=False)
    robot.reset(seed)
    return robot, robot.features


def found(make: Callable[[int], tuple[Any, Spec]], fault: str, seed: int) -> list[tuple[str, str]]:
    """What the check says of a robot with this fault."""
    robot, spec = make(seed)
    clock = Clock()
    planted = Planted(robot, spec, fault, clock, seed, at_step=90)
    trace = Probe(planted, spec, CONFIG, clock=clock, wait_until=clock.wait).run()
    checked = judged(trace, spec, CONFIG, planted.limits())
    if close := getattr(getattr(robot, "env", None), "close", None):
        close()
    return [(each.kind, each.where) for each in checked.faults]


def measured(make: Callable[[int], tuple[Any, Spec]], faults: tuple[str, ...], seeds: int, clean: int) -> dict:
    """Found and named right, by fault; and what is said of robots without one."""
    rows = {}
    for fault in faults:
        said = [found(make, fault, seed) for seed in range(seeds)]
        kind, where = KINDS[fault]
        place = where if make is lagging else NAMED.get((kind, where), where)
        right = sum(kind in [k for k, _ in each] for each in said)
        named = sum((kind, place) in each for each in said)
        others = sum(any(k != kind for k, _ in each) for each in said)
        rows[fault] = {"found": right, "at_its_place": named, "of": seeds, "with_other_kinds": others}
        print(fault, rows[fault], said[0])
    said = [found(make, "", seed) for seed in range(clean)]
    false = sum(bool(each) for each in said)
    kinds = Counter(kind for each in said for kind, _ in each)
    rows["none"] = {"with_faults": false, "of": clean, "wilson_95": wilson(false, clean), "kinds": dict(kinds)}
    print("none", rows["none"])
    return rows


def main() -> None:
    """Writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("robot", choices=("lagging", "so101"))
    parser.add_argument("--seeds", type=int, default=3, help="robots with each fault")
    parser.add_argument("--clean", type=int, default=20, help="robots without a fault")
    options = parser.parse_args()
    if options.robot == "lagging":
        rows = measured(lagging, FAULTS, options.seeds, options.clean)
    else:
        single = tuple(fault for fault in FAULTS if fault != "swapped cameras")
        rows = measured(arm, single, options.seeds, options.clean)
    content = {"robot": options.robot, "check": asdict(CONFIG), "faults": rows}
    print(write(f"robot_check_{options.robot}", content, device="cpu", threads=1))


if __name__ == "__main__":
    main()
