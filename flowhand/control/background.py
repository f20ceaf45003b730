"""What the control of a robot must not wait for: log lines, records, functions of a user. Standard library only.

A pipe that nobody empties, a disk that hangs or a lock held elsewhere stop whoever writes. So a thread that a robot
depends on hands such work to another one, through a queue that is bounded: what does not fit is dropped and counted.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

MOST_LINES = 1000  # of a log that wait to be written
EXIT_S = 1.0  # for the lines that still wait when the program ends
MOST_CHARACTERS = 300  # of an error in words


class Background:
    """A thread of its own that does what it is handed, in order.

    Args:
        name: of the thread.
        most: tasks that may wait.

    Attributes:
        dropped: tasks that did not fit, and those that raised.
    """

    def __init__(self, name: str, most: int):
        self.dropped = 0
        self._name, self.most = name, most
        self._tasks: queue.SimpleQueue[tuple[Callable[..., Any], tuple] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False

    def do(self, task: Callable[..., Any], *arguments: Any) -> bool:
        """Hands a task over, and returns at once; whether there was room for it."""
        if self._tasks.qsize() >= self.most:
            self.dropped += 1
            return False
        self._tasks.put((task, arguments))
        if self._thread is None or not self._thread.is_alive():  # not alive: in a process that was forked
            with self._starting:
                if self._thread is None or not self._thread.is_alive():
                    self._closed = False
                    self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                    self._thread.start()
        return True

    def drain(self, limit_s: float) -> bool:
        """Waits until all that was handed over is done, but no longer than the limit; whether it is."""
        if self._thread is None or not self._thread.is_alive():
            return True
        if self._closed:  # it takes nothing more, and ends when all is done
            self._thread.join(limit_s)
            return not self._thread.is_alive()
        done = threading.Event()
        self._tasks.put((done.set, ()))
        return done.wait(limit_s)

    def close(self) -> None:
        """Ends the thread after what it was handed; one that hangs ends with the process."""
        self._closed = True
        self._tasks.put(None)

    def _work(self) -> None:
        while (given := self._tasks.get()) is not None:
            task, arguments = given
            try:
                task(*arguments)
            except BaseException:  # even SystemExit: the thread must live, and what is lost is counted
                self.dropped += 1
            del given, task, arguments  # or the last of them would be kept until the next one


class TimeLimited:
    """A function that is waited for no longer than `limit_s`; while a call hangs further ones fail at once.

    Args:
        function: may hang or raise.
        limit_s: longest wait for an answer, in seconds.
    """

    def __init__(self, function: Callable[..., Any], limit_s: float):
        self.function, self.limit_s = function, limit_s
        self._background = Background("time-limited", 1)
        self._last: Future[Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """The function's answer.

        Raises:
            TimeoutError: it has not answered in time.
            BaseException: what the function raised.
        """
        if self._last is not None and not self._last.done():
            raise TimeoutError("an earlier call has still not returned")
        self._last = future = Future()
        self._background.do(self._settle, future, arguments)
        try:
            return future.result(self.limit_s)
        except TimeoutError:
            if future.done():  # its own
                raise
            raise TimeoutError(f"no answer within {self.limit_s:g} s") from None

    def close(self) -> None:
        """Ends the thread."""
        self._background.close()

    def _settle(self, future: Future[Any], arguments: tuple) -> None:
        try:
            future.set_result(self.function(*arguments))
        except BaseException as error:  # as every Future does: it is raised where the result is asked for
            future.set_exception(error)


LINES = Background("log", MOST_LINES)
atexit.register(LINES.drain, EXIT_S)


class Logger:
    """A logger whose calls never wait: the handlers run in the thread of `LINES`."""

    def __init__(self, name: str):
        self._logger = logging.getLogger(name)

    def log(self, level: int, message: str, *arguments: Any, error: BaseException | None = None) -> None:
        """Logs, with the traceback of an error; the arguments are put into the message later, by the other thread."""
        if self._logger.isEnabledFor(level):
            LINES.do(_emit, self._logger, level, message, arguments, error)

    def debug(self, message: str, *arguments: Any) -> None:
        """Logs what only those want to see who look for it."""
        self.log(logging.DEBUG, message, *arguments)

    def warning(self, message: str, *arguments: Any) -> None:
        """Logs what somebody should see."""
        self.log(logging.WARNING, message, *arguments)

    def error(self, message: str, *arguments: Any, error: BaseException | None = None) -> None:
        """Logs a failure."""
        self.log(logging.ERROR, message, *arguments, error=error)


LOGGER = Logger(__name__)
_reported = [0]  # how many dropped lines the log has been told of


def _emit(logger: logging.Logger, level: int, message: str, arguments: tuple, error: BaseException | None) -> None:
    """In the thread of `LINES`. Lines are dropped only where many follow, so the number is told sooner or later."""
    lost, _reported[0] = LINES.dropped - _reported[0], LINES.dropped
    if lost:
        logging.getLogger(__name__).warning("%d log lines were dropped: they were not taken in time", lost)
    text = message % arguments if arguments else message
    if error is not None:
        text = "\n".join([text, "".join(traceback.format_exception(error)).rstrip()])
    logger.log(level, "%s", text.encode("utf-8", "backslashreplace").decode())  # what no handler fails to encode


class _Diverted(logging.Handler):
    """Hands every record to the thread of `LINES`, where the handler in whose place it stands takes it."""

    def __init__(self, handler: logging.Handler):
        super().__init__(handler.level)
        self.handler = handler

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        LINES.do(self.handler.handle, record)


def divert_logging() -> None:
    """For programs: from now on no log line and no warning of this process waits, whoever writes it."""
    root = logging.getLogger()
    for handler in [*root.handlers]:
        root.removeHandler(handler)
        root.addHandler(_Diverted(handler))
    if logging.lastResort is not None:
        logging.lastResort = _Diverted(logging.lastResort)  # pyright: ignore[reportAttributeAccessIssue]
    logging.captureWarnings(True)


@contextmanager
def warnings_logged() -> Iterator[None]:
    """Inside the block Python's warnings go to the log, and so wait for nobody."""
    before = warnings.showwarning

    def show(message: Any, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        LOGGER.warning("%s:%s: %s: %s", filename, lineno, category.__name__, message)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def in_words(error: BaseException) -> str:
    """The error's type and text in one line of bounded length, whatever its own methods do."""
    kind = type(error).__name__
    try:
        text = str(error)[: 2 * MOST_CHARACTERS].encode("utf-8", "backslashreplace").decode()
    except BaseException:  # of any kind: its text is somebody else's program
        text = "an error that cannot say what it is"
    return f"{kind}: {' '.join(text.split())}"[:MOST_CHARACTERS]
