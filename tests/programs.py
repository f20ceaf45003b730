"""Programs of this package, run by tests in processes forked from one that has imported what they import.

`python train.py` computes for several seconds before it does anything: it imports torch, Hydra and SciPy. Tests run
programs dozens of times. So each worker of pytest starts one process, the nursery, which imports them once, starts no
thread, and is forked for every program. The program then has its own words, folder, environment, output and exit
status, checks no annotations, and can be killed, as if it had been started alone. A test of what is imported, or from
where, has to start a Python of its own.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORTED = ("flowhand.commands.train", "flowhand.commands.export", "torch._dynamo")  # the last by every optimizer
NUMBER = 8  # bytes of each number on the wire


class Program:
    """A program that runs: what tests need of a `subprocess.Popen`, whose output is kept in files and read at its end.

    Args:
        words: what would follow `python`: "-m" and a module, or a file; and its arguments.
        cwd: the folder in which it works.
        env: its whole environment; None: that of this process.
        stdin: the descriptor from which it reads; None: there is nothing to read.
    """

    def __init__(self, words: list[str], cwd: Path | str, env: Mapping[str, str] | None, stdin: int | None = None):
        self.args, self.returncode, self._said = words, None, ("", "")
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115  (closed after its end)
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(nursery()[1])
        order = json.dumps([words, str(cwd), dict(os.environ if env is None else env)]).encode()
        with open(os.devnull) as nothing:
            given = [nothing.fileno() if stdin is None else stdin, *(file.fileno() for file in self._files)]
            socket.send_fds(self._line, [len(order).to_bytes(NUMBER)], given)
        self._line.sendall(order)
        self.pid = int.from_bytes(_received(self._line, NUMBER))

    def poll(self) -> int | None:
        """The exit status once it has ended, as `subprocess` has it: minus the number of the signal that ended it."""
        if self.returncode is None and select.select([self._line], [], [], 0)[0]:
            code = int.from_bytes(_received(self._line, NUMBER), signed=True)
            self._said, self.returncode = self.said(), code
            for each in (self._line, *self._files):
                each.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, after its end; raises `subprocess.TimeoutExpired`, and lets it run on."""
        if self.returncode is None:
            select.select([self._line], [], [], timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it said, and what it said of errors, after its end."""
        self.wait(timeout)
        return self.said()

    def said(self) -> tuple[str, str]:
        """What it has said so far, and what it has said of errors."""
        if self.returncode is not None:
            return self._said
        out, errors = (os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode() for file in self._files)
        return out, errors

    def send_signal(self, number: int) -> None:
        """Sends the signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def start(
    *words: str, cwd: Path | str = ROOT, env: Mapping[str, str] | None = None, stdin: int | None = None
) -> Program:
    """Starts `python WORDS`."""
    return Program(list(words), cwd, env, stdin)


def run(
    *words: str, cwd: Path | str = ROOT, env: Mapping[str, str] | None = None, timeout: float = 120, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs `python WORDS` to its end, as `subprocess.run` does; after `timeout` seconds it is killed.

    Raises:
        subprocess.TimeoutExpired: it took longer.
        subprocess.CalledProcessError: with `check`, it has ended with another status than 0.
    """
    program = start(*words, cwd=cwd, env=env)
    try:
        said = program.communicate(timeout)
    finally:
        program.send_signal(signal.SIGKILL)
    done = subprocess.CompletedProcess(program.args, program.wait(), *said)
    if check:
        done.check_returncode()
    return done


@functools.cache
def nursery() -> tuple[subprocess.Popen[bytes], str]:
    """The process, started by the first program, and the address at which it takes orders; `stop` ends it."""
    address = str(Path(tempfile.mkdtemp(prefix="flowhand-")) / "nursery")
    process = subprocess.Popen([sys.executable, "-m", "tests.programs", address], cwd=ROOT, stdin=-1, stdout=-1)
    assert process.stdout
    with process.stdout as said:
        assert said.readline() == b"there\n", "the nursery did not start; its stderr says why"
    return process, address


def stop() -> None:
    """Ends the nursery, if there is one."""
    if nursery.cache_info().currsize:
        process, address = nursery()
        assert process.stdin
        process.stdin.close()
        process.wait()
        os.rmdir(Path(address).parent)
        nursery.cache_clear()


def _received(line: socket.socket, count: int) -> bytes:
    """So many bytes."""
    found = b""
    while len(found) < count:
        more = line.recv(count - len(found))
        assert more, "the other side has ended"
        found += more
    return found


def _serve(address: str) -> tuple[list[str], str, dict[str, str]]:
    """Takes orders until stdin ends; returns in a program's own process, with what it is to run."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("there", flush=True)  # noqa: T201
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            line = listener.accept()[0]
            size, files, *_ = socket.recv_fds(line, NUMBER, 3)
            order = json.loads(_received(line, int.from_bytes(size)))
            if not os.fork():
                listener.close()
                _keep(line, files)
                return order
            line.close()
            for file in files:
                os.close(file)
            _bury()
        os.unlink(address)
        time.sleep(0.1)  # the last program has told its end, and then it ends
        _bury()
    os._exit(0)


def _keep(line: socket.socket, files: list[int]) -> None:
    """Makes another process for the program, returns there, and tells here how that ends."""
    if not (pid := os.fork()):
        line.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
        for file in files:
            os.close(file)
        return
    for file in files:
        os.close(file)
    line.sendall(pid.to_bytes(NUMBER))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    line.sendall(code.to_bytes(NUMBER, signed=True))
    os._exit(0)


def _bury() -> None:
    """Asks after processes that have ended, so that the time they took is counted."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:  # there is none
        pass


def _main() -> None:
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [path for path in sys.path[1:] if path not in own]  # the first is the folder in which this one works
    for name in IMPORTED:
        import_module(name)
    gc.collect()
    gc.freeze()  # or the end of each program would go through, and so copy, all that was imported
    words, cwd, env = _serve(sys.argv[1])
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    given = [os.path.abspath(path) for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    if words[0] == "-m":
        sys.path[:] = [cwd, *given, *paths]
        sys.argv[:] = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[:] = [str(Path(words[0]).absolute().parent), *given, *paths]
        sys.argv[:] = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    _main()
