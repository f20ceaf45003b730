"""Chrome DevTools protocol over a pipe: commands out, answers and events in, each a JSON text that ends with a zero."""

from __future__ import annotations

import atexit
import json
import os
import select
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .chromium import BrowserError, Process

START_S = 60.0  # longest wait for a browser to start
Command = tuple[str, Mapping[str, Any]]
Listener = Callable[[str, Mapping[str, Any]], None]


class NoAnswerError(BrowserError):
    """No answer in time."""


class RefusedError(BrowserError):
    """The browser answered a command with an error."""


class Browser:
    """One browser process; its methods may be called from several threads, one of which talks to it at a time.

    Args:
        hosts: names of hosts that its pages may reach.

    Raises:
        FileNotFoundError: there is no browser.
        BrowserError: it does not start.
    """

    def __init__(self, hosts: Sequence[str] = ()):
        self._process = Process(hosts)
        self._lock = threading.RLock()
        self._buffer = bytearray()
        self._next = 0
        self._waiting: set[int] = set()
        self._answers: dict[int, Mapping[str, Any]] = {}
        self._listeners: dict[str, Listener] = {}
        self.closed = False
        try:
            self.version: str = self.call("Browser.getVersion", {}, timeout_s=START_S)["product"]
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the browser's first process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it can be told something."""
        return not self.closed and not self._process.died()

    def listen(self, session: str, listener: Listener | None) -> None:
        """Has the events of a session told to the listener; None: to nobody any more."""
        if listener is None:
            self._listeners.pop(session, None)
        else:
            self._listeners[session] = listener

    def call(
        self, method: str, params: Mapping[str, Any] | None = None, session: str = "", timeout_s: float = 10.0
    ) -> dict[str, Any]:
        """Sends a command and waits for its answer.

        Raises:
            NoAnswerError: no answer in time.
            RefusedError: the answer is an error.
            BrowserError: the browser has died.
        """
        return self.calls([(method, params or {})], session, timeout_s)[0]

    def calls(self, commands: Sequence[Command], session: str, timeout_s: float) -> list[dict[str, Any]]:
        """Sends commands one after the other without waiting in between; their answers. Raises as `call`."""
        with self._lock:
            ids = [self._send(method, params, session) for method, params in commands]
            self._waiting.update(ids)
            until = time.monotonic() + timeout_s
            try:
                while not all(each in self._answers for each in ids):
                    self._read(until, commands[0][0])
                answers = [self._answers.pop(each) for each in ids]
            finally:
                self._waiting.difference_update(ids)
                for each in ids:
                    self._answers.pop(each, None)
        for (method, _), answer in zip(commands, answers, strict=True):
            if "error" in answer:
                raise RefusedError(f"the browser refuses {method}: {answer['error'].get('message', answer['error'])}")
        return [dict(answer.get("result", {})) for answer in answers]

    def post(self, method: str, params: Mapping[str, Any], session: str = "") -> None:
        """Sends a command whose answer nobody waits for; a listener may do so."""
        self._send(method, params, session)

    def wait(self, until: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Reads events until the condition holds; `NoAnswerError` if it does not in time."""
        end = time.monotonic() + timeout_s
        with self._lock:
            while not until():
                self._read(end, what)

    def close(self) -> None:
        """Ends the browser and all that it started, and removes its profile."""
        with self._lock:
            if not self.closed:
                self.closed = True
                self._process.end()

    def _send(self, method: str, params: Mapping[str, Any], session: str) -> int:
        self._next += 1
        message = {"id": self._next, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        data = json.dumps(message, separators=(",", ":")).encode() + b"\0"
        if self.closed:
            raise BrowserError("the browser is closed")
        try:
            while data:
                data = data[os.write(self._process.write, data) :]
        except OSError as error:
            raise self._gone() from error
        return self._next

    def _read(self, until: float, what: str) -> None:
        """Takes in what the browser says next."""
        if self.closed:
            raise BrowserError("the browser is closed")
        poll = select.poll()
        poll.register(self._process.read, select.POLLIN)
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            if died := self._process.died():
                raise BrowserError(f"the browser has died ({died})")
            raise NoAnswerError(f"no answer to {what} in time")
        data = os.read(self._process.read, 2**20)
        if not data:
            raise self._gone()
        self._buffer += data
        if 0 in data:
            *messages, rest = self._buffer.split(b"\0")
            self._buffer = bytearray(rest)
            for message in messages:
                self._take(json.loads(message))

    def _take(self, message: Mapping[str, Any]) -> None:
        if "id" in message:
            if message["id"] in self._waiting:
                self._answers[message["id"]] = message
        elif listener := self._listeners.get(message.get("sessionId", "")):
            listener(message["method"], message.get("params", {}))

    def _gone(self) -> BrowserError:
        """The error that says how the browser ended; its pipe closes a moment before the process is gone."""
        for _ in range(200):
            if died := self._process.died():
                return BrowserError(f"the browser has died ({died})")
            time.sleep(0.005)
        return BrowserError("the browser has closed its pipe")


_SHARED: dict[tuple[int, tuple[str, ...]], Browser] = {}
_LOCK = threading.Lock()
_USERS: dict[int, int] = {}


def acquire(hosts: Sequence[str] = ()) -> Browser:
    """The browser of this process, started by the first who wants it; `release` gives it back. Raises as `Browser`."""
    key = os.getpid(), tuple(sorted(hosts))
    with _LOCK:
        browser = _SHARED.get(key)
        if browser is None or not browser.running:
            browser = _SHARED[key] = Browser(hosts)
        _USERS[id(browser)] = _USERS.get(id(browser), 0) + 1
        return browser


def release(browser: Browser) -> None:
    """Ends the browser when the last who wanted it has given it back."""
    with _LOCK:
        left = _USERS[id(browser)] = _USERS.get(id(browser), 1) - 1
        if left <= 0:
            del _USERS[id(browser)]
            for key in [key for key, each in _SHARED.items() if each is browser]:
                del _SHARED[key]
            browser.close()


@atexit.register
def _close_all() -> None:
    for (pid, _), browser in list(_SHARED.items()):
        if pid == os.getpid():
            browser.close()
