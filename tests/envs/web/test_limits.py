"""What a page may not reach, what is never touched, how often and whether at all something is done."""

import http.server
import threading

import numpy as np
import pytest

from envs import WebConfig
from envs.web import env as env_module
from tests.envs.web.browsers import act, require_browser, row, world, write_page

FORM = """<form id=f onsubmit="log.push('sent'); return false"><input id=a><button id=buy BUY>Buy</button></form>
<label for=tick>Agree</label><input type=checkbox id=tick TICK>"""


@pytest.fixture(autouse=True)
def _browser():
    require_browser(miniwob=False)


def opened(path, **settings):
    return world(page=path, **settings)


@pytest.mark.parametrize("how", ["attribute", "selector"])
def test_what_is_never_touched_gets_no_event_by_mouse_keyboard_or_label(tmp_path, how):
    mark = "data-flowhand-never" if how == "attribute" else ""
    never = [] if how == "attribute" else ["#buy", "#tick"]
    env = opened(write_page(tmp_path, FORM.replace("BUY", mark).replace("TICK", mark)), never=never)
    _, info = env.reset(seed=0)
    elements = {e["name"]: e for e in info["expert_observation"]["elements"]}
    assert {name: e["never"] for name, e in elements.items() if name} == {"a": False, "buy": True, "tick": True}
    for action in (
        act("click", element=row(info, name="buy")),
        act("key", element=row(info, name="a"), key="Enter"),  # the form would be sent by a click on its button
        act("key", element=row(info, name="buy"), key="Enter"),
        act("click", element=row(info, text="Agree")),
        act("click", element=row(info, name="tick")),
    ):
        *_, told = env.step(action)
        assert "may never be touched" in told["refused"][0]
    assert env._tab.ask("[log.length, tick.checked]") == [0, False]
    env.close()
    free = opened(write_page(tmp_path, FORM.replace("BUY", "").replace("TICK", "")))
    _, info = free.reset(seed=0)
    *_, told = free.step(act("click", element=row(info, name="buy")))
    free.step(act("click", element=row(info, text="Agree")))
    assert "refused" not in told
    assert free._tab.ask("[log.length, tick.checked]") == [1, True]
    free.close()


def test_lists_and_fields_that_are_never_touched_are_not_set_by_script(tmp_path):
    body = "<select id=s><option>a<option>b</select><input id=t><input type=date id=d>"
    env = opened(write_page(tmp_path, body, instruction="b 01/02/2020"), never=["#s", "#t", "#d"])
    _, info = env.reset(seed=0)
    for action in (
        act("click", element=row(info, text="b")),
        act("type", element=row(info, name="s"), first=0, last=0),
        act("type", element=row(info, name="t"), first=0, last=0),
        act("type", element=row(info, name="d"), first=1, last=1),
    ):
        *_, told = env.step(action)
        assert told["refused"]
    assert env._tab.ask("[s.value, t.value, d.value]") == ["a", "", ""]
    env.close()


@pytest.fixture
def server(tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given):
            super().__init__(*given, directory=str(tmp_path))

        def end_headers(self):
            self.send_header("Access-Control-Allow-Origin", "*")
            super().end_headers()

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


FETCH = "fetch('{}/page.html').then(() => 'reached', () => 'not reached')"


def test_the_network_is_off_but_for_what_is_allowed(tmp_path, server):
    path = write_page(tmp_path, f"<a id=out href='{server}/page.html'>out</a>")
    closed = opened(path)
    _, info = closed.reset(seed=0)
    assert closed._tab.ask(FETCH.format(server)) == "not reached"
    *_, info = closed.step(act("click", element=row(info, name="out")))
    assert info["blocked"] == [f"{server}/page.html"]
    assert info["expert_observation"]["address"].startswith("file:")
    closed.close()
    with pytest.raises(ValueError, match=r"is not one of env.allow_origins"):
        WebConfig(page=f"{server}/page.html")
    env = opened(f"{server}/page.html", allow_origins=[server])
    _, info = env.reset(seed=0)
    assert info["expert_observation"]["address"] == f"{server}/page.html"
    assert env._tab.ask(FETCH.format(server)) == "reached"
    assert env._tab.ask(FETCH.format(server.replace("127.0.0.1", "localhost"))) == "not reached"
    env.close()


def test_a_page_reaches_the_pages_beside_it_and_no_other_file(tmp_path):
    (tmp_path / "secret.html").write_text("secret")
    folder = tmp_path / "app"
    folder.mkdir()
    script = "if (sessionStorage.done) { over = true; score = 1 }"
    write_page(folder, "<p>second</p>", script, name="second.html")
    links = "<a id=next href=second.html onclick='sessionStorage.done = 1'>next</a><a id=up href=../secret.html>up</a>"
    env = opened(write_page(folder, links))
    _, info = env.reset(seed=0)
    *_, info = env.step(act("click", element=row(info, name="up")))
    assert info["blocked"] == [(tmp_path / "secret.html").as_uri()]
    _, reward, terminated, _, info = env.step(act("click", element=row(info, name="next")))
    assert (reward, terminated, info["success"]) == (1, True, True)
    assert [e["text"] for e in info["expert_observation"]["elements"]] == ["second"]
    _, info = env.reset(seed=1)  # nothing is left of the episode before
    assert env._tab.ask("sessionStorage.length") == 0
    env.close()


def test_a_dry_run_draws_and_does_nothing(tmp_path):
    env = opened(write_page(tmp_path, "<button id=b onclick='score = 1; over = true'>b</button>"), dry_run=True)
    _, info = env.reset(seed=0)
    before = env.render()
    _, reward, terminated, _, info = env.step(act("click", element=row(info, name="b")))
    assert (reward, terminated) == (0, False)
    assert env._tab.ask("performance.now()") == 500
    assert not np.array_equal(env.render(), before)
    env.close()


def test_no_more_actions_a_minute_than_allowed(tmp_path, monkeypatch):
    now, slept = [0.0], []

    class Clock:
        monotonic = staticmethod(lambda: now[0])

        @staticmethod
        def sleep(seconds):
            slept.append(seconds)
            now[0] += seconds

    monkeypatch.setattr(env_module, "time", Clock)
    env = opened(write_page(tmp_path, "<button id=b>b</button>"), actions_per_minute=3)
    _, info = env.reset(seed=0)
    done = []
    for k in range(8):
        env.step(act("stop"))  # does nothing and counts for nothing
        env.step(act("click", element=row(info, name="b")))
        done.append(now[0])
        now[0] += 1 if k != 5 else 50
    assert all(later - earlier >= 60 for earlier, later in zip(done, done[3:], strict=False))
    assert sum(slept) == pytest.approx(57 + 8)
    env.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"observes": "dom"}, "observes is 'dom', expected elements or pixels or both"),
        ({"reload": "never"}, "reload is 'never', expected auto or always"),
        ({"max_steps": 0}, "max_steps is 0, expected 1 or more"),
        ({"tick_ms": 0.0}, "tick_ms is 0.0, expected a positive number"),
        ({"width": 5}, "width is 5, expected 16 to 2000 pixels"),
        ({"actions_per_minute": -1}, "actions_per_minute is -1, expected 0 or more"),
        ({"allow_origins": ["localhost"]}, "'localhost' is no origin, expected one such as http://localhost:8000"),
    ],
)
def test_settings_that_are_wrong_are_named(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        WebConfig(**settings)
