"""The page's clock stands still until a step, and an episode is a function of its seed."""

import time

import numpy as np
import pytest

from benchmarks.web_repeats import Kept, episode
from envs import WebConfig
from envs.web.tasks import MINIWOB_FIRST, own_tasks, repeating
from tests.envs.web.browsers import act, require_browser, world, write_page

CLOCK = """
const seen = [];
function begin(seed) {
  seen.length = 0;
  const note = name => seen.push([name, Date.now() % 100000, performance.now()]);
  setTimeout(note, 100, "timeout");
  setTimeout(async () => { await null; await null; note("promised"); setTimeout(note, 30, "after"); }, 50);
  let count = 0;
  const every = setInterval(() => { note("every"); if (++count == 3) clearInterval(every); }, 60);
  requestAnimationFrame(() => note("frame"));
  const gone = setTimeout(note, 10, "never");
  clearTimeout(gone);
}
"""


@pytest.fixture
def page(tmp_path):
    require_browser(miniwob=False)
    style = "<style>#m { transition: left 1s linear; position: relative; left: 0 }</style><div id=m>x</div>"
    env = world(page=write_page(tmp_path, style, CLOCK))
    yield env
    env.close()


def test_timers_fire_in_their_order_at_their_time_and_at_no_other(page):
    page.reset(seed=0)
    start = page._tab.ask("Date.now()")
    first = page._tab.ask("seen")
    times = {name: now for name, _, now in first}
    assert [name for name, *_ in first] == ["frame", "promised", "every", "after", "timeout", "every", "every"]
    assert [times[name] for name in ("promised", "after", "timeout")] == [50, 80, 100]
    assert times["frame"] == pytest.approx(1000 / 60)
    time.sleep(0.05)
    assert page._tab.ask("[Date.now(), new Date().getTime(), performance.now()]") == [start, start, 250]
    page.step(act("stop"))
    assert page._tab.ask("Date.now()") == start + 250
    assert page._tab.ask("[typeof Date(), new Date(2020, 1, 2).getMonth(), new Date() instanceof Date]") == [
        "string",
        1,
        True,
    ]
    assert page._tab.ask("new Date().getTimezoneOffset()") == 0


def test_transitions_keep_to_the_clock(page):
    page.reset(seed=0)
    page._tab.ask("getComputedStyle(m).left; m.style.left = '40px'; getComputedStyle(m).left")
    for k in range(1, 5):
        page.step(act("stop"))
        time.sleep(0.02)
        assert page._tab.ask("parseFloat(getComputedStyle(m).left)") == pytest.approx(10 * k, abs=0.01)


def test_chance_comes_from_the_seed(page):
    drawn = []
    for seed in (3, 4, 3):
        page.reset(seed=seed)
        drawn.append(page._tab.ask("Array.from({length: 2000}, Math.random)"))
    assert drawn[0] == drawn[2] != drawn[1]
    assert np.mean(drawn[0]) == pytest.approx(0.5, abs=0.03)


def test_dialogs_are_dismissed_and_no_window_opens(page):
    page.reset(seed=0)
    assert page._tab.ask("[alert('x'), confirm('y'), prompt('z'), window.open('about:blank')]") == [
        None,
        False,
        None,
        None,
    ]


@pytest.mark.parametrize("task", ["click-collapsible-2-nodelay", "email-inbox-forward", "use-slider"])
def test_an_episode_is_a_function_of_its_seed_in_two_tabs_side_by_side(task):
    require_browser()
    one, other = (world(task=task) for _ in range(2))
    first = episode(one, 5)
    episode(other, 6)
    episode(one, 7)
    assert episode(other, 5) == episode(one, 5) == first
    one.close()
    other.close()


@pytest.mark.parametrize("task", ["click-button", "enter-text", "click-checkboxes"])
def test_where_no_reload_is_needed_episodes_are_the_same_without(task):
    require_browser()
    assert task in repeating() <= {*MINIWOB_FIRST, *own_tasks()}
    kept, always = (world(task=task, reload=reload) for reload in ("auto", "always"))
    for seed in (1, 2):
        assert episode(kept, seed) == episode(always, seed)
    kept.close()
    always.close()


def test_a_page_that_carries_something_over_is_found_out():
    require_browser()
    task = "use-slider"  # it keeps where its slider was
    assert task not in repeating()
    kept, always = Kept(WebConfig(task=task)), world(task=task)
    seeds = range(5)
    assert [episode(kept, seed) for seed in seeds] != [episode(always, seed) for seed in seeds]
    kept.close()
    always.close()


def test_what_does_not_repeat_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"^the web task 'order-food' is refused: its episode is no function of the seed"
    ):
        WebConfig(task="order-food")
