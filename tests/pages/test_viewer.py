"""The live view: what a page is told, what it may do, and who may not see it; in a browser where there is one."""

import json
import os
import re
import shutil
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from flowhand.contracts.features import ChunkConfig, Feature, Spec
from flowhand.contracts.observers import Decision, EpisodeBegins, EpisodeEnds, Scored, StepTaken, Stopped
from flowhand.contracts.planner import NOTHING
from flowhand.control.controller import Controller
from flowhand.control.observers.threads import InThread
from flowhand.evaluation.rollout import rollout
from flowhand.pages.viewer import Viewer
from tests.envs.test_rollout import Walk

CHROMIUM = os.environ.get("FLOWHAND_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


class Planner:
    """Chunks that are the observation plus the noise."""

    spec = Spec({"state": Feature((1,), "float32", "m")}, Feature((1,), "float32", "m", names=("x",)), 0.02)
    chunk = ChunkConfig(1, 4, 2)
    noise_shape, continues = (4, 1), NOTHING

    def plan(self, observation, noise, prefix=None):
        return (observation["state"][:, -1:] * -0.1 + 0.01 * noise).astype(np.float32)


@contextmanager
def serving(**options):
    viewer = Viewer(**options)
    try:
        yield viewer
    finally:
        viewer.stop(Stopped())


def host_of(viewer):
    return viewer.url.rsplit("/", 2)[0]


@contextmanager
def page(viewer, origin=None):
    address = viewer.url.replace("http", "ws") + "socket"
    with connect(address, origin=Origin(origin or host_of(viewer)), max_size=None, close_timeout=0.5) as socket:
        yield socket


def state_when(socket, condition, within=10.0):
    """The first state for which this holds, and the pictures that came until then, by name."""
    pictures, end = {}, time.monotonic() + within
    while time.monotonic() < end:
        message = socket.recv(timeout=within)
        if isinstance(message, bytes):
            height, width, channels, length = struct.unpack("<4I", message[:16])
            name, pixels = message[16 : 16 + length].decode(), message[16 + length :]
            pictures[name] = np.frombuffer(pixels, np.uint8).reshape(height, width, channels)
        elif condition(state := json.loads(message)):
            return state, pictures
    raise TimeoutError("no such state came")


IMAGE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def test_a_page_is_shown_what_happens():
    with serving(planner=Planner(), samples=5, names=("x (m)",)) as viewer, page(viewer) as socket:
        state_when(socket, lambda state: True)
        seen = {"state": np.ones(1, np.float32), "camera": IMAGE[..., :1]}
        viewer.episode_begins(EpisodeBegins(0, 7, "walk", seen, IMAGE))
        chunk, history = np.full((4, 1), 0.5), {"state": np.ones((1, 1), np.float32)}
        viewer.decision(Decision(0, 7, 0, history, np.zeros((4, 1)), chunk, 2, 0.003))
        viewer.scored(Scored(0, {"entropy": 3.0}, {"entropy": 2.0}))
        viewer.step(StepTaken(0, 7, 0, seen, np.array([0.5]), np.array([0.25]), success=True))
        viewer.step(StepTaken(1, 8, 0, seen, np.array([9.0]), np.array([9.0])))  # of another lane
        viewer.episode_ends(EpisodeEnds(1, 8, 3, "time limit"))
        state, pictures = state_when(socket, lambda state: state["episodes"] == 1)
        assert (state["task"], state["seed"], state["step"], state["solved"]) == ("walk", 7, 1, True)
        assert (state["actions"], state["names"], state["successes"]) == ([[0.25]], ["x (m)"], 0)
        assert state["chunk"]["values"] == chunk.tolist()
        assert (state["chunk"]["delay"], state["chunk"]["ms"]) == (2, 3.0)
        fan = np.array(state["chunk"]["fan"])
        assert fan.shape == (5, 4, 1)
        assert len(np.unique(fan)) == 20  # every chunk of the fan has noise of its own
        np.testing.assert_allclose(fan, -0.1, atol=0.05)
        assert state["scores"] == [{"entropy": 1.5}]
        np.testing.assert_array_equal(pictures[""], IMAGE)
        np.testing.assert_array_equal(pictures["camera"], IMAGE[..., :1])
        viewer.episode_begins(EpisodeBegins(0, 9, "walk", None))
        state, _ = state_when(socket, lambda state: state["seed"] == 9)
        assert (state["actions"], state["chunk"], state["scores"]) == ([], None, [])
        viewer.stop(Stopped("KeyboardInterrupt"))
        assert state_when(socket, lambda state: state["ended"])[0]["ended"] == "KeyboardInterrupt"


def evaluating(viewer, records, seeds=(5, 3)):
    def work():
        agent = Controller(Planner(), observers=[viewer])
        records.extend(rollout(Walk, agent, seeds, observers=[viewer]))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_an_evaluation_is_paused_and_stepped_and_its_records_stay_the_same():
    plain, records = rollout(Walk, Controller(Planner()), (5, 3)), []
    with serving(planner=Planner(), control_dt_s=0.02) as viewer, page(viewer) as socket:
        socket.send("pause")
        state_when(socket, lambda state: state["paused"])
        thread = evaluating(viewer, records)
        state_when(socket, lambda state: state["step"] == 1)
        for step in (2, 3):
            with pytest.raises(TimeoutError):  # nothing is new while it stands still
                state_when(socket, lambda state, step=step: state["step"] >= step, within=0.3)
            socket.send("step")
            assert state_when(socket, lambda state, step=step: state["step"] >= step)[0]["step"] == step
        socket.send("fast")
        socket.send("play")
        state, pictures = state_when(socket, lambda state: state["ended"])
        thread.join(10)
    assert state["episodes"] == 2
    assert pictures[""].shape == (2, 2, 3)
    assert [(r.seed, r.steps, r.return_) for r in records] == [(r.seed, r.steps, r.return_) for r in plain]


def test_in_real_time_a_step_takes_its_time_and_without_a_page_none():
    with serving(control_dt_s=0.02) as viewer, page(viewer) as socket:
        state_when(socket, lambda state: True)
        begun, records = time.monotonic(), []
        evaluating(viewer, records).join(20)
        assert time.monotonic() - begun > 0.9 * 0.02 * (sum(record.steps for record in records) - 2)
    with serving(control_dt_s=10.0) as viewer:
        evaluating(viewer, records).join(20)
        assert len(records) == 4


def test_a_page_that_is_closed_pauses_nothing():
    with serving(control_dt_s=0.0) as viewer:
        with page(viewer) as socket:
            socket.send("pause")
            state_when(socket, lambda state: state["paused"])
            thread = evaluating(viewer, [])
            state_when(socket, lambda state: state["step"] == 1)
        thread.join(10)
        assert not thread.is_alive()


def test_a_control_is_stopped_by_the_page_and_never_waits_for_it():
    reasons = []
    with serving(control_dt_s=0.02, stop=reasons.append) as viewer, page(viewer) as socket:
        for command in ("pause", "nonsense", "stop"):
            socket.send(command)
        state, _ = state_when(socket, lambda state: state["paused"])
        assert state["control"]
        begun = time.monotonic()
        for step in range(20):
            viewer.step(StepTaken(0, 1, step, None, None, None))
        assert time.monotonic() - begun < 0.3
        assert state_when(socket, lambda state: state["step"] == 20)[0]["actions"] == [None] * 20
    assert reasons == ["viewer"]


def test_only_the_page_itself_gets_in():
    with serving() as viewer:
        with urllib.request.urlopen(viewer.url, timeout=5) as answer:
            text = answer.read().decode()
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "new WebSocket" in text
        assert not re.findall(r"(?:src|href)\s*=", text)  # nothing is loaded from anywhere
        host = host_of(viewer)
        for address, headers in [(f"{host}/", {}), (f"{host}/guess/", {}), (viewer.url, {"Host": "evil.example:80"})]:
            with pytest.raises(urllib.error.HTTPError, match=r"40[34]"):
                urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=5)
        for origin in ("http://evil.example", host.replace("127.0.0.1", "localhost"), "null"):
            with pytest.raises(InvalidStatus), page(viewer, origin):
                pass
        assert viewer._server.socket.getsockname()[0] == "127.0.0.1"


def test_a_fan_that_cannot_be_drawn_costs_the_fan_alone():
    planner = Planner()
    planner.plan = lambda *_: 1 / 0  # pyright: ignore[reportAttributeAccessIssue]
    with serving(planner=planner) as viewer, page(viewer) as socket:
        state_when(socket, lambda state: True)
        viewer.episode_begins(EpisodeBegins(0, 7, "walk", None))
        history = {"state": np.ones((1, 1), np.float32)}
        viewer.decision(Decision(0, 7, 0, history, np.zeros((4, 1)), np.zeros((4, 1)), 0, 0.0))
        state, _ = state_when(socket, lambda state: state["note"])
        assert state["note"] == "no fan: ZeroDivisionError: division by zero"
        assert state["chunk"]["fan"] == [[[0.0]] * 4]


def test_in_a_thread_an_observer_holds_up_nobody_and_its_failure_is_reported(caplog):
    class Slow(Viewer):
        def __init__(self):
            self.seen = []

        def step(self, event):
            time.sleep(0.05)
            self.seen.append(event.step)
            if event.step == 3:
                raise SystemExit("gone")

        def stop(self, event):
            self.seen.append("stop")

    slow = Slow()
    threaded = InThread(slow, most=5)
    begun = time.monotonic()
    for step in range(50):
        threaded.step(StepTaken(0, 1, step, None, None, None))
    assert time.monotonic() - begun < 0.05
    time.sleep(0.3)
    threaded.stop(Stopped())
    assert slow.seen[:4] == [0, 1, 2, 3]
    assert slow.seen[4:] == ["stop"]
    assert threaded.dropped >= 40
    from flowhand.control.background import LINES

    assert LINES.drain(5)
    assert "Slow failed and watches no more: SystemExit: gone" in caplog.messages


@contextmanager
def chromium(folder):
    """A function that evaluates JavaScript in a page of a headless Chromium, over the DevTools protocol."""
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    command = [CHROMIUM, *flags.split(), "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    reader = threading.Thread(target=process.stderr.read, daemon=True)  # or a full pipe would stop it
    try:
        port = next(m[1] for line in process.stderr if (m := re.search(r"listening on ws://127.0.0.1:(\d+)", line)))
        reader.start()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as answer:
            targets = [each for each in json.load(answer) if each["type"] == "page"]
        with connect(targets[0]["webSocketDebuggerUrl"], max_size=None) as tools:
            numbers = iter(range(1, 10_000))

            def call(method, **parameters):
                number = next(numbers)
                tools.send(json.dumps({"id": number, "method": method, "params": parameters}))
                while (answer := json.loads(tools.recv(timeout=20))).get("id") != number:
                    pass
                return answer["result"]

            yield call
    finally:
        process.kill()
        process.wait()
        reader.join(10)
        process.stderr.close()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; FLOWHAND_CHROMIUM names one")
def test_the_page_works_in_a_browser(tmp_path):
    with serving(planner=Planner(), control_dt_s=0.02, names=("x (m)",)) as viewer, chromium(tmp_path) as call:
        errors = []

        def value(script):
            answer = call("Runtime.evaluate", expression=script)
            errors.extend([answer["exceptionDetails"]] if "exceptionDetails" in answer else [])
            return answer["result"].get("value")

        def until(script):
            end = time.monotonic() + 20
            while not (found := value(script)) and time.monotonic() < end:
                time.sleep(0.05)
            assert not errors
            assert found, (script, value("document.body.innerText"))
            return found

        call("Page.navigate", url=viewer.url)
        until("document.getElementById('line') && state !== null")
        value("document.getElementById('pause').click()")
        until("document.getElementById('pause').textContent === 'Go on'")
        thread = evaluating(viewer, [])
        until("document.getElementById('line').textContent.startsWith('step 1 |')")
        value("document.getElementById('step').click()")
        line = until("document.getElementById('line').textContent.match(/^step 2 .*paused$/)?.[0]")
        assert "decided in" in line
        assert value("document.title") == "walk, seed 5"
        pixel = "[...document.getElementById('camera-').getContext('2d').getImageData(0, 0, 1, 1).data].join()"
        assert until(pixel) == "2,2,2,255"  # the world is drawn as bright as the number of the step
        inked = "document.getElementById('plot-0').getContext('2d').getImageData(60, 20, 600, 80).data.some(v => v)"
        assert until(inked)
        value("document.getElementById('fast').click(); document.getElementById('pause').click()")
        until("document.getElementById('line').textContent.includes('ended: all episodes are over')")
        thread.join(10)
