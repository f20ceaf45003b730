"""What is wrong with a robot, from what the probe noted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from flowhand.contracts.features import Spec

from .config import CheckConfig
from .probe import STILL, Trace, state_places

DEAD = 0.2  # share of the commanded way below which a dimension does not follow
PART = 0.5  # share of it below which a dimension is stuck on the way
TURNED = 57.29577951308232  # degrees of a radian
LINEAR = 0.9  # correlation of command and state from which on their ratio is believed
MOVING = 0.3  # share of the largest speed of a command from which on the robot counts as being moved
OUTSIDE = 0.05  # of the range, by which a state may lie outside
FINER = 4  # parts of a control step, in which delays are looked for
LONGEST_S = 1.0  # delay that is looked for


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong."""

    kind: (
        str  # loop | error | state | frozen | swapped | slow | dead | stuck | sign | unit | limit | delay | age | order
    )
    where: str  # which dimension or camera; empty: the robot
    text: str  # what was seen, what was expected, and what to look at


@dataclass
class Dimension:
    """How a dimension followed."""

    name: str
    way: float  # commanded
    out: float  # share of it that was done on the way there
    back: float  # the same on the way back
    gain: float  # of the state over the command, at the best delay
    delay_s: float
    correlation: float


@dataclass
class Checked:
    """The measurements, and what is wrong."""

    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what could not be measured
    dimensions: list[Dimension] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)  # sensor -> new values per second
    times_ms: dict[str, tuple[float, float, float]] = field(default_factory=dict)  # what -> median, 99 %, largest


def judged(
    trace: Trace,
    spec: Spec,
    config: CheckConfig,
    own_limits: tuple[np.ndarray, np.ndarray] | None = None,
    reference: Mapping[str, np.ndarray] | None = None,
) -> Checked:
    """What the notes say.

    Args:
        trace: of the probe.
        spec: of who will control the robot.
        config: what counts as a fault.
        own_limits: smallest and largest value (A,) that the robot says it takes, in units of the specification.
        reference: small pictures (8, 8, channels) of each camera, from demonstrations; None: those of this check's
            beginning.
    """
    checked = Checked(notes=list(trace.unmoved))
    faults = checked.faults
    faults.extend(_errors(trace))
    if len(trace.phase) < 4:
        faults.append(Fault("error", "", f"only {len(trace.phase)} readings came; there is nothing to judge"))
        return checked
    checked.times_ms = {
        "reading": _spread(trace.reading_s),
        "command": _spread(trace.sending_s),
        "from one reading to the next": _spread(np.diff(trace.read_s)),
        "age of the observation": _spread(trace.age_s),
    }
    faults.extend(_loop(trace, config, checked))
    dimensions = [d for d in sorted(set(trace.phase)) if d != STILL]
    checked.dimensions = [_followed(trace, d) for d in dimensions]
    for place, each in zip(dimensions, checked.dimensions, strict=True):
        faults.extend(_judge(each, trace, place, config))
    faults.extend(_limits(trace, spec, own_limits))
    faults.extend(_states(trace, config, checked))
    for camera in trace.prints:
        faults.extend(_camera(trace, camera, config, checked))
    faults.extend(_swapped(trace, reference))
    return checked


def _errors(trace: Trace) -> Iterator[Fault]:
    for text in dict.fromkeys(trace.errors):
        yield Fault("error", "", f"{text} ({trace.errors.count(text)} times)")
    if trace.blocked:
        yield Fault("error", "", f"{trace.blocked} commands found the robot still being read")


def _loop(trace: Trace, config: CheckConfig, checked: Checked) -> Iterator[Fault]:
    """Whether robot and computer keep the rate."""
    wanted = 1 / trace.control_dt_s
    checked.rates["loop"] = rate = (len(trace.read_s) - 1) / (trace.read_s[-1] - trace.read_s[0])
    if rate < config.least_rate * wanted:
        reading, command = np.median(trace.reading_s), np.median(trace.sending_s)
        yield Fault(
            "loop",
            "",
            f"the loop runs at {rate:.3g} Hz, {wanted:.3g} are wanted: a reading takes {1e3 * reading:.1f} ms and a "
            f"command {1e3 * command:.1f} ms of {1e3 * trace.control_dt_s:.1f}",
        )
    age = float(np.percentile(trace.age_s, 95))
    if age > config.max_age_s:
        yield Fault("age", "", f"observations are {age:.3f} s old (95 %), at most {config.max_age_s:g} are acted on")


def _followed(trace: Trace, place: int) -> Dimension:
    """How far, how late and in which direction the state followed the command."""
    window = np.flatnonzero(np.array(trace.phase) == place)
    t = np.array(trace.read_s)[window]
    command, state = np.array(trace.wanted)[window, place], np.array(trace.standing)[window, place]
    half = len(window) // 2
    way = float(command[half - 1] - command[0])
    out, back = (state[half - 1] - state[0]) / way, (state[half - 1] - state[-1]) / way
    correlation, delay, gain = _fit(t, command, state, trace.control_dt_s / FINER)
    return Dimension(trace.names[place], way, float(out), float(back), gain, delay, correlation)


def _fit(t: np.ndarray, command: np.ndarray, state: np.ndarray, step_s: float) -> tuple[float, float, float]:
    """Correlation (without its sign), delay (s) and ratio at the delay at which the command tells most of the state."""
    delays = np.arange(0, LONGEST_S, step_s)
    shifted = np.array([np.interp(t - delay, t, command) for delay in delays])
    x, y = shifted - shifted.mean(1, keepdims=True), state - state.mean()
    xx, yy, xy = (x * x).sum(1), float(y @ y), x @ y
    if not yy or not xx.any():
        return 0.0, 0.0, 0.0
    correlations = np.abs(xy) / np.sqrt(np.maximum(xx, 1e-300) * yy)
    best = int(np.argmax(correlations))
    return float(correlations[best]), float(delays[best]), float(xy[best] / max(xx[best], 1e-300))


def _judge(each: Dimension, trace: Trace, place: int, config: CheckConfig) -> Iterator[Fault]:
    """What is wrong with how a dimension followed; the first thing only, since it makes others meaningless."""
    name, way, share = each.name, each.way, f"{each.out:.2f} there and {each.back:.2f} back"
    moved, believed = max(abs(each.out), abs(each.back)), each.correlation >= LINEAR
    for factor, unit in ((TURNED, "degrees, where radians"), (1 / TURNED, "radians, where degrees")):
        if believed and 0.7 < abs(each.gain) / factor < 1.4:
            text = f"the state moves {each.gain:.3g} times as far as commanded: it is in {unit} are expected"
            yield Fault("unit", name, text)
            return
    if moved < DEAD:
        yield Fault("dead", name, f"does not follow: {way:+.3g} was commanded, and {share} of it were done")
        yield from _others(trace, place, way)
    elif believed and each.gain < 0:
        yield Fault("sign", name, f"moves the other way: {way:+.3g} was commanded, and {share} of it were done")
    elif min(abs(each.out), abs(each.back)) < PART:
        yield Fault("stuck", name, f"is stuck on the way: {way:+.3g} was commanded, and {share} of it were done")
    elif believed and not PART < each.gain < 1 / PART:
        yield Fault("unit", name, f"the state moves {each.gain:.3g} times as far as commanded; compare the units")
    elif believed and each.delay_s > config.max_delay_s:
        text = f"follows {each.delay_s:.3f} s after the command, {config.max_delay_s:g} are allowed"
        yield Fault("delay", name, text)


def _others(trace: Trace, place: int, way: float) -> Iterator[Fault]:
    """Another dimension that moved in the place of the one that was commanded."""
    window = np.flatnonzero(np.array(trace.phase) == place)
    ranges = np.ptp(np.array(trace.standing)[window], axis=0)
    for other, size in enumerate(ranges):
        if other != place and size > PART * abs(way):
            text = f"moves when {trace.names[place]} is commanded; the order of the values is another one"
            yield Fault("order", trace.names[other], text)


def _limits(trace: Trace, spec: Spec, own_limits: tuple[np.ndarray, np.ndarray] | None) -> Iterator[Fault]:
    """What lies outside the ranges of the specification, and ranges that the robot has not."""
    low, high = (end.astype(float) for end in spec.action.bounds())
    size = high - low
    standing = np.array(trace.standing)
    for i, name in enumerate(trace.names):
        if state_places(spec)[i] is None or not np.isfinite(size[i]):
            continue
        least, most = np.nanmin(standing[:, i]), np.nanmax(standing[:, i])
        if least < low[i] - OUTSIDE * size[i] or most > high[i] + OUTSIDE * size[i]:
            text = (
                f"stands at {least:.3g} to {most:.3g}, outside of {low[i]:.3g} to {high[i]:.3g}: another unit or zero"
            )
            yield Fault("unit", name, text)
        if own_limits is None:
            continue
        less, more = own_limits[0][i], own_limits[1][i]
        if low[i] < less - OUTSIDE * size[i] or high[i] > more + OUTSIDE * size[i]:
            text = f"may be told {low[i]:.3g} to {high[i]:.3g}, and the robot takes {less:.3g} to {more:.3g}"
            yield Fault("limit", name, f"{text}; set safety.low and safety.high")


def _states(trace: Trace, config: CheckConfig, checked: Checked) -> Iterator[Fault]:
    """Whether the states are new at every step while the robot is moved, and numbers."""
    standing = np.array(trace.standing)
    known = standing[:, ~np.isnan(standing).all(0)]
    if known.size and not np.isfinite(known).all():
        yield Fault("state", "", "some states are NaN or infinite")
    changed = (np.diff(known, axis=0) != 0).any(1) if known.size else np.zeros(len(standing) - 1, bool)
    share = _freshness(trace, changed, _lag(checked, trace))
    if share is None:
        return
    checked.rates["states"] = share / trace.control_dt_s
    if 0 < share < config.least_rate:
        rate, wanted = share / trace.control_dt_s, 1 / trace.control_dt_s
        yield Fault("slow", "states", f"the states are new {rate:.3g} times a second, {wanted:.3g} are wanted")


def _camera(trace: Trace, camera: str, config: CheckConfig, checked: Checked) -> Iterator[Fault]:
    """Whether a camera goes on giving new pictures while the robot is moved."""
    changed = np.diff(trace.prints[camera]) != 0
    moving = _moving(trace, _lag(checked, trace))
    if not moving.any():
        checked.notes.append(f"whether {camera} gives new pictures was not judged: nothing was moved")
        return
    last = int(np.flatnonzero(changed)[-1]) if changed.any() else -1
    after = moving[last + 1 :]
    since = trace.read_s[-1] - trace.read_s[last + 1]
    phases = len({trace.phase[i + 1] for i in np.flatnonzero(moving) if i > last})
    if after.sum() > 0.4 * moving.sum() or (phases > 1 and not changed.any()):
        yield Fault("frozen", camera, f"shows the same picture for the last {since:.1f} s, though the robot was moved")
        return
    share = _freshness(trace, changed, _lag(checked, trace))
    if share is None:
        return
    checked.rates[camera] = share / trace.control_dt_s
    wanted = min(1 / trace.control_dt_s, config.camera_hz or np.inf)
    if share / trace.control_dt_s < config.least_rate * wanted:
        text = f"gives {share / trace.control_dt_s:.3g} new pictures a second, {wanted:.3g} are wanted"
        yield Fault("slow", camera, f"{text} (check.camera_hz says another rate)")


def _swapped(trace: Trace, reference: Mapping[str, np.ndarray] | None) -> Iterator[Fault]:
    """Cameras whose pictures look like those of another one, in demonstrations or at the beginning."""
    cameras = [name for name in trace.thumbs if reference is None or name in reference]
    shown = {name: np.array(trace.thumbs[name]) for name in cameras}
    first = {name: thumbs[: max(1, len(thumbs) // 10)].mean(0) for name, thumbs in shown.items()}
    known = dict(reference) if reference is not None else first
    now = {name: thumbs[-max(1, len(thumbs) // 4) :].mean(0) for name, thumbs in shown.items()}
    since = "in the demonstrations" if reference is not None else "at the beginning"
    for i, one in enumerate(cameras):
        for other in cameras[i + 1 :]:
            if known[one].shape != known[other].shape or now[one].shape != known[one].shape:
                continue
            straight = np.abs(now[one] - known[one]).mean() + np.abs(now[other] - known[other]).mean()
            crossed = np.abs(now[one] - known[other]).mean() + np.abs(now[other] - known[one]).mean()
            if crossed < 0.5 * straight:
                yield Fault("swapped", one, f"looks like {other} {since}, and {other} like {one}; exchange them")


def _lag(checked: Checked, trace: Trace) -> int:
    """Control steps by which the robot follows its commands."""
    delays = [each.delay_s for each in checked.dimensions if each.correlation >= LINEAR]
    return round(float(np.median(delays)) / trace.control_dt_s) if delays else 0


def _moving(trace: Trace, lag: int) -> np.ndarray:
    """Between which steps a dimension moved, (N - 1,): its command changed by a good part of the largest change."""
    phase, wanted = np.array(trace.phase), np.array(trace.wanted)
    moving = np.zeros(len(phase) - 1, bool)
    for place in set(trace.phase) - {STILL}:
        inside = (phase[1:] == place) & (phase[:-1] == place)
        speed = np.abs(np.diff(wanted[:, place]))
        if inside.any() and np.nanmax(speed[inside]) > 0:
            fast = inside & (speed > MOVING * np.nanmax(speed[inside]))
            moving |= inside & np.concatenate([np.zeros(lag, bool), fast])[: len(fast)]
    return moving


def _freshness(trace: Trace, changed: np.ndarray, lag: int) -> float | None:
    """Share of steps with something new, in that motion that it shows best; None where nothing was moved."""
    phase, moving = np.array(trace.phase)[1:], _moving(trace, lag)
    shares = [changed[moving & (phase == place)].mean() for place in set(phase[moving])]
    return float(max(shares)) if shares else None


def _spread(seconds: np.ndarray | list[float]) -> tuple[float, float, float]:
    """Median, 99 % and largest, in milliseconds."""
    median, p99 = np.percentile(seconds, [50, 99])
    return 1e3 * float(median), 1e3 * float(p99), 1e3 * float(np.max(seconds))
