"""Who drives in a recording, and with what safety."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from conf.verbs.record import RecordRoot
from flowhand.contracts.features import Spec
from flowhand.contracts.planner import LoadedPlanner
from flowhand.contracts.world import World
from flowhand.control.controller import Controller
from flowhand.control.inference_thread import InferenceThread
from flowhand.robots import features_of, make, opened
from flowhand.robots.acting.actors import DriverActor, ExpertActor, PolicyActor
from flowhand.robots.acting.shadow import Shadow
from flowhand.robots.acting.takeover import TakeOver
from flowhand.robots.teleoperators import Driver
from flowhand.robots.teleoperators import make as make_driver

from ..control import one_thread, planner_of, watched


@dataclass
class Parts:
    """What a recording is made of."""

    spec: Spec  # of what is recorded
    world: World | None  # in the robot's place
    planner: LoadedPlanner | None  # that drives
    shadow: LoadedPlanner | None  # that watches
    real_time: bool
    robot: Any = None
    driver: Driver | None = None
    lines: list[str] = field(default_factory=list)  # to be told

    @property
    def name(self) -> str:
        """Of the robot or the world, as the set names it."""
        return self.world.task if self.world is not None else str(getattr(self.robot, "name", "") or "robot")


def parts_of(config: RecordRoot, stack: ExitStack, world: World | None, robot: Any) -> Parts:
    """The world or the robot, and the policies; what they hold is let go of with the stack.

    Raises:
        ValueError: nothing is said of where or with whom is recorded, or the parts do not fit.
    """
    planner = planner_of(config.checkpoint, config.device, config.head.changes) if config.checkpoint else None
    shadow = planner_of(config.shadow, config.device, config.head.changes) if config.shadow else None
    for each in filter(None, (planner, shadow)):
        stack.enter_context(one_thread(each))
    simulated = robot is None and (config.robot is None or config.robot.kind == "simulated")
    if simulated and world is None:
        world = stack.enter_context(closing(_world(config, planner or shadow)))
    elif world is None and config.env is not None:
        raise ValueError("a robot acts in no world; leave out env, or say robot=simulated")
    spec = world.features if world is not None else _spec_of_robot(config, robot, planner or shadow)
    if config.rate_hz:
        spec = Spec(spec.observation, spec.action, 1 / config.rate_hz)
    real_time = _is_real_time(config, spec, world)
    return Parts(spec, world, planner, shadow, real_time)


def _world(config: RecordRoot, planner: LoadedPlanner | None) -> World:
    if config.env is None and planner is None:
        raise ValueError("record where? Give env=... (a world) or robot=... (a robot)")
    import envs

    return envs.make(config.env or envs.env_of(planner.provenance))  # pyright: ignore[reportOptionalMemberAccess]


def _spec_of_robot(config: RecordRoot, robot: Any, planner: LoadedPlanner | None) -> Spec:
    found = features_of(robot if robot is not None else make(config.robot))
    if found is None and planner is None:
        raise ValueError("the robot does not say what it observes (features), and there is no policy that does")
    spec = planner.spec if planner is not None else found
    assert spec is not None
    return Spec(spec.sensed, spec.action, spec.control_dt_s)


def _is_real_time(config: RecordRoot, spec: Spec, world: World | None) -> bool:
    """Whether the clock paces the recording."""
    wanted = {"yes": True, "no": False, "auto": world is None or config.driver is not None}[config.real_time]
    if wanted and spec.control_dt_s is None:
        if config.real_time == "yes" or world is None:
            raise ValueError("this waits for events and has no rate; give real_time=no, or rate_hz")
        return False
    if not wanted and world is None:
        raise ValueError("real_time=no is for simulated worlds; a robot does not wait")
    return wanted


def actor_of(config: RecordRoot, parts: Parts, stack: ExitStack, driver: Driver | None) -> Any:
    """Who acts, as the policy of a runtime.

    Raises:
        ValueError: nobody can drive, or the policy is no policy of this robot.
    """
    if driver is None and config.driver is not None:
        driver = stack.enter_context(opened(make_driver(config.driver, parts.spec)))
    parts.driver = driver
    person = DriverActor(driver) if driver is not None else None
    if parts.planner is None:
        if person is None and parts.world is None:
            raise ValueError("who drives the robot? Give driver=... or checkpoint=...")
        return person or ExpertActor(parts.robot)
    require_sees(parts.planner.spec, parts.spec, parts.name)
    planner, monitor = parts.planner, None
    if config.takeover.on_alarm:
        planner, monitor = watched(planner, config, [])
    if parts.real_time:
        policy: Any = InferenceThread(planner, config.execution, config.noise_seed, config.asynchronous)
        stack.enter_context(closing(policy))
    else:
        policy = Controller(planner, execution=config.execution, noise_seed=config.noise_seed)
    actor = PolicyActor(policy, parts.planner.spec.sensed)
    if not config.takeover.by:
        return actor
    if config.takeover.by == "driver" and person is None:
        raise ValueError("takeover.by=driver needs somebody who takes over; give driver=keyboard, or another one")
    other = ExpertActor(parts.robot) if config.takeover.by == "expert" else person
    dt = parts.spec.control_dt_s or 1.0  # of a world of events, times count its steps
    return TakeOver(actor, other, config.takeover, dt, parts.spec.action.discrete, monitor)


def require_sees(policy: Spec, recorded: Spec, what: str) -> None:
    """Raises `ValueError` unless what is recorded has all that the policy observes, and its action."""
    wanted = {**policy.sensed, "action": policy.action}
    found = {**recorded.observation, "action": recorded.action}
    for name, feature in wanted.items():
        other = found.get(name)
        if other is None:
            raise ValueError(f"{what} does not observe {name!r}, which the policy needs; it has {', '.join(found)}")
        if other.shape != feature.shape or (feature.unit and other.unit and feature.unit != other.unit):
            raise ValueError(
                f"{what} has {name!r} with shape {other.shape} in {other.unit!r}, the policy expects {feature.shape} "
                f"in {feature.unit!r}"
            )


def shadow_of(config: RecordRoot, parts: Parts, say: Any) -> Shadow | None:
    """The policy that watches, if there is one."""
    if parts.shadow is None:
        return None
    require_sees(parts.shadow.spec, parts.spec, parts.name)
    return Shadow(parts.shadow, config.execution, config.noise_seed, parts.spec.control_dt_s or 1.0, say)
