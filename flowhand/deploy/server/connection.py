"""A websocket connection whose peer cannot make the server read, parse or keep more than a fixed amount."""

from __future__ import annotations

import asyncio
import select
import time
from collections import Counter
from collections.abc import Callable, Hashable
from ipaddress import ip_address
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

SLICE_BYTES = 2**14  # parsed at a time, so that a flood of small frames is noticed before all of it is parsed
MAX_REQUEST_BYTES = 2**14  # of the HTTP request
MAX_UNSENT_BYTES = 2**20  # answers and pongs that the peer does not read
MAX_FRAMES = 1024  # in one burst; afterwards as many per second
HUNG_UP = getattr(select, "POLLRDHUP", 0)  # Linux tells of an end behind what is still unread; nobody else does


class Admission:
    """Which connections there are: those that have asked for nothing yet, oldest first, and those that are served."""

    def __init__(self, max_opening: int, refuse: Callable[[str], None]):
        self.opening: dict[GuardedConnection, None] = {}
        self.open: set[GuardedConnection] = set()
        self.refuse = refuse  # told the reason whenever a connection is ended
        self._max_opening = max_opening

    def arrived(self, connection: GuardedConnection) -> None:
        """Notes a new connection. If too many have not asked for anything, the place with the most loses its oldest."""
        self.opening[connection] = None
        if len(self.opening) > self._max_opening:
            crowd = Counter(each.place for each in self.opening)
            next(each for each in self.opening if crowd[each.place] == max(crowd.values())).end("opening")

    def held(self, principal: Hashable) -> int:
        """Open connections of a principal."""
        return sum(each.principal == principal for each in self.open)

    def left(self, connection: GuardedConnection) -> None:
        """Forgets a connection."""
        self.opening.pop(connection, None)
        self.open.discard(connection)


class GuardedConnection(ServerConnection):
    """Ends itself when its peer sends too much before the upgrade, too many frames, or does not read.

    Attributes:
        place: where its peer is (`place`).
        principal: with whom it shares the server's limits; set by the server when the key is known.
        on_left: called when the peer leaves, or says that it will.
    """

    admission: Admission  # set by the server in a class of its own
    place: str
    principal: Hashable
    on_left: Callable[[], None] | None = None

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._received = 0
        self._frames = 0.0  # recent ones; falls by MAX_FRAMES per second
        self._counted_s = time.monotonic()

    def end(self, reason: str) -> None:
        """Ends the connection without a word."""
        self.admission.left(self)
        self.admission.refuse(reason)
        self.transport.abort()

    def has_left(self) -> bool:
        """Whether the peer waits for nothing more: it has closed, or is about to."""
        if self.state is not State.OPEN or self.transport.is_closing():
            return True
        if self.transport.is_reading():
            return False  # its end would have been read
        # A peer that has asked ahead is not read further, and asyncio would see its end only behind that.
        file, poll = self.transport.get_extra_info("socket").fileno(), select.poll()
        if file < 0:
            return True
        poll.register(file, HUNG_UP)
        return bool(poll.poll(0))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        super().connection_made(transport)
        self.place = place(transport.get_extra_info("peername"))
        self.admission.arrived(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self.admission.left(self)
        super().connection_lost(exc)
        self._tell_if_left()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        now = time.monotonic()
        self._frames = max(0.0, self._frames - MAX_FRAMES * (now - self._counted_s))
        self._counted_s = now
        for start in range(0, len(data), SLICE_BYTES):
            super().data_received(data[start : start + SLICE_BYTES])
            self._received += min(SLICE_BYTES, len(data) - start)
            if excess := self._excess():
                self.end(excess)
                break
        self._tell_if_left()

    def _tell_if_left(self) -> None:
        if self.on_left is not None and self.state is not State.OPEN:
            self.on_left()

    def _excess(self) -> str:
        """What there is too much of, or nothing."""
        if self.request is None and self._received > MAX_REQUEST_BYTES:
            return "request size"
        if self._frames > MAX_FRAMES:
            return "frames"
        return "unread" if self.transport.get_write_buffer_size() > MAX_UNSENT_BYTES else ""

    def process_event(self, event: Any) -> None:
        """Called by websockets for the HTTP request and for every frame."""
        self._frames += 1
        super().process_event(event)


def place(peer: Any) -> str:
    """Where a peer is: its address, or the network of 2^64 addresses that one IPv6 host can have; "" if not known."""
    if not isinstance(peer, tuple):  # the peer may have left already
        return ""
    address = ip_address(str(peer[0]).partition("%")[0])
    if address.version == 4:
        return str(address)
    return str(address.ipv4_mapped or address.exploded[:19])
