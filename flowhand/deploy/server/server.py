"""The policy server: openpi's websocket protocol, with a key, limits on everything, and inference off the event loop.

A connection gets the metadata, then an answer for each request: `actions` (T, A) float32 in physical units,
`policy_timing.infer_ms`, `server_timing.infer_ms` and, from the second request on, `server_timing.prev_total_ms`. An
error is one line of text. After "busy" and "late" the connection goes on; after any other it is closed with code 1011.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import hmac
import logging
import signal
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from flowhand.contracts.execution import pace_s
from flowhand.contracts.noise import noise
from flowhand.contracts.planner import Planner
from flowhand.control.background import Logger
from flowhand.control.controller import steady_rows

from ..client import pack, unpack
from .batching import Batcher, RequestError
from .config import ServerConfig
from .connection import Admission, GuardedConnection
from .fairness import RateLimit
from .metrics import Metrics
from .session import DECISION, RESET, Session

LOG = Logger(__name__)
WIRE_LOG = logging.getLogger(f"{__name__}.wire")
WIRE_LOG.setLevel(logging.CRITICAL)  # what websockets says of broken peers; anyone could fill the disk with it
STUCK_S = 10.0  # an inference call that takes longer makes the server unhealthy
CLOSE_S = 2.0  # time for the closing handshake


class PolicyServer:
    """Serves one policy to any number of robots, each on a connection of its own.

    Args:
        policy: decides; anything with `plan`, `spec`, `chunk` and `noise_shape`.
        config: where to listen, and the limits.
        key: what clients must send as `Authorization: Api-Key KEY`, or several such keys with white space between
            them; None lets everyone in. Clients share the server's limits with those of the same key and address.
        tls: certificate and its private key; None does not encrypt.

    Raises:
        ValueError: there is no key and the address is not loopback, or an observation has the name of a key of the
            protocol.
    """

    def __init__(
        self, policy: Planner, config: ServerConfig, key: str | None = None, tls: ssl.SSLContext | None = None
    ):
        if key is None and not is_loopback(config.host):
            raise ValueError(
                f"host={config.host!r} can be reached from outside, which needs a key (see docs/deploy.md)"
            )
        if taken := {RESET, DECISION} & policy.spec.observation.keys():
            raise ValueError(f"the observation {sorted(taken)} has the name of a key of the protocol; rename it")
        self._policy = policy
        self._config = config
        self._keys = None if key is None else [_digest(f"Api-Key {each}") for each in key.split()]
        self._tls = tls
        self._metrics = Metrics()
        self._admission = Admission(config.max_opening, lambda reason: self._metrics.refused.labels(reason).inc())
        self._rate = RateLimit(config.max_request_hz)
        self._answering: set[ServerConnection] = set()
        self._draining = False
        self._batcher: Batcher
        self._server: Server

    async def start(self) -> int:
        """Warms the policy up and listens; returns the port.

        Raises:
            ValueError: the address cannot be listened on.
        """
        config = self._config = replace(self._config, inference_batch=await asyncio.to_thread(self._warm_up))
        self._metadata = pack(metadata(self._policy, config))
        self._batcher = Batcher(self._policy, config, self._metrics)
        self._metrics.queue_depth.set_function(self._batcher.depth)
        self._metrics.connections.set_function(lambda: len(self._admission.open))

        class Connection(GuardedConnection):
            admission = self._admission

        try:
            self._server = await self._listen(Connection)
        except OSError as error:
            self._batcher.stop()
            raise ValueError(_cannot_listen(config, error)) from error
        return next(iter(self._server.sockets)).getsockname()[1]

    async def _listen(self, connection: type[GuardedConnection]) -> Server:
        config = self._config
        return await serve(
            self._serve,
            config.host,
            config.port,
            ssl=self._tls,
            process_request=self._admit,
            create_connection=connection,
            origins=[None],  # no browser: a web page could otherwise reach a server on loopback
            compression=None,
            max_size=message_bytes(self._policy, config),
            max_queue=1,
            open_timeout=config.open_timeout_s,
            close_timeout=CLOSE_S,
            ping_interval=config.ping_s,
            ping_timeout=config.ping_s,
            server_header=None,
            logger=WIRE_LOG,
        )

    async def run(self, announce: Callable[[int], None]) -> None:
        """Serves until SIGTERM or SIGINT, then drains; `announce` is told the port."""
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        announce(await self.start())
        await stop.wait()
        await self.drain()

    async def drain(self) -> None:
        """Takes nothing new, answers what it has, and closes every connection with code 1012 (service restart)."""
        self._draining = True
        self._server.close(close_connections=False)
        idle = [connection for connection in self._admission.open if connection not in self._answering]
        for connection in self._admission.opening:
            connection.transport.abort()
        try:
            async with asyncio.timeout(self._config.drain_s):
                await asyncio.gather(*(c.close(CloseCode.SERVICE_RESTART, "the server stops") for c in idle))
                await self._server.wait_closed()
        except TimeoutError:
            for connection in list(self._admission.open):
                connection.end("drain")
        self._batcher.stop()

    def _warm_up(self) -> int:
        """Rows of an inference call, and one such call, so that no robot waits for what a policy does only once."""
        rows, chunk = steady_rows(self._policy, self._config.inference_batch), self._policy.chunk
        features = self._policy.spec.observation.items()
        zeros = {name: np.zeros((rows, chunk.history, *feature.shape), feature.dtype) for name, feature in features}
        draws = np.stack([noise(self._config.noise_seed, 0, row, self._policy.noise_shape) for row in range(rows)])
        self._policy.plan(zeros, draws)
        return rows

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answers plain HTTP requests, and those that may not have a websocket; None for those that may."""
        assert isinstance(connection, GuardedConnection)
        path = request.path.partition("?")[0]
        if getattr(request, "method", "GET") != "GET":
            return connection.respond(HTTPStatus.METHOD_NOT_ALLOWED, "expected GET\n")
        if path == "/healthz":
            healthy = self._batcher.stuck_s() < STUCK_S and not self._draining
            if healthy:
                return connection.respond(HTTPStatus.OK, "OK\n")
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "not healthy\n")
        if (number := self._key_number(request)) is None:
            return self._refuse(connection, HTTPStatus.UNAUTHORIZED, "expected the header Authorization: Api-Key KEY\n")
        connection.principal = number, connection.place
        if self._rate.wait_s(connection.principal) is None:
            return self._refuse(connection, HTTPStatus.TOO_MANY_REQUESTS, "too fast; ask again later\n")
        if path == "/metrics":
            return connection.respond(HTTPStatus.OK, self._metrics.text())
        if path != "/":
            return self._refuse(connection, HTTPStatus.NOT_FOUND, "there is /, /healthz and /metrics\n")
        if self._draining or len(self._admission.open) >= self._config.max_connections:
            return self._refuse(connection, HTTPStatus.SERVICE_UNAVAILABLE, "no room for another connection\n")
        if self._admission.held(connection.principal) >= self._config.max_connections_each:
            text = f"{self._config.max_connections_each} connections of this key and address are open already\n"
            return self._refuse(connection, HTTPStatus.TOO_MANY_REQUESTS, text)
        self._admission.open.add(connection)
        return None

    def _key_number(self, request: Request) -> int | None:
        """Which key was given; None if none. In constant time: neither content nor length of a key shows in it."""
        if self._keys is None:
            return 0
        given = _digest("".join(request.headers.get_all("Authorization")))
        same = [hmac.compare_digest(given, key) for key in self._keys]
        return same.index(True) if any(same) else None

    def _refuse(self, connection: ServerConnection, status: HTTPStatus, text: str) -> Response:
        self._metrics.refused.labels(status.phrase.lower()).inc()
        return connection.respond(status, text)

    async def _serve(self, connection: ServerConnection) -> None:
        """One connection, from the metadata to its end."""
        assert isinstance(connection, GuardedConnection)
        self._admission.opening.pop(connection, None)
        try:
            await self._send(connection, self._metadata)
            await self._converse(connection)
            await connection.close(CloseCode.SERVICE_RESTART, "the server stops")
        except ConnectionClosed:
            pass
        except Exception as error:
            LOG.error("a connection failed", error=error)
            raise
        finally:
            self._answering.discard(connection)

    async def _converse(self, connection: GuardedConnection) -> None:
        """Answers requests, until the connection is closed or the server drains."""
        session, previous_ms = Session(self._policy), None
        while not self._draining:
            message = await connection.recv()
            start = time.perf_counter()
            self._answering.add(connection)
            frame, goes_on = await self._reply(connection, session, message, previous_ms)
            await self._send(connection, frame)
            self._answering.discard(connection)
            if not goes_on:
                await connection.close(CloseCode.INTERNAL_ERROR, "the text before says why")
            previous_ms = 1e3 * (time.perf_counter() - start)
            self._metrics.request_seconds.observe(previous_ms / 1e3)

    async def _reply(
        self, connection: GuardedConnection, session: Session, message: str | bytes, previous_ms: float | None
    ) -> tuple[bytes | str, bool]:
        """The frame to send for a request, and whether the connection goes on after it."""
        self._metrics.requests.inc()
        try:
            return pack(await self._answer(connection, session, message, previous_ms)), True
        except RequestError as error:
            failure = error
        except ValueError as error:
            failure = RequestError("invalid", str(error), goes_on=False)
        except Exception as error:  # whatever happened, the client gets a line of text and the log the traceback
            LOG.error("a request failed", error=error)
            failure = RequestError("internal", "the server failed; its log says why", goes_on=False)
        self._metrics.errors.labels(failure.reason).inc()
        return str(failure), failure.goes_on

    async def _answer(
        self, connection: GuardedConnection, session: Session, message: str | bytes, previous_ms: float | None
    ) -> dict[str, Any]:
        start = time.perf_counter()
        if (early_s := self._rate.wait_s(connection.principal)) is None:
            text = f"more than {self._config.max_request_hz:g} requests per second of this key and address"
            raise RequestError("busy", f"{text}; ask again later", goes_on=True)
        if early_s:
            await asyncio.sleep(early_s)
        if isinstance(message, str):
            raise ValueError("the request is text, expected a binary frame")
        observation = session.read(unpack(message))
        actions, infer_s = await self._batcher.plan(observation, session.seed, session.decision, connection)
        session.decision += 1
        timing = {"infer_ms": 1e3 * (time.perf_counter() - start)}
        if previous_ms is not None:
            timing["prev_total_ms"] = previous_ms
        return {"actions": actions, "policy_timing": {"infer_ms": 1e3 * infer_s}, "server_timing": timing}

    async def _send(self, connection: GuardedConnection, frame: bytes | str) -> None:
        """Sends, or ends the connection of a client that does not read."""
        timer = asyncio.get_running_loop().call_later(self._config.write_timeout_s, connection.end, "unread")
        try:
            await connection.send(frame)
        finally:
            timer.cancel()


def metadata(policy: Planner, config: ServerConfig) -> dict[str, Any]:
    """What the server tells every client: what to send, and what the answers mean."""
    chunk = policy.chunk
    return {
        "protocol": "flowhand 1",
        "spec": policy.spec.to_dict(),
        "control_dt_s": pace_s(policy.spec),
        "history": chunk.history,
        "prediction_horizon": chunk.prediction_horizon,
        "execution_horizon": chunk.execution_horizon,
        "chunk_shape": [chunk.prediction_horizon, policy.spec.action.size],
        "inference_batch": config.inference_batch,
        "noise_seed": config.noise_seed,
        "deadline_s": config.deadline_s,
        "max_message_bytes": message_bytes(policy, config),
    }


def message_bytes(policy: Planner, config: ServerConfig) -> int:
    """Largest request: the configured size, or a history of 8-byte numbers or single bytes, and 64 KiB for the rest."""
    sizes = [feature.size * (1 if feature.dtype == "uint8" else 8) for feature in policy.spec.observation.values()]
    return config.max_message_bytes or policy.chunk.history * sum(sizes) + 2**16


def is_loopback(host: str) -> bool:
    """Whether every address of the host is this machine's own loopback; `ValueError` if it has none."""
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise ValueError(f"host={host!r} has no address: {error}") from error
    return all(ip_address(str(address).partition("%")[0]).is_loopback for address in addresses)


def _cannot_listen(config: ServerConfig, error: OSError) -> str:
    """Why the server cannot listen, and what to do."""
    where = f"host={config.host!r} port={config.port}"
    advice = {
        errno.EADDRINUSE: "something listens there; stop it, or choose another port (0: any free one)",
        errno.EACCES: "this user may not; choose a port of 1024 or above",
        errno.EADDRNOTAVAIL: "this machine has no such address; choose one of its own",
    }.get(error.errno or 0, "choose another host or port")
    return f"{where} cannot be listened on ({error.strerror or error}): {advice}"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
