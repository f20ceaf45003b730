"""However a browser, a page or a parent ends: a clear error, no record, nothing left behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import envs
from envs import WebConfig
from envs.web import BrowserError, chromium
from envs.web.devtools import Browser
from flowhand.contracts.world import WorldError
from flowhand.evaluation.rollout import rollout
from tests.envs.web.browsers import KEPT, act, require_browser, row, world, write_page

HANG = "<button id=h onclick='for (;;);'>hang</button><button id=ok>ok</button>"


@pytest.fixture(autouse=True)
def _browser():
    require_browser(miniwob=False)


@pytest.fixture
def page(tmp_path):
    return write_page(tmp_path, HANG)


@pytest.fixture
def profiles(monkeypatch):
    """A temporary folder of the test's own, with a short name; what profiles lie there."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield lambda: sorted(Path(folder).iterdir())


def gone(pid, within_s=10.0):
    """Whether the process ends in time."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z" and os.getppid() != 1:  # nobody waits for the children of a killed parent here
            return True
        time.sleep(0.02)
    return False


def children(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(each) for each in found.stdout.split()]


def test_a_browser_that_is_killed_is_an_error_that_names_the_episode(page, profiles, monkeypatch):
    monkeypatch.setattr(envs.web.env, "acquire", lambda hosts: Browser(hosts))
    monkeypatch.setattr(envs.web.env, "release", lambda browser: browser.close())
    env = world(page=page)
    env.reset(seed=4)
    pid, inside = env._browser.pid, children(env._browser.pid)
    assert inside
    assert len(profiles()) == 1
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(
        BrowserError, match=r"^web task page, seed 4, step 1: the browser has died \(killed by SIGKILL\)$"
    ):
        env.step(act("stop"))
    assert all(gone(each) for each in inside)
    env.reset(seed=5)  # in a new browser
    assert env._browser.pid != pid
    assert len(profiles()) == 1
    env.close()
    assert profiles() == []


def test_no_record_is_made_up_for_an_episode_whose_browser_died(page):
    class Killer:
        def reset(self, lane, seed):
            pass

        def act(self, observations):
            os.kill(KEPT[-1].pid, signal.SIGKILL)
            return {lane: act("stop") for lane in observations}

    with pytest.raises(WorldError, match=r"seed 7, step 1: the browser has died"):
        rollout(partial(envs.make, WebConfig(page=page)), Killer(), [7, 8])


def test_a_page_that_hangs_is_an_error_and_the_next_episode_goes_on(page):
    env, other = (world(page=page) for _ in range(2))
    _, info = env.reset(seed=1)
    other.reset(seed=2)
    assert env._tab
    assert env._tab.timeout_s == env.config.timeout_s
    env._tab.timeout_s = 0.5  # of this tab alone, once it has loaded
    with pytest.raises(BrowserError, match=r"^web task page, seed 1, step 1: the page did not answer within 0.5 s$"):
        env.step(act("click", element=row(info, name="h")))
    other.step(act("stop"))  # in another tab
    _, info = env.reset(seed=3)
    *_, info = env.step(act("click", element=row(info, name="ok")))
    assert "problem" not in info
    env.close()
    other.close()


def test_what_a_page_says_wrongly_is_an_error_in_its_words(tmp_path):
    for script, message in (
        ("flowhand.reset = () => { throw new Error('no items') }", "the page's script failed: Error: no items"),
        ("flowhand.reset = () => 3", "flowhand.reset returned 3, expected an object with the string `instruction`"),
        (
            "flowhand.reward = () => ({reward: 'a', done: false})",
            "flowhand.reward returned .*, expected an object",
        ),
    ):
        env = world(page=write_page(tmp_path, "", script))
        with pytest.raises(WorldError, match=f"^web task page, seed 0, step 0: {message}"):
            env.reset(seed=0)
        env.close()
    (tmp_path / "bare.html").write_text("<p>nothing</p>")
    env = world(page=str(tmp_path / "bare.html"))
    with pytest.raises(WorldError, match=r"the page has no flowhand.reset and flowhand.reward"):
        env.reset(seed=0)
    env.close()


PARENT = """
import sys, time, envs
from envs import WebConfig
env = envs.make(WebConfig(page=sys.argv[1]))
env.reset(seed=0)
print(env._browser.pid, flush=True)
time.sleep(60)
"""


def test_a_browser_outlives_no_parent_and_its_profile_no_next_start(page, profiles):
    with subprocess.Popen([sys.executable, "-c", PARENT, page], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        inside = children(pid)
        chromium.remove_stale()
        assert len(profiles()) == 1  # it belongs to a living parent
        parent.kill()
    assert gone(pid)
    assert all(gone(each) for each in inside)
    chromium.remove_stale()
    assert profiles() == []


def test_without_a_browser_one_line_says_what_to_install(monkeypatch, page, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(chromium.VARIABLE, raising=False)
    with pytest.raises(FileNotFoundError, match=r"env=web needs Chromium, .*apt install chromium.*FLOWHAND_CHROMIUM"):
        chromium.find_chromium()
    monkeypatch.setenv(chromium.VARIABLE, "/nowhere/chrome")
    with pytest.raises(FileNotFoundError, match=r"FLOWHAND_CHROMIUM is '/nowhere/chrome', where no program lies"):
        chromium.find_chromium()


def test_a_program_that_is_no_browser_is_an_error_that_leaves_nothing(monkeypatch, profiles):
    monkeypatch.setenv(chromium.VARIABLE, "/bin/false")
    with pytest.raises(BrowserError, match=r"the browser has died \(exit status 1\)"):
        Browser()
    assert profiles() == []


def test_an_unknown_task_is_named_with_those_like_it():
    require_browser()
    with pytest.raises(ValueError, match=r"unknown web task 'click-buton': .*click-button"):
        world(task="click-buton")
    assert np.array_equal(act("stop"), np.zeros(8))
