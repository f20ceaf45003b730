"""Hostile peers against a live server, with a good client that must be served throughout. Run by `benchmarks.fuzz`."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

from benchmarks.fuzz_inputs import message, mutated, observation, one_line
from benchmarks.toy_server import ToyPolicy
from flowhand.contracts.noise import noise
from flowhand.deploy.client import Client, pack, unpack
from flowhand.deploy.server.config import ServerConfig
from flowhand.deploy.server.server import PolicyServer

CASES = 6_000  # at scale 1
CROWD = 1_000  # connections at once
AT_ONCE = 16  # cases
PATIENCE_S = 20.0  # after which an unfinished case is a finding
GROWTH_MIB = 32.0  # of the server's memory, beyond which it is a finding
KEY_EFFECT, KEY_P = 0.05, 0.001  # of key_timing: so far from an even chance, and so surely, is a finding
KEY = "correct-horse-battery-staple-0123456789"
STATUSES = {101, 200, 400, 401, 403, 404, 405, 414, 426, 429, 431, 501, 503, 505}
CLOSE_CODES = {1000, 1001, 1002, 1003, 1007, 1009, 1011, 1012, 1013}
HEAD = (
    "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
TOKENS = (b"\r\n\r\n", b"\0", b"X: " + b"y" * 9000 + b"\r\n", b"X: y\r\n" * 200, b"Content-Length: 5\r\n", b"\xff\xfe")
LIMITS = ("open_timeout_s=2", "write_timeout_s=2", "deadline_s=10", "max_request_hz=100000", "inference_batch=4")

Link = tuple[asyncio.StreamReader, asyncio.StreamWriter]
WireCase = Callable[[random.Random, Link], Awaitable[str]]


def head(key: str = KEY) -> bytes:
    """The request for a websocket."""
    return f"{HEAD}Authorization: Api-Key {key}\r\n\r\n".encode()


def frame(payload: bytes, opcode: int = 2, final: bool = True, mask: bool = True, claimed: int | None = None) -> bytes:
    """A frame, whose length may be a lie."""
    size = len(payload) if claimed is None else claimed
    first = bytes([(0x80 if final else 0) | opcode])
    length = struct.pack(">BH", 126, size) if size < 2**16 else struct.pack(">BQ", 127, size)
    if not mask:
        return first + length + payload
    return first + bytes([length[0] | 0x80]) + length[1:] + b"\0\0\0\0" + payload


async def reply(reader: asyncio.StreamReader) -> str:
    """What the server answers: the first word of a text, after which it closes, or `answered`, or how it closes."""
    said = ""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            first, length = await reader.readexactly(2)
            assert length < 128, "the server masks its frames"
            if length >= 126:
                length = int.from_bytes(await reader.readexactly(2 if length == 126 else 8), "big")
            payload, opcode = await reader.readexactly(length), first & 0x0F
            if opcode == 1:
                one_line(payload.decode())
                said = payload.decode().partition(":")[0]
            elif opcode == 2:
                assert unpack(payload)["actions"].shape == (8, 2)
                return "answered"
            elif opcode == 8:
                code = int.from_bytes(payload[:2], "big")
                assert code == 1011 if said else code in CLOSE_CODES, f"close code {code} after {said!r}"
                return said or f"closed {code}"
    assert not said, f"no close after {said!r}"
    return "ended"


async def patient(answer: Coroutine[Any, Any, str], writer: asyncio.StreamWriter) -> str:
    """The answer; a server that waits for more than was sent learns after a while that nothing comes."""
    waiting = asyncio.create_task(answer)
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    if not done and writer.can_write_eof():
        writer.write_eof()
    return await waiting


async def upgraded(link: Link) -> None:
    """Opens the websocket and takes the greeting."""
    reader, writer = link
    writer.write(head())
    status = await reader.readuntil(b"\r\n\r\n")
    assert status.startswith(b"HTTP/1.1 101"), status
    first, length = await reader.readexactly(2)
    assert (first, length) == (0x82, 126), "no greeting"
    await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))


async def messages(rng: random.Random, link: Link) -> str:
    """Wrong messages in right frames."""
    await upgraded(link)
    said = ""
    for _ in range(5):
        link[1].write(frame(message(rng, observation())))
        if (said := await reply(link[0])) != "answered":
            break
    return said


async def frames(rng: random.Random, link: Link) -> str:
    """Wrong frames."""
    await upgraded(link)
    payload = pack(observation())
    kinds = [
        frame(payload, opcode=rng.randrange(16), final=rng.random() < 0.5),
        frame(payload, mask=False),
        frame(payload[:100], claimed=2**62),
        frame(b"", claimed=rng.choice((2**20, 2**31, 2**63 - 1))),
        frame(rng.randbytes(200), opcode=rng.choice((8, 9, 10))),
        frame(payload, final=False) + frame(b"", opcode=0, final=False) * rng.choice((1, 500, 5000)),
        frame(b"", opcode=9) * rng.choice((10, 3000)),
        mutated(rng, frame(payload)),
        rng.randbytes(rng.choice((1, 2, 10, 1000))),
    ]
    link[1].write(rng.choice(kinds))
    return await patient(reply(link[0]), link[1])


async def http(rng: random.Random, link: Link) -> str:
    """Wrong HTTP."""
    request = head() if rng.random() < 0.7 else b"POST /metrics HTTP/1.1\r\n\r\n"
    at = rng.randrange(len(request))
    link[1].write(mutated(rng, request) if rng.random() < 0.6 else request[:at] + rng.choice(TOKENS) + request[at:])
    return await patient(status(link[0]), link[1])


async def keys(rng: random.Random, link: Link) -> str:
    """Wrong and missing keys."""
    wrong = ["", KEY[:-1], KEY + "x", KEY.upper(), KEY[:5] + "\0", f"{KEY} {KEY}", "é" * 9, "x" * rng.choice((1, 7000))]
    request = rng.choice([HEAD.encode() + b"\r\n", *(head(key) for key in wrong)])
    if rng.random() < 0.2:
        request = request.replace(b"GET / ", b"GET /metrics ")
    link[1].write(request)
    answer = await status(link[0])
    assert answer in ("401", "ended"), f"a wrong key got {answer}"
    return answer


async def vanishing(rng: random.Random, link: Link) -> str:
    """A peer that is gone in the middle of a message."""
    await upgraded(link)
    whole = frame(pack(observation()))
    link[1].write(whole[: rng.randrange(len(whole) + 1)])
    await link[1].drain()
    peer: socket.socket = link[1].get_extra_info("socket")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, not close
    link[1].transport.abort()
    return "gone"


async def dribbling(rng: random.Random, link: Link) -> str:
    """A peer that says one byte at a time."""
    for byte in head(rng.choice((KEY, "no")))[: rng.choice((20, 400))]:
        link[1].write(bytes([byte]))
        await asyncio.sleep(0.001)
    return await patient(status(link[0]), link[1])


async def status(reader: asyncio.StreamReader) -> str:
    """The status of an HTTP answer, or that there was none."""
    try:
        answer = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return "ended"
    words = answer.split(b" ", 2)
    assert words[0] == b"HTTP/1.1", answer[:100]
    assert int(words[1]) in STATUSES, answer[:100]
    assert b"Traceback" not in answer
    return words[1].decode()


KINDS: list[tuple[WireCase, int]] = [(messages, 8), (frames, 5), (http, 5), (keys, 2), (vanishing, 2), (dribbling, 1)]


class GoodClient(threading.Thread):
    """Asks a hundred times a second and checks every answer."""

    def __init__(self, port: int):
        super().__init__(daemon=True)
        self.client = Client(f"ws://127.0.0.1:{port}", KEY, timeout_s=10)
        self.ended = threading.Event()
        self.seconds: list[float] = []
        self.failures: list[str] = []

    def run(self) -> None:
        """Until `ended` is set."""
        zeros = {"joints": np.zeros((2, 3), np.float32), "camera": np.zeros((2, 8, 8, 3), np.uint8)}
        stacked = {name: value[None] for name, value in zeros.items()}
        number = 0
        while not self.ended.wait(0.01):
            number += 1
            start = time.perf_counter()
            try:
                actions = self.client.infer({**zeros, "reset": 7, "decision": number})["actions"]
                self.seconds.append(time.perf_counter() - start)
                if actions.tobytes() != ToyPolicy().plan(stacked, noise(0, 7, number, (8, 2))[None])[0].tobytes():
                    self.failures.append("another action than alone")
            except (OSError, RuntimeError, ValueError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
        self.client.close()


async def attack(port: int, numbers: range, seed: int) -> tuple[Counter[str], list[str]]:
    """Runs the cases, several at once; how they ended, and the findings."""
    outcomes: Counter[str] = Counter()
    findings: list[str] = []
    left = iter(numbers)

    async def one(number: int) -> None:
        rng = random.Random(f"{seed}/wire/{number}")
        case = rng.choices([case for case, _ in KINDS], [weight for _, weight in KINDS])[0]
        try:
            async with asyncio.timeout(PATIENCE_S):
                link = await asyncio.open_connection("127.0.0.1", port)
                try:
                    outcomes[f"{case.__name__}: {await case(rng, link)}"] += 1
                finally:
                    link[1].transport.abort()
        except ConnectionError:
            outcomes[f"{case.__name__}: reset"] += 1
        except Exception as error:  # every kind is a finding
            findings.append(f"{number} ({case.__name__}): {type(error).__name__}: {error}"[:300])
            if len(findings) <= 3:
                traceback.print_exc()

    async def several() -> None:
        for number in left:
            await one(number)

    await asyncio.gather(*(several() for _ in range(AT_ONCE)))
    return outcomes, findings


async def crowd(port: int, count: int) -> dict[str, int]:
    """So many connections at once: silent ones, ones without a key, and ones that may stay until there is no room."""
    outcomes: Counter[str] = Counter()

    async def one(number: int) -> None:
        kind = ("silent", "no key", "key")[number % 3]
        ended = "no connection"
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                if kind != "silent":
                    writer.write(head(KEY if kind == "key" else "no"))
                ended = await status(reader)
                await asyncio.sleep(3.0)
                writer.transport.abort()
        outcomes[f"{kind}: {ended}"] += 1

    await asyncio.gather(*(one(number) for number in range(count)))
    return dict(outcomes)


def key_timing(rounds: int = 20_000) -> dict[str, float]:
    """How long checking a key takes, by how much of it is right: medians; chance that more right takes longer."""

    class Request:
        def __init__(self, key: str):
            self.headers = self
            self.key = f"Api-Key {key}"

        def get_all(self, _: str) -> list[str]:
            return [self.key]

    server: Any = PolicyServer(ToyPolicy(), ServerConfig(), KEY)
    requests = {"none": Request("X" * len(KEY)), "all but one": Request(KEY[:-1] + "X")}
    times: dict[str, list[int]] = {name: [] for name in requests}
    rng = random.Random(0)
    for _ in range(rounds):
        for name in rng.sample(sorted(requests), len(requests)):
            start = time.perf_counter_ns()
            server._key_number(requests[name])
            times[name].append(time.perf_counter_ns() - start)
    test = mannwhitneyu(times["all but one"], times["none"])
    medians = {f"median_ns_{name.replace(' ', '_')}_right": statistics.median(taken) for name, taken in times.items()}
    return {**medians, "chance": round(float(test.statistic) / rounds**2, 4), "p": round(float(test.pvalue), 4)}


def key_findings(timing: dict[str, float]) -> list[str]:
    """A finding if the time tells how much of a key is right: a sure difference alone may be too small to be heard."""
    tells = abs(timing["chance"] - 0.5) > KEY_EFFECT and timing["p"] < KEY_P
    return [f"the time of checking a key tells how much of it is right: {timing}"] if tells else []


def resident_mib(pid: int) -> float:
    """Memory that a process has."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def run(cases: int, seed: int) -> dict[str, Any]:
    """All of it against one server; the results, with what should not have been as findings."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2**14), hard))
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "benchmarks.toy_server", *LIMITS]
        environment = {**os.environ, "FLOWHAND_API_KEY": KEY}
        server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        assert server.stdout is not None
        port = int(server.stdout.readline())
        good = GoodClient(port)
        good.start()
        early, findings = asyncio.run(attack(port, range(cases // 5), seed))
        before, start = resident_mib(server.pid), time.perf_counter()
        outcomes, more = asyncio.run(attack(port, range(cases // 5, cases), seed))
        seconds = time.perf_counter() - start
        gathered = asyncio.run(crowd(port, CROWD))
        growth = resident_mib(server.pid) - before
        good.ended.set()
        good.join()
        findings += more + [f"good client: {failure}" for failure in good.failures]
        if growth > GROWTH_MIB:
            findings.append(f"memory grew by {growth:.0f} MiB")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as health:
            assert health.read() == b"OK\n"
        server.send_signal(signal.SIGTERM)
        if server.wait(30) != 0:
            findings.append(f"exit status {server.returncode}")
        server.stdout.close()
        log.seek(0)
        if text := log.read():
            findings.append(f"the server's log: {text[-300:]}")
    timing, milliseconds = key_timing(), 1e3 * np.array(good.seconds)
    findings += key_findings(timing)
    return {
        "cases": cases + CROWD,
        "outcomes": dict(sorted((early + outcomes).items())),
        "crowd": gathered,
        "findings": len(findings),
        "examples": findings[:10],
        "cases_per_s": round((cases - cases // 5) / seconds),
        "growth_mib": round(growth, 1),
        "good_client": {
            "requests": len(milliseconds),
            "failures": len(good.failures),
            **{f"p{q}_ms": round(float(np.percentile(milliseconds, q)), 2) for q in (50, 99, 100)},
        },
        "key_timing": timing,
    }
