"""A websocket connection whose peer cannot make the server read, parse or keep more than a fixed amount."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import ServerConnection

SLICE_BYTES = 2**14  # parsed at a time, so that a flood of small frames is noticed before all of it is parsed
MAX_REQUEST_BYTES = 2**14  # of the HTTP request
MAX_UNSENT_BYTES = 2**20  # answers and pongs that the peer does not read
MAX_FRAMES = 1024  # in one burst; afterwards as many per second


class Admission:
    """Which connections there are: those that have asked for nothing yet, oldest first, and those that are served."""

    def __init__(self, max_opening: int, refuse: Callable[[str], None]):
        self.opening: dict[GuardedConnection, None] = {}
        self.open: set[GuardedConnection] = set()
        self.refuse = refuse  # told the reason whenever a connection is ended
        self._max_opening = max_opening

    def arrived(self, connection: GuardedConnection) -> None:
        """Notes a new connection; the oldest one that has still not asked for anything may have to go."""
        self.opening[connection] = None
        if len(self.opening) > self._max_opening:
            next(iter(self.opening)).end("opening")

    def left(self, connection: GuardedConnection) -> None:
        """Forgets a connection."""
        self.opening.pop(connection, None)
        self.open.discard(connection)


class GuardedConnection(ServerConnection):
    """Ends itself when its peer sends too much before the upgrade, too many frames, or does not read."""

    admission: Admission  # set by the server in a class of its own

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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        super().connection_made(transport)
        self.admission.arrived(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self.admission.left(self)
        super().connection_lost(exc)

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
