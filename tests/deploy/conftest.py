"""Servers of a toy policy for the tests of the wire: in a thread of this process, or in a process of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.toy_server import ToyPolicy
from flowhand.deploy.server.config import ServerConfig
from flowhand.deploy.server.server import PolicyServer

ROOT = Path(__file__).parents[2]


@dataclass
class Running:
    """A server in a thread."""

    server: PolicyServer
    policy: Any
    port: int
    loop: asyncio.AbstractEventLoop
    stop: Callable[[], None]  # drains, waits for the end

    @property
    def uri(self) -> str:
        return f"ws://127.0.0.1:{self.port}"


@pytest.fixture
def serving() -> Iterator[Callable[..., Running]]:
    """`serving(policy, key=, tls=, **config)`: a server in a thread, with batches of 4 and quick time limits."""
    started: list[Running] = []

    def start(policy: Any = None, key: str | None = None, tls: Any = None, **options: Any) -> Running:
        policy = policy or ToyPolicy()
        config = ServerConfig(**{"port": 0, "inference_batch": 4, "max_request_hz": 1e6, **options})
        server, up, end = PolicyServer(policy, config, key, tls), threading.Event(), asyncio.Event()
        found: dict[str, Any] = {}

        async def serve() -> None:
            found["loop"], found["port"] = asyncio.get_running_loop(), await server.start()
            up.set()
            await end.wait()
            await server.drain()

        thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        thread.start()
        assert up.wait(20)

        def stop() -> None:
            if thread.is_alive():
                found["loop"].call_soon_threadsafe(end.set)
                thread.join(20)
            assert not thread.is_alive()

        started.append(Running(server, policy, found["port"], found["loop"], stop))
        return started[-1]

    yield start
    for running in started:
        running.stop()


class Process:
    """A server in a process, which can be frozen and killed."""

    def __init__(self, **options: Any):
        words = [f"{name}={value}" for name, value in options.items()]
        command = [sys.executable, "-m", "benchmarks.toy_server", "inference_batch=4", *words]
        self.popen = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        assert self.popen.stdout is not None
        self.port = int(self.popen.stdout.readline())
        self.uri = f"ws://127.0.0.1:{self.port}"

    def freeze(self) -> None:
        self.popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.popen.send_signal(signal.SIGCONT)

    def end(self, number: int = signal.SIGKILL) -> int:
        self.popen.send_signal(number)  # does nothing if it has ended
        code = self.popen.wait(20)
        assert self.popen.stdout is not None
        self.popen.stdout.close()
        return code


@pytest.fixture
def process() -> Iterator[Callable[..., Process]]:
    """`process(**config)`: a server in a process of its own, killed at the end of the test."""
    started: list[Process] = []

    def start(**options: Any) -> Process:
        started.append(Process(**options))
        return started[-1]

    yield start
    for server in started:
        server.thaw()
        server.end()


@pytest.fixture
def observation() -> dict[str, np.ndarray]:
    """One that the toy policy understands."""
    return {"joints": np.array([0.1, 0.2, 0.3], np.float32), "camera": np.full((8, 8, 3), 7, np.uint8)}
