"""Lane groups in processes of their own.

A worker is a fresh interpreter that imports this package and, unlike those of multiprocessing, not the calling script:
that needs no `if __name__ == "__main__"`, and workers load no torch because it does. A worker ends when its connection
closes, so it outlives neither the rollout nor a killed parent. POSIX only: the connection is an inherited socket.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from multiprocessing.connection import Connection, wait

from flowhand.contracts.features import Spec
from flowhand.contracts.modules import import_modules, imported_modules

from .lanes import Begin, Command, LaneGroup, LaneOptions, MakeEnv, Reply


class WorkerError(RuntimeError):
    """A worker failed; the message holds the task, the seeds and the worker's traceback or exit status."""


class WorkerGroup:
    """The lanes of one worker process.

    Raises:
        ValueError: `make_env` cannot be sent to another process.
    """

    def __init__(self, make_env: MakeEnv, lanes: Collection[int], options: LaneOptions):
        self.lanes = tuple(lanes)
        self.task = ""
        self.features: Spec | None = None
        self._seeds: dict[int, int] = {}
        request = _pickle(make_env, self.lanes, options)
        modules = pickle.dumps(imported_modules())
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = _start(theirs.fileno())
        self.connection = Connection(ours.detach())
        self.connection.send_bytes(modules)
        self.connection.send_bytes(request)

    def wait_until_ready(self) -> None:
        """Wait for the environments to be built."""
        self.task, self.features = self._receive()

    def send(self, commands: Mapping[int, Command]) -> None:
        """Have the worker run the commands of these lanes; `receive` waits for what comes of them."""
        self._seeds |= {lane: command.seed for lane, command in commands.items() if isinstance(command, Begin)}
        try:
            self.connection.send(commands)
        except OSError as error:
            raise self._death() from error

    def receive(self) -> dict[int, Reply]:
        """Return one reply for every command sent.

        Raises:
            WorkerError: the worker raised an exception or died.
        """
        return self._receive()

    def close(self) -> None:
        """End the worker process."""
        self.connection.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:  # in the middle of an episode that nobody waits for any more
            self._process.kill()
            self._process.wait()

    def _receive(self):
        try:
            message, failure = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._death() from error
        if failure:
            raise WorkerError(f"a worker failed {self._doing()}:\n{failure}")
        return message

    def _death(self) -> WorkerError:
        self._process.wait(timeout=10)
        code = self._process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        return WorkerError(f"a worker {how} {self._doing()}; what it printed is above")

    def _doing(self) -> str:
        if not self.task:
            return "while it built its environments"
        return f"in {self.task}, running the seeds {sorted(self._seeds.values())}"


def wait_for_any(groups: Sequence[WorkerGroup]) -> list[WorkerGroup]:
    """Wait until at least one of the groups has replied or died; return those."""
    ready = wait([group.connection for group in groups])
    return [group for group in groups if group.connection in ready]


def _pickle(make_env: MakeEnv, lanes: tuple[int, ...], options: LaneOptions) -> bytes:
    advice = "pass functools.partial(envs.make, config), or a function of an importable module"
    try:
        request = pickle.dumps((make_env, lanes, options))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"make_env cannot be sent to a worker process ({error}): {advice}") from error
    if b"__main__" in request:
        raise ValueError(f"make_env refers to the running script, which workers do not import: {advice}")
    return request


def _start(file_descriptor: int) -> subprocess.Popen:
    program = (
        # Ctrl-C reaches the parent too, and that closes the connection.
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        f"sys.path[:] = {sys.path!r}; from {__name__} import serve; serve({file_descriptor})"
    )
    # A worker multiplies no matrices; one thread each keeps the workers out of each other's way.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    command = [sys.executable, "-c", program]
    return subprocess.Popen(command, pass_fds=[file_descriptor], env=environment, stdin=subprocess.DEVNULL)


def serve(file_descriptor: int) -> None:
    """Run lanes for the process at the other end of the socket until it closes; the main function of a worker."""
    group = None
    with Connection(file_descriptor) as connection:
        try:
            import_modules(pickle.loads(connection.recv_bytes()))
            group = LaneGroup(*pickle.loads(connection.recv_bytes()))
            connection.send(((group.task, group.features), None))
            while (commands := _next(connection)) is not None:
                group.send(commands)
                connection.send((group.receive(), None))
        except Exception:
            _report(connection, traceback.format_exc())
        finally:
            if group is not None:
                group.close()


def _next(connection: Connection) -> dict[int, Command] | None:
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


def _report(connection: Connection, failure: str) -> None:
    try:
        connection.send((None, failure))
    except OSError:  # the parent is gone; nobody is left to tell
        return
