"""Who gets a share of a server: those who wait for it, each key and address as much as any other."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from types import SimpleNamespace

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from benchmarks.toy_server import ToyPolicy
from flowhand.deploy.client import Client, pack, unpack
from flowhand.deploy.server import fairness
from flowhand.deploy.server.connection import Admission, place
from flowhand.deploy.server.fairness import FairQueue, RateLimit

ROBOT, ABUSER = "the-robot-s-own-key", "another-client-s-key"


class Gated(ToyPolicy):
    """Notes the first joint of every row of a call; from `hold` on, calls wait for `release` one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[float]] = []
        self.gate: threading.Semaphore | None = None

    def hold(self) -> None:
        self.gate = threading.Semaphore(0)

    def release(self, calls: int) -> None:
        assert self.gate is not None
        self.gate.release(calls)

    def plan(self, observation, noise, prefix=None):
        self.calls.append([float(row) for row in observation["joints"][:, -1, 0] if row])
        if self.gate is not None:
            assert self.gate.acquire(timeout=20)
        return super().plan(observation, noise)


def asked(value: float) -> bytes:
    return pack({"joints": np.full(3, value, np.float32), "camera": np.zeros((8, 8, 3), np.uint8)})


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def held(serving) -> Iterator[SimpleNamespace]:
    """A server whose first call, for a client of value 1, runs until it is released; `link(key)` opens a connection."""
    policy = Gated()
    with ExitStack() as stack:

        def link(key: str = ROBOT, address: str = "127.0.0.1") -> ClientConnection:
            peer = socket.create_connection(("127.0.0.1", running.port), source_address=(address, 0))
            headers = {"Authorization": f"Api-Key {key}"}
            raw = stack.enter_context(
                connect(running.uri, sock=peer, compression=None, close_timeout=0.1, additional_headers=headers)
            )
            raw.recv()
            return raw

        def start(**options: object) -> SimpleNamespace:
            nonlocal running
            running = serving(policy, key=f"{ROBOT}\n{ABUSER}", **{"deadline_s": 20.0, **options})
            policy.calls.clear()
            policy.hold()
            first = link()
            first.send(asked(1))
            until(lambda: policy.calls == [[1.0]])
            depth = running.server._batcher.depth
            return SimpleNamespace(policy=policy, link=link, depth=depth, server=running.server, port=running.port)

        running: SimpleNamespace = SimpleNamespace()
        yield SimpleNamespace(start=start)
        policy.release(1000)


@pytest.mark.parametrize("leave", ["close", "vanish", "vanish after asking ahead"])
def test_what_nobody_waits_for_is_not_computed(held, leave):
    server = held.start()
    peers = [server.link(ABUSER) for _ in range(6)]
    for number, peer in enumerate(peers):
        for _ in range(5 if leave == "vanish after asking ahead" else 1):  # reading stops, so nothing tells of the end
            peer.send(asked(100 + number))
    robot = server.link()
    robot.send(asked(2))
    until(lambda: server.depth() == 7)
    for peer in peers:
        if leave == "close":
            peer.close()
        else:
            peer.socket.shutdown(socket.SHUT_RDWR)
    if leave != "vanish after asking ahead":
        until(lambda: server.depth() == 1)  # what they asked for is not even kept
    server.policy.release(1000)
    assert unpack(robot.recv(decode=False))["actions"].shape == (8, 2)
    assert server.policy.calls == [[1.0], [2.0]]
    until(lambda: len(server.server._admission.open) == 2)  # and nothing is held for them


@pytest.mark.parametrize("other", [{"key": ABUSER}, {"address": "127.0.0.2"}])
def test_many_connections_get_no_more_than_one(held, other):
    server = held.start()
    crowd = [server.link(**other) for _ in range(20)]
    for number, peer in enumerate(crowd):
        peer.send(asked(100 + number))
    until(lambda: server.depth() == 20)
    robot = server.link()
    robot.send(asked(2))
    until(lambda: server.depth() == 21)
    server.policy.release(2)
    assert unpack(robot.recv(decode=False))["actions"].shape == (8, 2)
    assert 2.0 in server.policy.calls[1]  # the very next call, of 4 rows
    assert len(server.policy.calls[1]) == 4  # whose other rows were not left empty


def test_a_full_queue_takes_from_who_has_the_most(held):
    server = held.start(max_waiting=5)
    crowd = [server.link(ABUSER) for _ in range(5)]
    for number, peer in enumerate(crowd):
        peer.send(asked(100 + number))
        until(lambda number=number: server.depth() == number + 1)
    robot = server.link()
    robot.send(asked(2))
    assert crowd[-1].recv().startswith("busy: 5 requests wait already")
    server.policy.release(1000)
    assert unpack(robot.recv(decode=False))["actions"].shape == (8, 2)
    assert all(unpack(peer.recv(decode=False))["actions"].shape == (8, 2) for peer in crowd[:-1])


def test_one_key_and_address_cannot_hold_every_connection(held):
    server = held.start(max_connections=6, max_connections_each=3)
    kept = [server.link(ABUSER) for _ in range(3)]
    with pytest.raises(InvalidStatus) as refused:
        server.link(ABUSER)
    assert refused.value.response.status_code == 429
    server.link()
    server.link(ABUSER, address="127.0.0.2")
    kept.pop().close()
    until(lambda: len(server.server._admission.open) == 5)
    server.link(ABUSER)


def test_the_rate_is_that_of_a_key_and_address(serving, observation):
    running = serving(key=f"{ROBOT} {ABUSER}", max_request_hz=20.0)
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(Client(running.uri, ABUSER))) for _ in range(4)]
        start = time.monotonic()
        for turn in range(26):  # with the four connections 30; 20 of them are the burst
            clients[turn % 4].infer(observation)
        assert time.monotonic() - start > 9 / 20
        other = stack.enter_context(closing(Client(running.uri, ROBOT)))
        other.infer(observation)


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(fairness, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_rate_has_a_burst_then_waits_then_refuses_and_is_forgotten(clock, monkeypatch):
    limit = RateLimit(8.0)
    waits = [limit.wait_s("a") for _ in range(40)]
    assert waits[:9] == [0.0] * 9
    assert waits[9:18] == [n / 8 for n in range(1, 10)]
    assert waits[18:] == [None] * 22  # and what is refused is not owed
    assert limit.wait_s("b") == 0.0
    clock.now += 0.5
    assert limit.wait_s("a") == 9 / 8 - 0.5 + 1 / 8
    clock.now += 10
    monkeypatch.setattr(fairness, "MANY", 2)
    assert [limit.wait_s(name) for name in "cde"] == [0.0] * 3
    assert set(limit._due) <= set("cde")  # no more is kept of those who are quiet


@pytest.mark.parametrize("seed", range(5))
def test_turns_are_those_of_round_robin_and_the_fullest_loses_its_newest(seed):
    """Beside a model in plain lists."""
    random, queue, model = np.random.default_rng(seed), FairQueue[int](8), dict[str, deque[int]]()
    for item in range(600):
        owner = "aaaabbc"[random.integers(7)]
        if random.random() < 0.55:
            model.setdefault(owner, deque()).append(item)
            expected = None
            if sum(map(len, model.values())) > 8:
                most = max(map(len, model.values()))
                full = [name for name, line in model.items() if len(line) == most]
                expected = model[owner if owner in full else full[0]].pop()
            assert queue.put(owner, item) == expected
        elif random.random() < 0.2:
            line = model.get(owner, deque([-1]))
            gone = line[random.integers(len(line))]
            line.remove(gone)
            queue.drop(owner, gone)
        else:
            name = next(iter(model), None)
            expected = model[name].popleft() if name else None
            if name:
                model[name] = model.pop(name)
            assert queue.get(0.0) == expected
        model = {name: line for name, line in model.items() if line}
        assert len(queue) == sum(map(len, model.values()))


def test_a_closed_queue_wakes_who_waits():
    queue, got = FairQueue[int](2), []
    waiting = threading.Thread(target=lambda: got.append(queue.get()))
    waiting.start()
    queue.close()
    waiting.join(10)
    assert got == [None]
    queue.put("a", 1)
    assert queue.get() is None


def test_the_door_is_kept_open_for_the_emptier_address():
    class Peer:
        def __init__(self, where: str):
            self.place = where

        def end(self, reason: str) -> None:
            ended.append(self)
            admission.left(self)  # pyright: ignore[reportArgumentType]

    ended: list[Peer] = []
    admission = Admission(4, lambda reason: None)
    good, *silent = peers = [Peer("good"), *(Peer("silent") for _ in range(30))]
    for peer in peers:
        admission.arrived(peer)  # pyright: ignore[reportArgumentType]
    assert good in admission.opening
    assert ended == silent[:-3]
    assert Counter(each.place for each in admission.opening) == {"good": 1, "silent": 3}


@pytest.mark.parametrize(
    ("peer", "where"),
    [
        (("10.1.2.3", 5), "10.1.2.3"),
        (("::ffff:10.1.2.3", 5, 0, 0), "10.1.2.3"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "2001:0db8:0001:0002"),
        (("fe80::1%eth0", 5, 0, 2), "fe80:0000:0000:0000"),
        (None, ""),
    ],
)
def test_a_host_is_one_place_whatever_address_of_its_network_it_takes(peer, where):
    assert place(peer) == where
