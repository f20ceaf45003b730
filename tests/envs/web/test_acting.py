"""Every action of the contract on a page that logs what comes to it, and what the world says of it."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from flowhand.contracts.screen.fields import FIELDS, NUMBERS, STRINGS, stale
from tests.envs.test_check_env import ADVICE
from tests.envs.web.browsers import act, require_browser, row, world, write_page

BODY = """
<div id=title>Ship to</div>
<label for=a>Name</label><input id=a><br><input id=b value="old text" placeholder="Town"><br>
<select id=s><option>red<option>green apple</select>
<select id=m multiple size=3><option>one<option>two<option>three</select>
<input type=date id=d><input type=checkbox id=c><button id=go>Go now</button>
<div id=box draggable=false style="width:10px;height:10px;background:red;cursor:pointer"></div>
<div id=pane style="height:20px;width:60px;overflow:auto"><p>first<p>second<p>third<p>fourth</div>
<script>
const note = e => log.push([e.type, e.target.id, e.isTrusted, e.key || "", e.clientX, e.clientY]);
for (const name of ["mousedown", "mousemove", "mouseup", "click", "keydown", "input", "change", "scroll"])
  document.addEventListener(name, note, true);
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    require_browser(miniwob=False)
    path = write_page(tmp_path_factory.mktemp("page"), BODY, instruction='Enter "green apple" or old gold, please.')
    env = world(page=path)
    yield env
    env.close()


def logged(env):
    return env._tab.ask("log.splice(0)")


def value(env, name):
    return env._tab.ask(f"document.getElementById('{name}').value")


def test_what_is_seen_of_a_page(page):
    observation, info = page.reset(seed=0)
    seen = info["expert_observation"]
    assert seen["fields"] == {"seed": "0"}
    a, b = row(info, name="a"), row(info, name="b")
    told = {name: bytes(observation["element_strings"][b, i]).rstrip(b"\0") for i, name in enumerate(STRINGS)}
    assert told == {"tag": b"input:text", "text": b"", "value": b"old text", "label": b"Town", "name": b"b"}
    assert bytes(observation["element_strings"][a, STRINGS.index("label")]).rstrip(b"\0") == b"Name"
    numbers = dict(zip(NUMBERS, observation["elements"][row(info, name="box")].tolist(), strict=True))
    assert numbers["present"] == numbers["enabled"] == numbers["red"] == 1
    assert numbers["width"] == pytest.approx(10 / 160)
    assert (numbers["acted"], numbers["green"], numbers["checked"]) == (0, 0, 0)
    box = page._tab.ask(
        "(r => [r.x + r.width / 2, r.y + r.height / 2])(document.getElementById('box').getBoundingClientRect())"
    )
    assert [160 * numbers["x"], 160 * numbers["y"]] == pytest.approx(box, abs=1e-3)


def test_a_click_is_the_mouses_and_its_offset_counts(page):
    _, info = page.reset(seed=0)
    go = row(info, name="go")
    observation, *_, info = page.step(act("click", element=go, dx=5 / 160, dy=-2 / 160))
    clicks = [each for each in logged(page) if each[0] in ("mousedown", "mouseup", "click")]
    element = next(e for e in info["expert_observation"]["elements"] if e["row"] == go)
    x, y = element["left"] + element["width"] / 2 + 5, element["top"] + element["height"] / 2 - 2
    assert [each[:3] for each in clicks] == [[n, "go", True] for n in ("mousedown", "mouseup", "click")]
    assert clicks[0][4:] == pytest.approx([x, y], abs=1)
    assert observation["elements"][go, NUMBERS.index("acted")] == 1
    assert observation["elements"][go, NUMBERS.index("focused")] == 1


def test_typing_replaces_what_stood_there_key_by_key(page):
    _, info = page.reset(seed=0)
    page.step(act("type", element=row(info, name="b"), first=1, last=2))
    assert value(page, "b") == "green apple"
    keys = [each for each in logged(page) if each[0] == "keydown"]
    assert [each[3] for each in keys][-11:] == list("green apple")
    assert all(each[2] for each in keys)


def test_copying_and_what_is_set_by_script(page):
    _, info = page.reset(seed=0)
    page.step(act("copy", element=row(info, name="a"), target=row(info, name="b")))
    assert value(page, "a") == "old text"
    page.step(act("copy", element=row(info, name="a"), target=row(info, name="title")))
    assert value(page, "a") == "Ship to"
    page.step(act("click", element=row(info, text="green apple")))
    assert value(page, "s") == "green apple"
    *_, info = page.step(act("click", element=row(info, text="one")))
    *_, info = page.step(act("click", element=row(info, text="three")))
    assert page._tab.ask("[...m.selectedOptions].map(o => o.text)") == ["one", "three"]
    page.step(act("click", element=row(info, text="one")))
    assert page._tab.ask("[...m.selectedOptions].map(o => o.text)") == ["three"]
    *_, info = page.step(act("type", element=row(info, name="s"), first=3, last=4))
    assert info["problem"] == "the list has no such option"


def test_dates_boxes_keys_and_scrolling(page):
    _, info = page.reset(seed=0)
    *_, told = page.step(act("type", element=row(info, name="d"), first=1, last=1))
    assert told["problem"] == "the field takes no such text"
    *_, info = page.step(act("click", element=row(info, name="c")))
    assert next(e for e in info["expert_observation"]["elements"] if e["name"] == "c")["checked"]
    logged(page)
    page.step(act("key", element=row(info, name="a"), key="ArrowLeft"))
    assert [each[:4] for each in logged(page) if each[0] == "keydown"] == [["keydown", "a", True, "ArrowLeft"]]
    pane = row(info, name="pane")
    *_, info = page.step(act("scroll", element=pane, dy=10 / 160))
    assert page._tab.ask("pane.scrollTop") == 10
    assert ["scroll", "pane"] in [each[:2] for each in logged(page)]
    *_, info = page.step(act("scroll", element=pane, dy=-99.0))
    assert page._tab.ask("pane.scrollTop") == 0
    *_, info = page.step(act("scroll", element=pane, dy=-1.0))
    assert info["problem"] == "nothing there scrolls so"


def test_a_drag_moves_in_steps_from_middle_to_middle(page):
    _, info = page.reset(seed=0)
    logged(page)
    box, title = row(info, name="box"), row(info, name="title")
    page.step(act("drag", element=box, target=title, dx=3 / 160))
    events = [each for each in logged(page) if each[0].startswith("mouse")]
    names = [each[0] for each in events]
    pressed, released = names.index("mousedown"), names.index("mouseup")
    assert events[pressed][1] == "box"
    assert names[pressed:released].count("mousemove") >= 3
    end = next(e for e in info["expert_observation"]["elements"] if e["row"] == title)
    assert events[released][4:] == pytest.approx(
        [end["left"] + end["width"] / 2 + 3, end["top"] + end["height"] / 2], abs=1
    )


@pytest.mark.parametrize(
    ("action", "problem"),
    [
        (act("click", element=63), "row 63 has no element"),
        (act("drag", element=0, target=62), "row 62 has no element"),
        (act("type", element=1, first=39), "the instruction has no word 39"),
    ],
)
def test_what_cannot_be_done_does_nothing_and_says_so(page, action, problem):
    page.reset(seed=0)
    logged(page)
    *_, info = page.step(action)
    assert info["problem"] == problem
    assert [each for each in logged(page) if each[0] != "mousemove"] == []


def test_a_plan_that_points_at_what_has_gone_is_stale(page):
    seen, info = page.reset(seed=0)
    action = act("click", element=row(info, name="go"))
    page._tab.ask("go.textContent = 'Gone'")
    now = page.step(act("stop"))[0]
    assert stale(action, seen, now)
    assert not stale(act("click", element=row(info, name="a")), seen, now)


def test_the_same_by_places(page, tmp_path):
    env = world(page=page.config.page, observes="pixels")
    observation, info = env.reset(seed=0)
    assert observation["screen"].shape == (210, 160, 3)
    assert set(observation) == {"words", "screen"}
    places = {e["name"]: e for e in info["expert_observation"]["elements"]}

    def at(name, suffix=""):
        e = places[name]
        return {f"x{suffix}": (e["left"] + e["width"] / 2) / 160, f"y{suffix}": (e["top"] + e["height"] / 2) / 160}

    red = observation["screen"][int(160 * at("box")["y"]), int(160 * at("box")["x"])]
    assert red.tolist() == [255, 0, 0]
    env.step(act("type", pixels=True, **at("a"), first=1, last=1))
    assert env._tab.ask("a.value") == "green"
    env.step(act("copy", pixels=True, **at("b"), **at("a", "2")))
    assert env._tab.ask("b.value") == "green"
    env.step(act("key", pixels=True, **at("b"), key="Backspace"))
    assert env._tab.ask("b.value") == "gree"
    env.step(act("click", pixels=True, **at("go")))
    assert env._tab.ask("document.activeElement.id") == "go"
    env.close()


@pytest.mark.filterwarnings(*(f"ignore:.*{text}" for text in ADVICE))
def test_a_world_of_pictures_passes_gymnasiums_own_check(page):
    env = world(page=page.config.page, observes="pixels")
    check_env(env, skip_render_check=True)
    env.close()


def test_too_much_is_counted_and_said_once(tmp_path, caplog):
    require_browser(miniwob=False)
    body = "".join(f"<b style='position:absolute;left:{i % 10 * 16}px;top:{i // 10 * 12}px'>{i}</b>" for i in range(70))
    path = write_page(
        tmp_path, body + "<button style='position:absolute;top:180px'>Last</button>", instruction="w " * 45
    )
    env = world(page=path)
    for seed in (0, 1):
        _, info = env.reset(seed=seed)
        assert info["left_out"] == {"elements": 7, "words": 5}
        assert row(info, text="Last") == 63
    assert [r.getMessage() for r in caplog.records if "no row" in r.getMessage()] == [
        "web task page, seed 0: 7 elements and 5 words have no row among 64 and 40 (info['left_out'])"
    ]
    env.close()


def test_a_picture_shows_the_mouse_and_what_was_done(page):
    page.reset(seed=0)
    before = page.render()
    *_, info = page.step(act("stop"))
    go = row(info, name="go")
    page.step(act("click", element=go))
    after = page.render()
    assert after.shape == (420, 320, 3)
    element = next(e for e in info["expert_observation"]["elements"] if e["row"] == go)
    x, y = (round(2 * (element[a] + element[b] / 2)) for a, b in (("left", "width"), ("top", "height")))
    assert (np.abs(after.astype(int) - before).sum(2) > 0)[y - 10 : y + 11, x - 10 : x + 11].sum() > 40
    assert len(FIELDS) == page.features.action.size
