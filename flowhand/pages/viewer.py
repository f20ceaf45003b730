"""A live view of an evaluation or a control in a browser tab: an observer that serves one page on this machine alone.

The page shows the episode of lane 0: pictures, the actions, the chunk that is followed beside others that the policy
could have decided on (the fan), and a monitor's scores. An evaluation can be paused and stepped; a control can be
stopped, and what is sent to the robot never waits for the page.

Whoever opens the page must know its address, which holds a secret; other web pages that are open in the same browser
cannot connect. It takes `websockets` (the extra `viewer`).
"""

from __future__ import annotations

import hmac
import json
import secrets
import struct
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np

from flowhand.contracts.observers import (
    Decision,
    EpisodeBegins,
    EpisodeEnds,
    Observer,
    Scored,
    StepTaken,
    Stopped,
)
from flowhand.contracts.planner import Planner

LOOPBACK = "127.0.0.1"
FRAME_S = 0.05  # least time between two updates of a page
FAN_S = 0.2  # least time between two fans of a control
MOST_STEPS = 2000  # of an episode that the page shows
MOST_MESSAGE_BYTES = 1000  # from the page
COMMANDS = ("play", "pause", "step", "fast", "real", "stop")
PAGE = Path(__file__).with_name("viewer.html")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src ws://127.0.0.1:*"


class Viewer(Observer):
    """Serves the page while it watches; `url` is its address.

    Args:
        planner: samples the fan, where given; it is asked in the thread in which the viewer is told of decisions.
        samples: chunks of the fan.
        control_dt_s: seconds of a control step; None: there is no clock to keep.
        names: of the dimensions of the action.
        rendered: whether to ask a rollout for pictures of the world.
        stop: ends a control; without, this watches an evaluation, which can be paused.
        port: 0: a free one.

    Raises:
        ImportError: websockets is not installed.
        OSError: the port is taken.
    """

    def __init__(
        self,
        planner: Planner | None = None,
        samples: int = 16,
        control_dt_s: float | None = None,
        names: tuple[str, ...] = (),
        rendered: bool = True,
        stop: Callable[[str], None] | None = None,
        port: int = 0,
    ):
        try:
            from websockets.sync.server import serve
        except ImportError as error:
            raise ImportError('the live view needs websockets: pip install "flowhand[viewer]"') from error
        self._planner, self._samples, self._dt, self._end = planner, samples, control_dt_s, stop
        self._every = max(1, round(FRAME_S / (control_dt_s or FRAME_S))) if rendered else 0
        self._changed = threading.Condition()
        self._version = self._clients = self._single = 0
        self._paused, self._fast, self._over = False, False, False
        self._due_s = self._fanned_s = 0.0
        self._pictures: dict[str, tuple[int, np.ndarray]] = {}  # by camera: version, and (H, W, C) uint8
        self._state: dict[str, Any] = {"names": list(names), "dt": control_dt_s, "control": stop is not None}
        self._state |= {"episodes": 0, "successes": 0, "note": "", "ended": ""}
        self._begin("", None)
        self._secret = secrets.token_urlsafe(24)
        self._server = serve(
            self._connected,
            LOOPBACK,
            port,
            process_request=self._answer_http,
            max_size=MOST_MESSAGE_BYTES,
            compression=None,
            close_timeout=1.0,  # a page that does not answer holds up no end
        )
        self._port = self._server.socket.getsockname()[1]
        self.url = f"http://{LOOPBACK}:{self._port}/{self._secret}/"
        threading.Thread(target=self._server.serve_forever, name="viewer", daemon=True).start()

    def pictures(self, lane: int, seed: int) -> int:
        """Twenty a second of the first lane."""
        return self._every if lane == 0 else 0

    def episode_begins(self, event: EpisodeBegins) -> None:
        """Clears the page."""
        if event.lane == 0:
            with self._changed:
                self._begin(event.task, event.seed)
                self._see(event.observation, event.picture)
            self._due_s = time.monotonic()

    def decision(self, event: Decision) -> None:
        """Shows the chunk, and draws the fan beside it where somebody looks."""
        if event.lane == 0:
            fan = self._fan(event)
            with self._changed:
                self._state["chunk"] = {
                    "step": event.step,
                    "values": event.chunk.tolist(),
                    "fan": np.round(fan.astype(float), 5).tolist(),
                    "delay": event.delay,
                    "ms": 1e3 * event.seconds,
                }
                self._update()

    def scored(self, event: Scored) -> None:
        """Shows each score as a share of its limit."""
        shares = {
            name: score / event.limits[name] if event.limits[name] else float(score > 0)
            for name, score in event.scores.items()
        }
        with self._changed:
            self._state["scores"] = [*self._state["scores"], {name: float(share) for name, share in shares.items()}]
            self._update()

    def step(self, event: StepTaken) -> None:
        """Shows the action; in an evaluation this waits where the page says so."""
        if event.lane:
            return
        with self._changed:
            sent = None if event.sent is None else np.round(event.sent.astype(float), 5).tolist()
            self._state["actions"] = [*self._state["actions"], sent][-MOST_STEPS:]
            self._state["step"] = event.step + 1
            self._state["solved"] = bool(event.success)
            self._see(event.observation, event.picture)
            if self._end is None:
                self._hold()

    def episode_ends(self, event: EpisodeEnds) -> None:
        """Counts it, of whichever lane."""
        with self._changed:
            self._state["episodes"] += 1
            self._state["successes"] += event.ended == "success"
            self._update()

    def stop(self, event: Stopped) -> None:
        """Says so on the page, and ends the server; a second call does nothing."""
        if self._over:
            return
        with self._changed:
            self._state["ended"] = event.reason or "all episodes are over"
            self._over = True
            self._update()
        time.sleep(2 * FRAME_S * bool(self._clients))  # for the last update
        self._server.shutdown()

    def _begin(self, task: str, seed: int | None) -> None:
        self._state |= {"task": task, "seed": seed, "step": 0, "first": 0, "solved": False}
        self._state |= {"actions": [], "chunk": None, "scores": []}

    def _see(self, observation: Mapping[str, np.ndarray] | None, picture: np.ndarray | None) -> None:
        """Takes the pictures there are, of the world and of the cameras that the policy sees through."""
        seen = {"": picture} if picture is not None else {}
        for name, value in (observation or {}).items():
            if value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] in (1, 3):
                seen[name] = np.array(value)
        self._pictures |= {name: (self._version + 1, value) for name, value in seen.items()}
        self._update()

    def _update(self) -> None:
        self._version += 1
        self._changed.notify_all()

    def _hold(self) -> None:
        """Waits until the next step is due: at once, in real time, or when the page asks for it."""
        dt = self._dt or 0.0
        self._due_s = max(self._due_s + dt, time.monotonic() - dt)
        while self._clients and not self._over:
            if self._single:
                self._single -= 1
                return
            left_s = 3600.0 if self._paused else 0.0 if self._fast else self._due_s - time.monotonic()
            if left_s <= 0 or (not self._changed.wait(left_s) and not self._paused):
                return

    def _fan(self, event: Decision) -> np.ndarray:
        """Chunks (S, T, A) that the policy decides on with other noise; none where nobody looks."""
        now_s = time.monotonic()
        if self._planner is None or not self._clients or (self._end and now_s < self._fanned_s + FAN_S):
            return event.chunk[None]
        self._fanned_s = now_s
        rows = {name: np.repeat(value[None], self._samples, 0) for name, value in event.observation.items()}
        random = np.random.default_rng([event.seed, event.step])  # of its own: the policy's noise is not touched
        noise = random.standard_normal((self._samples, *self._planner.noise_shape), np.float32)
        try:
            return np.asarray(self._planner.plan(rows, noise))
        except Exception as error:  # of any kind: what is seen without a fan is worth seeing
            self._planner = None
            self._state["note"] = f"no fan: {type(error).__name__}: {error}"
            return event.chunk[None]

    def _answer_http(self, connection: Any, request: Any) -> Any:
        """The page to those who know the address; the socket to those who come from the page."""
        own = f"{LOOPBACK}:{self._port}"
        known = hmac.compare_digest(request.path.encode(), f"/{self._secret}/".encode())
        socket = hmac.compare_digest(request.path.encode(), f"/{self._secret}/socket".encode())
        if request.headers.get_all("Host") != [own]:  # another name that leads here
            return connection.respond(HTTPStatus.FORBIDDEN, "wrong host\n")
        if socket and request.headers.get("Origin") == f"http://{own}":
            return None
        if not known:
            return connection.respond(HTTPStatus.NOT_FOUND, "no such page\n")
        answer = connection.respond(HTTPStatus.OK, PAGE.read_text("utf-8"))
        del answer.headers["Content-Type"]
        answer.headers["Content-Type"] = "text/html; charset=utf-8"
        answer.headers["Content-Security-Policy"] = POLICY
        answer.headers["Referrer-Policy"] = "no-referrer"
        return answer

    def _connected(self, connection: Any) -> None:
        """One page: a thread sends what is new, this one takes its commands."""
        with self._changed:
            self._clients += 1
            self._update()
        sender = threading.Thread(target=self._send, args=(connection,), name="viewer page", daemon=True)
        sender.start()
        from websockets.exceptions import ConnectionClosed

        try:
            for message in connection:
                self._obey(str(message))
        except ConnectionClosed:  # without a farewell, as tabs do
            pass
        finally:
            with self._changed:
                self._clients -= 1
                self._paused &= self._clients > 0  # nobody is left who could go on
                self._update()

    def _obey(self, command: str) -> None:
        with self._changed:
            if command == "stop" and self._end:
                self._end("viewer")
            elif command in ("play", "pause"):
                self._paused = command == "pause"
            elif command in ("fast", "real"):
                self._fast = command == "fast"
            elif command == "step":
                self._paused, self._single = True, 1
            self._update()

    def _send(self, connection: Any) -> None:
        """Sends the state and new pictures, at most twenty times a second; what a slow page misses it never sees."""
        from websockets.exceptions import ConnectionClosed

        sent = -1
        try:
            while True:
                with self._changed:
                    while self._version == sent and not self._over:
                        self._changed.wait(1.0)
                    over, before, sent = self._over, sent, self._version
                    state = {**self._state, "paused": self._paused, "fast": self._fast}
                    pictures = {n: image for n, (version, image) in self._pictures.items() if version > before}
                for name, image in pictures.items():
                    connection.send(picture_message(name, image))
                connection.send(json.dumps(state))
                if over:
                    connection.close()
                    return
                time.sleep(FRAME_S)
        except ConnectionClosed:
            return


def picture_message(name: str, image: np.ndarray) -> bytes:
    """Height, width, channels and length of the name as four little-endian uint32, the name, and the pixels."""
    height, width, channels = image.shape
    text = name.encode()
    return struct.pack("<4I", height, width, channels, len(text)) + text + np.ascontiguousarray(image).tobytes()
