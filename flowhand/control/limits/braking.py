"""One dimension of a robot's commands: how near a command may come to what is wanted. Standard library only.

Everything is counted in control steps: v = p - (p before), a = v - (v before), and the limit `jerk` is that of
a - (a before). The rule of braking is the fastest to rest (v = a = 0): as much deceleration as the limits allow, until
what velocity is left is just what returning the deceleration to zero takes.

After a greater command the axis is further along at every later step of its braking. So the commands after which it
can be braked within the bounds form an interval, and the next step of the braking that was possible before lies in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

LEGS = 20  # of braking, at most: seven without rounding errors
HALVINGS = 40  # of the interval in which a clamped command is sought
ROUNDING = 1e-13  # share of the commands' size by which their differences may exceed a limit


class Motion(NamedTuple):
    """A command p, its change v since the command before, and the change a of v; and what was wanted."""

    p: float  # nan before the first
    v: float = 0.0
    a: float = 0.0
    wanted: float = math.nan  # what p stands for: itself, or a value that was out of reach; nan after a refusal
    trend: float = math.nan  # its change since the command before


@dataclass(frozen=True)
class Axis:
    """The limits of one dimension, per control step; infinite where there is none."""

    low: float  # of p
    high: float  # of p
    velocity: float  # of |v|
    acceleration: float  # of |a|
    jerk: float  # of the change of a

    @cached_property
    def scale(self) -> float:
        """The size of the commands, for rounding errors."""
        return sum(abs(bound) for bound in (self.low, self.high) if math.isfinite(bound))

    def braked(self, now: Motion) -> Motion:
        """The next step of braking; none before the first command."""
        if math.isnan(now.p):
            return now
        strongest, weakest = max(now.a - self.jerk, -self.acceleration), min(now.a + self.jerk, self.acceleration)
        return self._after(now, now.p + (now.v + min(max(_onset(-now.v, self.jerk), strongest), weakest)))

    def rests(self, now: Motion) -> bool:
        """Whether braking has come to its end."""
        return now.v == 0 and (now.a == 0 or self.jerk == math.inf)

    def moved(self, now: Motion, x: float) -> tuple[Motion, set[str]]:
        """The step to x, or as near as the limits allow; and the reasons why not to it, empty if it is."""
        wanted = min(max(x, self.low), self.high)
        reasons = {"bounds"} if wanted != x else set()
        if math.isnan(now.p):  # the robot is taken to rest at the first command
            return Motion(wanted, wanted=wanted), reasons
        slack = ROUNDING * (self.scale + abs(now.p) + abs(now.v) + abs(now.a))
        if self._passes(now, wanted, slack):
            return self._after(now, wanted, wanted), reasons
        v = wanted - now.p
        excess = {"velocity": abs(v) - self.velocity, "acceleration": abs(v - now.v) - self.acceleration}
        excess["jerk"] = abs(v - now.v - now.a) - self.jerk
        reasons |= {reason for reason, value in excess.items() if value > slack} or {"braking"}
        return self._after(now, self._nearest(now, wanted, slack), wanted), reasons

    def _passes(self, now: Motion, wanted: float, slack: float) -> bool:
        """Whether the wanted value may be the next command."""
        if wanted == self.braked(now).p:
            return True
        lowest, highest = self._reach(now)
        if not (lowest - slack <= wanted <= highest + slack and self._fits(now, wanted, slack)):
            return False
        if now.p == now.wanted:
            return True
        # Catching up. Reaching the wanted value too fast to stay with it would be passing it.
        v = wanted - now.p
        end, turn = _stopping(v - self._trend(now, wanted), v - now.v, self.acceleration, self.jerk)
        return abs(end) <= slack and abs(turn) <= slack

    def _reach(self, now: Motion) -> tuple[float, float]:
        """The least and the greatest command that keeps to all limits but the bounds, now and in braking."""
        least = max(now.a - self.jerk, -self.acceleration, _onset(-self.velocity - now.v, self.jerk))
        most = min(now.a + self.jerk, self.acceleration, _onset(self.velocity - now.v, self.jerk))
        return now.p + (now.v + least), now.p + (now.v + most)

    def _trend(self, now: Motion, wanted: float) -> float:
        """By how much the wanted value will change next: the lesser of its last two changes, 0 if they disagree."""
        trends = sorted((wanted - now.wanted, now.trend), key=abs)
        trend = trends[0] if trends[0] * trends[1] > 0 else 0.0  # also where one is nan
        return min(max(trend, -self.velocity), self.velocity)

    def _after(self, now: Motion, p: float, wanted: float = math.nan) -> Motion:
        p = min(max(p, self.low), self.high)  # against rounding
        return Motion(p, p - now.p, p - now.p - now.v, wanted, wanted - now.wanted)

    def _fits(self, now: Motion, p: float, slack: float) -> bool:
        """Whether the axis can be braked within the bounds after the command p."""
        v = p - now.p
        end, turn = _stopping(v, v - now.v, self.acceleration, self.jerk)
        return self.low - slack <= p + min(0.0, turn, end) and p + max(0.0, turn, end) <= self.high + slack

    def _nearest(self, now: Motion, wanted: float, slack: float) -> float:
        """The command after which braking ends as near to the wanted value as may be, but not past it.

        Were the nearest command itself taken, the axis would swing about the wanted value without end. Where the
        wanted value has been moving, braking is not to rest but to its velocity, so that the axis can join it.
        """
        trend = self._trend(now, wanted)

        def end(p: float) -> float:
            v = p - now.p
            return p + _stopping(v - trend, v - now.v, self.acceleration, self.jerk)[0]

        near, (lowest, highest) = self.braked(now).p, self._reach(now)
        upward = end(near) <= wanted
        far = highest if upward else lowest

        def allowed(p: float) -> bool:
            return (end(p) <= wanted if upward else end(p) >= wanted) and self._fits(now, p, slack / 2)

        if allowed(far):
            return far
        for _ in range(HALVINGS):
            middle = near + (far - near) / 2
            near, far = (middle, far) if allowed(middle) else (near, middle)
        return near


def _tail(a: float, jerk: float) -> float:
    """The velocity still to come while the acceleration returns from a to zero by `jerk` per step."""
    if jerk == math.inf:
        return 0.0
    steps = abs(a) // jerk
    return math.copysign(steps * abs(a) - jerk * steps * (steps + 1) / 2, a)


def _onset(v: float, jerk: float) -> float:
    """The acceleration a of the next step for which the velocity changes by v in all: a + _tail(a) = v."""
    if jerk == math.inf or math.isinf(v):
        return v
    steps = (math.sqrt(1 + 8 * abs(v) / jerk) - 1) // 2
    return math.copysign(abs(v) / (steps + 1) + jerk * steps / 2, v)


def _stopping(v: float, a: float, acceleration: float, jerk: float) -> tuple[float, float]:
    """The way of braking from velocity v and acceleration a: to its end, and to where it turns round (0: nowhere)."""
    if jerk == math.inf:
        return (0.0 if acceleration == math.inf else _tail(v, acceleration)), 0.0
    sign = 1.0 if v + _tail(a, jerk) >= 0 else -1.0
    v, a = sign * v, sign * a  # now braking is towards lower velocities
    way = turn = 0.0
    for _ in range(LEGS):
        change = -jerk
        # Steps of the strongest braking that cannot be its last are taken at once.
        if v < 0:  # until it turns round
            b = a - jerk / 2
            steps = math.ceil((b - math.sqrt(max(b * b + 2 * jerk * v, 0.0))) / jerk) - 1.0
        elif a >= jerk:
            steps = a // jerk
        elif a > 0:
            steps = 0.0
        elif a > -acceleration:
            left = v + _tail(a, jerk)  # falls by 2 |a| + jerk per step
            steps = min(acceleration + a, a + math.sqrt(a * a + jerk * left)) // jerk
        else:
            steps, change = math.ceil((v + _tail(a, jerk)) / acceleration) - 1.0, 0.0
        steps = max(steps, 0.0)
        way += steps * v + a * steps * (steps + 1) / 2 + change * steps * (steps + 1) * (steps + 2) / 6
        v, a = v + steps * a + change * steps * (steps + 1) / 2, a + steps * change
        turn = way if v < 0 else turn
        strongest = max(a - jerk, -acceleration)
        if v + strongest + _tail(strongest, jerk) <= 0:
            break
        v, a = v + strongest, strongest
        way += v
        turn = way if v < 0 else turn
    a = _onset(-v, jerk)
    steps = abs(a) // jerk
    way += v + a + math.copysign(abs(a) * steps * (steps - 1) / 2 - jerk * (steps - 1) * steps * (steps + 1) / 3, -a)
    return sign * way, sign * turn
