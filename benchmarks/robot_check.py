"""How often `flowhand check` finds a planted fault, and how often it finds one where there is none.

    python -m benchmarks.robot_check [--seeds 20] [--arm-seeds 3]

Two robots, on a clock that passes only when somebody waits: four joints with a lag, noise and two cameras, and the arm
of so101 in MuJoCo with its camera (which has no second one to be exchanged with).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
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
    clock, config = Clock(), CheckConfig()
    planted = Planted(robot, spec, fault, clock, seed, at_step=150)
    trace = Probe(planted, spec, config, clock=clock, wait_until=clock.wait).run()
    checked = judged(trace, spec, config, planted.limits())
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
        right = sum((kind, place) in each for each in said)
        others = sum(any(k != kind for k, _ in each) for each in said)
        rows[fault] = {"found": right, "of": seeds, "with_other_kinds": others}
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
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--arm-seeds", type=int, default=3)
    options = parser.parse_args()
    single = tuple(fault for fault in FAULTS if fault != "swapped cameras")
    content = {
        "lagging": measured(lagging, FAULTS, options.seeds, 10 * options.seeds),
        "so101": measured(arm, single, options.arm_seeds, 20),
    }
    print(write("robot_check", content, device="cpu", threads=1))


if __name__ == "__main__":
    main()
