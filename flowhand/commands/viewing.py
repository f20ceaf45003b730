"""`view=true`: a live view in a browser tab, for an evaluation or a control."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from flowhand.contracts.features import Spec, dimension_name
from flowhand.contracts.observers import Observer, Stopped
from flowhand.contracts.planner import Planner
from flowhand.contracts.world import World
from flowhand.control.observers.threads import InThread

EVERY_S = 0.2  # seconds from one picture of a controlled world to the next, since to draw one takes time of the control


@dataclass
class View:
    """Who watches, and what they need."""

    observers: list[Observer] = field(default_factory=list)
    picture_every: int = 0  # control steps from one picture of a controlled world to the next; 0: none
    stop: Callable[[str], None] = lambda _: None  # what the page's button does to a control


@contextmanager
def viewing(
    port: int | None,
    planner_for: Callable[[], Planner],
    spec: Spec,
    make_world: Callable[[], World] | None,
    *,
    control_dt_s: float | None = None,
) -> Iterator[View]:
    """Serves the page while the block runs, and tells its address on stderr.

    Args:
        port: of the page, 0 for a free one; None: nobody watches.
        planner_for: gives the planner of the fan.
        spec: of the policy.
        make_world: builds a world like the one that is watched, to see whether it can be drawn; None: there is none.
        control_dt_s: the period of a control in real time; None: this is an evaluation.
    """
    view = View()
    if port is None:
        yield view
        return
    from flowhand.pages.viewer import Viewer

    rendered, control = make_world is not None and _drawn(make_world), control_dt_s is not None
    viewer = Viewer(
        planner_for(),
        control_dt_s=control_dt_s or spec.control_dt_s,
        names=tuple(dimension_name(spec.action, i) for i in range(spec.action.size)),
        rendered=rendered,
        stop=(lambda reason: view.stop(reason)) if control else None,
        port=port,
    )
    view.observers = [InThread(viewer) if control else viewer]
    if control_dt_s is not None and rendered:
        view.picture_every = max(1, round(EVERY_S / control_dt_s))
    print(f"live view: {viewer.url}", file=sys.stderr, flush=True)
    try:
        yield view
    finally:
        viewer.stop(Stopped())


def _drawn(make_world: Callable[[], World]) -> bool:
    """Whether this world has pictures on this machine; says why where it has none."""
    import envs

    with closing(make_world()) as world:
        try:
            world.reset(seed=0)
            world.render()
        except (envs.RenderingUnavailable, NotImplementedError, ValueError) as error:
            print(f"live view: no pictures of the world: {error}", file=sys.stderr)
            return False
    return True
