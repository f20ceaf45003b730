"""The server from outside: right answers to everyone, an explanation to the others, and an orderly end."""

from __future__ import annotations

import asyncio
import hmac
import http.client
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from benchmarks.toy_server import ToyPolicy
from flowhand.contracts.noise import noise
from flowhand.control.background import LINES
from flowhand.deploy.client import Client, pack, unpack
from flowhand.deploy.server.config import ServerConfig
from flowhand.deploy.server.server import PolicyServer

KEY = "correct-horse-battery-staple"


def expected(policy: ToyPolicy, seen: list[dict], seed: int, decision: int) -> np.ndarray:
    """The chunk of a robot that has seen these observations, from the policy itself."""
    history = [seen[0], *seen][-2:]
    stacked = {name: np.stack([each[name] for each in history])[None] for name in history[0]}
    return policy.plan(stacked, noise(0, seed, decision, (8, 2))[None])[0]


def get(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def metric(port: int, name: str) -> float:
    lines = [line for line in get(port, "/metrics")[1].splitlines() if line.startswith(name + " ")]
    return float(lines[0].split()[1]) if lines else 0.0


def varied(n: float) -> dict[str, np.ndarray]:
    return {"joints": np.full(3, n, np.float32), "camera": np.full((8, 8, 3), n, np.uint8)}


def test_the_wire_is_openpi_s(serving, observation):
    running = serving()
    with connect(running.uri, compression=None) as raw:  # no code of ours on this side but the packing
        metadata = unpack(raw.recv(decode=False))
        assert metadata["chunk_shape"] == [8, 2]
        assert metadata["spec"]["action"]["shape"] == [2]
        assert (metadata["control_dt_s"], metadata["history"], metadata["execution_horizon"]) == (0.05, 2, 2)
        for n in range(3):
            raw.send(pack(observation))
            answer = unpack(raw.recv(decode=False))
            assert set(answer) == {"actions", "policy_timing", "server_timing"}
            assert set(answer["policy_timing"]) == {"infer_ms"}
            assert set(answer["server_timing"]) == ({"infer_ms", "prev_total_ms"} if n else {"infer_ms"})
            assert answer["actions"].dtype == np.float32
            assert answer["server_timing"]["infer_ms"] >= answer["policy_timing"]["infer_ms"] > 0


def test_every_robot_gets_its_own_actions_whoever_shares_the_call(serving):
    running = serving(ToyPolicy(sleep_s=0.002))
    clients = [Client(running.uri) for _ in range(11)]

    def episode(robot: int) -> list[np.ndarray]:
        seen = [varied(robot), varied(robot + 1), varied(2 * robot)]
        requests = [{**seen[0], "reset": robot}, *seen[1:]]
        return [clients[robot].infer(each)["actions"] for each in requests]

    with ThreadPoolExecutor(len(clients)) as pool:
        together = list(pool.map(episode, range(len(clients))))
    assert metric(running.port, "flowhand_batch_rows_sum") == 33
    assert 9 <= metric(running.port, "flowhand_batch_rows_count") < 33  # so calls were shared, of 4 rows at most
    for robot, chunks in enumerate(together):
        seen = [varied(robot), varied(robot + 1), varied(2 * robot)]
        for n, chunk in enumerate(chunks):
            assert chunk.tobytes() == expected(ToyPolicy(), seen[: n + 1], robot, n).tobytes()
    alone = Client(running.uri)
    again = [alone.infer(each)["actions"] for each in ({**varied(5), "reset": 5}, varied(6), varied(10))]
    assert [a.tobytes() for a in again] == [a.tobytes() for a in together[5]]
    for client in [*clients, alone]:
        client.close()


def test_the_time_to_wait_brings_requests_together(serving, observation):
    running = serving(max_wait_ms=300.0)
    clients = [Client(running.uri) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda client: client.connect(), clients))
        list(pool.map(lambda client: client.infer(observation), clients))
    assert metric(running.port, "flowhand_batch_rows_count") == 1
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    ("frame", "match"),
    [
        ("text", "invalid: the request is text"),
        (b"\xc1", "invalid: invalid message"),
        (pack([1]), "invalid: the request is a list"),
        (pack({"joints": np.zeros(3)}), "invalid: the observation has 'joints', expected"),
    ],
)
def test_a_bad_request_gets_one_line_and_code_1011(serving, observation, frame, match):
    running = serving()
    with connect(running.uri, compression=None) as raw:
        raw.recv()
        raw.send(frame)
        text = raw.recv()
        assert isinstance(text, str)
        assert text.startswith(match)
        assert "\n" not in text
        with pytest.raises(ConnectionClosed) as closed:
            raw.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
    with closing(Client(running.uri)) as other:
        other.infer(observation)
    assert metric(running.port, 'flowhand_errors_total{reason="invalid"}') == 1


def test_a_message_that_is_too_large_is_not_read(serving):
    running = serving(max_message_bytes=5000)
    with connect(running.uri, compression=None) as raw:
        raw.recv()
        raw.send(b"\0" * 5001)
        with pytest.raises(ConnectionClosed) as closed:
            raw.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


class Broken(ToyPolicy):
    """Gives NaN for robots whose first joint is 1, raises for 2, sleeps for 3."""

    def plan(self, observation, noise, prefix=None):
        first = observation["joints"][:, -1, 0]
        if (first == 2).any():
            raise RuntimeError("secret of the policy")
        if (first == 3).any():
            time.sleep(0.6)
        chunks = super().plan(observation, noise)
        chunks[first == 1] = np.nan
        return chunks


def test_a_policy_that_fails_fails_for_that_robot_only_and_without_a_traceback(serving, caplog):
    running = serving(Broken())
    with closing(Client(running.uri)) as good, closing(Client(running.uri)) as bad:
        for value, match in ((1, "failed: the policy gave NaN"), (2, "failed: inference failed")):
            with pytest.raises(RuntimeError, match=match) as caught:
                bad.infer(varied(value))
            assert "secret" not in str(caught.value)
            good.infer(varied(0))
    assert LINES.drain(10)
    assert "secret of the policy" in caplog.text  # the log has it


def test_a_late_request_is_given_up_and_the_connection_goes_on(serving):
    running = serving(Broken(), deadline_s=0.25)
    with closing(Client(running.uri)) as client:
        client.connect()
        start = time.monotonic()
        with pytest.raises(RuntimeError, match=r"late: no inference within 0\.25 s"):
            client.infer(varied(3))
        assert 0.2 < time.monotonic() - start < 0.55
        time.sleep(0.5)
        before = client.connect()
        assert client.infer(varied(0))["server_timing"].get("prev_total_ms")  # so it is the same connection
        assert client.connect() is before


def test_a_full_queue_answers_busy_and_the_connection_goes_on(serving):
    running = serving(Broken(), max_waiting=1, deadline_s=5.0)
    clients = [Client(running.uri, timeout_s=10) for _ in range(3)]
    for client in clients:
        client.connect()
    answers: list[str] = []

    def ask(client: Client, value: float) -> None:
        try:
            client.infer(varied(value))
            answers.append("ok")
        except RuntimeError as error:
            answers.append(str(error))

    threads = [threading.Thread(target=ask, args=(client, 3)) for client in clients]
    for thread in threads:  # the first is being answered, the second waits, the third is one too many
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert sorted(answers)[:2] == ["ok", "ok"]
    assert "busy: 1 requests wait already" in sorted(answers)[2]
    assert all(client.infer(varied(0)) for client in clients)
    for client in clients:
        client.close()


def test_the_key_is_asked_for_before_anything_else(serving, observation):
    running = serving(key=KEY)
    for headers in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": KEY}, {"Authorization": f"Bearer {KEY}"}):
        with pytest.raises(InvalidStatus) as refused:
            connect(running.uri, additional_headers=headers)
        assert refused.value.response.status_code == 401
        assert get(running.port, "/metrics", **headers)[0] == 401
    assert get(running.port, "/healthz") == (200, "OK\n")
    assert get(running.port, "/metrics", Authorization=f"Api-Key {KEY}")[0] == 200
    with closing(Client(running.uri, KEY)) as client:
        client.infer(observation)
    with pytest.raises(ConnectionError, match="401"):
        Client(running.uri, "wrong").connect()
    twice = [("Authorization", f"Api-Key {KEY}"), ("Authorization", "x")]
    with pytest.raises(InvalidStatus):
        connect(running.uri, additional_headers=twice)


def test_keys_are_compared_in_constant_time(serving, monkeypatch):
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return compare_digest(a, b)

    compare_digest = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    running = serving(key=KEY)
    for given in ("", "x", KEY[:-1], "x" * 5000):
        assert get(running.port, "/metrics", Authorization=f"Api-Key {given}")[0] == 401
    assert len(compared) == 4
    assert {len(part) for pair in compared for part in pair} == {32}  # digests: the length of a key shows no more


def test_another_address_than_loopback_needs_a_key():
    for host in ("0.0.0.0", "::", "10.1.2.3"):
        with pytest.raises(ValueError, match="can be reached from outside, which needs a key"):
            PolicyServer(ToyPolicy(), ServerConfig(host=host))
        PolicyServer(ToyPolicy(), ServerConfig(host=host), KEY)
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.9"):
        PolicyServer(ToyPolicy(), ServerConfig(host=host))


def test_http_beside_the_websocket(serving):
    running = serving()
    assert get(running.port, "/healthz") == (200, "OK\n")
    assert get(running.port, "/healthz?x=1") == (200, "OK\n")
    assert get(running.port, "/other")[0] == 404
    assert get(running.port, "/")[0] == 426  # a websocket is expected there
    with suppress(http.client.RemoteDisconnected):  # which is the answer of websockets before 17
        assert get(running.port, "/healthz", method="POST")[0] == 405
    status, text = get(running.port, "/metrics")
    assert status == 200
    for name in ("requests_total", "queue_depth", "batch_rows_bucket", "request_seconds_sum", "refused_total"):
        assert f"flowhand_{name}" in text


def test_a_web_page_cannot_reach_it(serving):
    running = serving()
    with pytest.raises(InvalidStatus) as refused:
        connect(running.uri, origin="http://evil.example")  # pyright: ignore[reportArgumentType]
    assert refused.value.response.status_code == 403


def test_health_tells_of_stuck_inference(serving, observation, monkeypatch):
    monkeypatch.setattr("flowhand.deploy.server.server.STUCK_S", 0.1)
    running = serving(Broken(), deadline_s=2.0)
    with closing(Client(running.uri)) as client, ThreadPoolExecutor(1) as pool:
        pending = pool.submit(client.infer, varied(3))
        time.sleep(0.3)
        assert get(running.port, "/healthz")[0] == 503
        pending.result()
    assert get(running.port, "/healthz")[0] == 200


def test_connections_are_counted(serving, observation):
    running = serving(max_connections=2)
    with closing(Client(running.uri)) as one, closing(Client(running.uri)) as two:
        one.infer(observation)
        two.infer(observation)
        assert metric(running.port, "flowhand_connections") == 2
        with pytest.raises(ConnectionError, match="503"):
            Client(running.uri).connect()
    with closing(Client(running.uri)) as three:
        three.infer(observation)


def test_a_robot_that_vanishes_leaves_nothing_behind(serving):
    running = serving(Broken())
    with connect(running.uri, compression=None) as raw:
        raw.recv()
        raw.send(pack(varied(3)))
        time.sleep(0.2)  # it is being answered
        raw.socket.shutdown(socket.SHUT_RDWR)
    deadline = time.monotonic() + 5
    while metric(running.port, "flowhand_connections") and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.6)  # its answer has come
    assert (running.server._answering, running.server._admission.open) == (set(), set())


def test_silent_peers_cannot_shut_the_door(serving, observation):
    running = serving(max_opening=8, open_timeout_s=30.0)
    silent = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(40)]
    silent[-1].sendall(b"GET / HTTP/1.1\r\nX: ")
    with closing(Client(running.uri)) as client:
        client.infer(observation)
    assert metric(running.port, 'flowhand_refused_total{reason="opening"}') >= 31
    for each in silent:
        each.close()


def test_who_says_nothing_is_sent_away(serving):
    running = serving(open_timeout_s=0.2)
    with socket.create_connection(("127.0.0.1", running.port), timeout=5) as silent:
        assert silent.recv(1) == b""


def test_a_long_http_request_is_cut_off(serving):
    running = serving(open_timeout_s=30.0)
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\n")
        assert flood(peer, b"X: y\r\n" * 50)


def upgraded(port: int) -> socket.socket:
    """A websocket without a library, which need not obey any rule."""
    peer = socket.create_connection(("127.0.0.1", port), timeout=20)
    lines = ["GET / HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    peer.sendall("\r\n".join([*lines, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "", ""]).encode())
    assert b"101 Switching" in peer.recv(4096)
    return peer


def frame(opcode: int, payload: bytes = b"") -> bytes:
    """A masked frame of up to 65,535 bytes; the mask is zero."""
    return bytes([0x80 | opcode, 0xFE]) + len(payload).to_bytes(2, "big") + b"\0\0\0\0" + payload


def flood(peer: socket.socket, data: bytes) -> bool:
    """Sends until the server ends the connection; whether it did."""
    try:
        for _ in range(10_000):
            peer.sendall(data)
    except (ConnectionError, BrokenPipeError):
        return True
    return False


@pytest.mark.parametrize("opcode", [0x9, 0x2])
def test_a_flood_of_frames_ends_its_connection_and_holds_nobody(serving, observation, opcode):
    running = serving()
    with upgraded(running.port) as peer, ThreadPoolExecutor(1) as pool, closing(Client(running.uri)) as client:
        ended = pool.submit(flood, peer, frame(opcode) * 2000)
        for _ in range(20):
            client.infer(observation)
        assert ended.result(20)


def test_pongs_that_nobody_reads_do_not_pile_up(serving, monkeypatch):
    monkeypatch.setattr("flowhand.deploy.server.connection.MAX_FRAMES", 10**9)  # as if they came slowly
    running = serving()
    with upgraded(running.port) as peer:
        assert flood(peer, frame(0x9, b"x" * 125) * 100)
    assert metric(running.port, 'flowhand_refused_total{reason="unread"}') == 1


def test_a_peer_that_does_not_read_is_cut_off(serving, observation):
    policy = ToyPolicy()
    policy.chunk.prediction_horizon, policy.noise_shape = 50_000, (50_000, 2)  # answers of 400 kB
    running = serving(policy, write_timeout_s=0.3)
    with upgraded(running.port) as peer:
        assert flood(peer, frame(0x2, pack(observation)))
    assert metric(running.port, 'flowhand_refused_total{reason="unread"}') == 1


def test_a_fast_client_is_slowed_down(serving, observation):
    running = serving(max_request_hz=50.0)
    with closing(Client(running.uri)) as client:
        start = time.monotonic()
        for _ in range(64):  # and one for the connection; 50 are the burst
            client.infer(observation)
        assert time.monotonic() - start > 13 / 50


def test_draining_answers_what_it_has_and_closes_with_1012(serving, observation):
    running = serving(Broken(), deadline_s=5.0)
    with connect(running.uri, compression=None) as idle, connect(running.uri, compression=None) as working:
        for raw in (idle, working):
            raw.recv()
        working.send(pack(varied(3)))
        time.sleep(0.2)
        running.stop()
        assert unpack(working.recv(decode=False))["actions"].shape == (8, 2)
        for raw in (idle, working):
            with pytest.raises(ConnectionClosed) as closed:
                raw.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
    with pytest.raises(ConnectionError, match="refused"):
        Client(running.uri).connect()


def test_sigterm_ends_the_process_with_status_0(process, observation):
    server = process(sleep_ms=300)
    with connect(server.uri, compression=None) as raw:
        raw.recv()
        raw.send(pack(observation))
        time.sleep(0.1)
        server.popen.terminate()
        assert unpack(raw.recv(decode=False))["actions"].shape == (8, 2)
    assert server.popen.wait(10) == 0


def test_an_address_that_cannot_be_listened_on_is_told_in_one_line(serving, monkeypatch):
    running = serving()
    cases = [
        ({"port": running.port}, "something listens there; stop it, or choose another port (0: any free one)"),
        ({"host": "192.0.2.1"}, "this machine has no such address; choose one of its own"),
    ]
    for options, advice in cases:
        server = PolicyServer(ToyPolicy(), ServerConfig(**{"port": 0, **options}), KEY)
        with pytest.raises(ValueError, match=re.escape(advice)) as told:
            asyncio.run(server.start())
        assert "\n" not in str(told.value)
    assert not [thread for thread in threading.enumerate() if thread.name == "inference"][1:]


def test_a_name_of_the_protocol_cannot_be_an_observation():
    policy = ToyPolicy()
    policy.spec.observation["reset"] = policy.spec.observation["joints"]
    with pytest.raises(ValueError, match="name of a key of the protocol"):
        PolicyServer(policy, ServerConfig())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"port": -1}, "port=-1 must lie in 0..65535"),
        ({"inference_batch": 0}, "inference_batch=0 must lie in 1..4096"),
        ({"deadline_s": float("nan")}, "deadline_s=nan must lie in"),
        ({"tls_key": "x"}, "go together"),
    ],
)
def test_the_configuration_is_checked(options, match):
    with pytest.raises(ValueError, match=match):
        ServerConfig(**options)
