"""Shares a server fairly among those who ask: nobody gets more by opening more connections or asking more often."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

BURST_S = 1.0  # one may be ahead of its rate by what it may send in this time
MANY = 4096  # known rates, from which on those that have been quiet are forgotten

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Waiting items of many owners, which take turns: one item each. For any thread.

    When it is full, the owner with the most items loses the newest of them, so no owner can keep another one out.

    Args:
        size: items, at most.
    """

    def __init__(self, size: int):
        self._size = size
        self._lines: OrderedDict[Hashable, deque[T]] = OrderedDict()  # none is empty; the first has the next turn
        self._count = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return self._count

    def put(self, owner: Hashable, item: T) -> T | None:
        """Adds an item; returns the one that has to go for it, which may be the same, or None."""
        with self._changed:
            self._lines.setdefault(owner, deque()).append(item)
            self._count += 1
            self._changed.notify()
            if self._count <= self._size:
                return None
            crowd = max(self._lines, key=lambda each: (len(self._lines[each]), each == owner))
            return self._taken(crowd, len(self._lines[crowd]) - 1)

    def get(self, timeout_s: float | None = None) -> T | None:
        """The next item, waited for; None when the time is up or the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._count or self._closed, timeout_s)
            if not self._count or self._closed:
                return None
            owner = next(iter(self._lines))
            item = self._taken(owner, 0)
            if owner in self._lines:
                self._lines.move_to_end(owner)
            return item

    def drop(self, owner: Hashable, item: T) -> None:
        """Takes an item out, if it is still there."""
        with self._changed:
            for place, other in enumerate(self._lines.get(owner, ())):
                if other is item:
                    self._taken(owner, place)
                    return

    def close(self) -> None:
        """Gives nothing any more, to those neither who wait already."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _taken(self, owner: Hashable, place: int) -> T:
        line = self._lines[owner]
        item = line[place]
        del line[place]
        self._count -= 1
        if not line:
            del self._lines[owner]
        return item


class RateLimit:
    """So many requests per second of each owner; one that is faster is made to wait, and refused if it goes on.

    Args:
        hz: requests per second.
    """

    def __init__(self, hz: float):
        self._period_s = 1 / hz
        self._due: dict[Hashable, float] = {}  # when the next request of an owner could be served, less the burst

    def wait_s(self, owner: Hashable) -> float | None:
        """Seconds until the request that has just come may be served; None if the owner has too many that wait."""
        now = time.monotonic()
        due = max(self._due.get(owner, 0.0) + self._period_s, now - BURST_S)
        if due - now > self._period_s + BURST_S:
            return None
        self._due[owner] = due
        if len(self._due) > MANY:
            self._due = {each: due for each, due in self._due.items() if due > now - BURST_S}
        return max(0.0, due - now)
