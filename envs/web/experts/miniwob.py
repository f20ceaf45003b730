"""Experts for tasks of MiniWoB++: from what is on the screen to all that is left to do there.

None has a memory. A plan ends where the page must be looked at again. What a task keeps where no element shows it is
read by an expression in the page (`look`) and is `screen.hidden`.
"""

from __future__ import annotations

from datetime import datetime

from .moves import Move, click, drag, enter, press, said, seen
from .screen import Element, Screen

Plan = list[Move]


def one(screen: Screen) -> Plan:
    """Click-test-2."""
    return [click(seen(screen, text="ONE")[0])]


def one_then_two(screen: Screen) -> Plan:
    """Click-button-sequence."""
    first, second = (seen(screen, text=text)[0] for text in ("ONE", "TWO"))
    return [click(each) for each in (first, second) if not each.acted]


def quoted_button(screen: Screen) -> Plan:
    """Click-button."""
    (text,) = said(screen, r'"(.*)"')
    return [click(seen(screen, tag="button", text=text)[0])]


def dialog_button(screen: Screen) -> Plan:
    """Click-dialog-2."""
    (text,) = said(screen, r'"(.*)"')
    found = seen(screen, name="ui-dialog-titlebar-close") if text == "x" else seen(screen, text=text)
    return [click(found[0])]


def link(screen: Screen) -> Plan:
    """Click-link."""
    (text,) = said(screen, r'"(.*)"')
    return [click(seen(screen, name="alink", text=text)[0])]


ACTIVE_TAB = "$('#area').tabs('option', 'active')"


def link_behind_tabs(screen: Screen) -> Plan:
    """Click-tab-2-hard: the tabs are opened one after another."""
    (text,) = said(screen, r'"(.*)"')
    if found := seen(screen, name="alink", text=text):
        return [click(found[0])]
    tabs = seen(screen, name="ui-tabs-anchor")
    return [click(tabs[(screen.hidden + 1) % len(tabs)])]


OPEN_SECTION = "$('#area').accordion('option', 'active')"


def link_in_sections(screen: Screen) -> Plan:
    """Click-collapsible-2-nodelay: the sections are opened one after another."""
    (text,) = said(screen, r'"(.*)"')
    if found := seen(screen, name="alink", text=text):
        return [click(found[0])]
    sections = seen(screen, name="ui-accordion-header")
    opened = -1 if screen.hidden is False else screen.hidden
    return [click(sections[(opened + 1) % len(sections)])]


def submit(screen: Screen, text: str = "Submit") -> Plan:
    """A click on the last button of a form."""
    return [click(seen(screen, text=text)[-1])]


def option(screen: Screen) -> Plan:
    """Click-option."""
    (name,) = said(screen, r"[Ss]elect (\S+) and click Submit")
    return check(screen, {name}, "radio") + submit(screen)


def check(screen: Screen, names: set[str], kind: str) -> Plan:
    """Clicks on boxes until these, and of check boxes no others, are checked."""
    boxes = seen(screen, tag=kind)
    return [
        click(box)
        for box in boxes
        if box.checked != (box.label in names) and (kind == "checkbox" or box.label in names)
    ]


def checkboxes(screen: Screen) -> Plan:
    """Click-checkboxes, -large and -transfer."""
    (names,) = said(screen, r"[Ss]elect (.*) and click Submit")
    return check(screen, set(names.split(", ")), "checkbox") + submit(screen)


def chosen(screen: Screen) -> Plan:
    """Choose-list and click-scroll-list."""
    (names,) = said(screen, r"Select (.*) from the (?:scroll )?list")
    wanted = set(names.split(", "))
    options = seen(screen, tag="option")
    several = bool(screen.hidden)  # whether a click on one leaves the others
    return [
        click(each) for each in options if each.checked != (each.text in wanted) and (several or each.text in wanted)
    ] + submit(screen)


SEVERAL = "document.getElementById('options').multiple"


def fill(screen: Screen, fields: dict[Element, str]) -> Plan:
    """Types into those fields that do not hold their text yet."""
    return [enter(screen, field, text) for field, text in fields.items() if field.value != text]


def text(screen: Screen) -> Plan:
    """Enter-text."""
    (wanted,) = said(screen, r'"(.*)"')
    return fill(screen, {seen(screen, name="tt")[0]: wanted}) + submit(screen)


def password(screen: Screen) -> Plan:
    """Enter-password."""
    (wanted,) = said(screen, r'"(.*)"')
    fields = [seen(screen, name=name)[0] for name in ("password", "verify")]
    return fill(screen, dict.fromkeys(fields, wanted)) + submit(screen)


def login(screen: Screen) -> Plan:
    """Login-user."""
    user, secret = said(screen, r'username "(.*?)" and the password "(.*?)"')
    fields = {seen(screen, name="username")[0]: user, seen(screen, name="password")[0]: secret}
    return fill(screen, fields) + submit(screen, "Login")


def date(screen: Screen) -> Plan:
    """Enter-date."""
    (day,) = said(screen, r"Enter (\S+) as the date")
    field = seen(screen, name="tt")[0]
    right = field.value == datetime.strptime(day, "%m/%d/%Y").strftime("%Y-%m-%d")
    return ([] if right else [enter(screen, field, day)]) + submit(screen)


def movies(screen: Screen) -> Plan:
    """Multi-orderings."""
    wanted = said(screen, r"Search for (.*) movies directed by (.*) from year (\d+)")
    labels = ("Genre", "Director", "Year")
    fields = {seen(screen, tag="input", label=label)[0]: words for label, words in zip(labels, wanted, strict=True)}
    return fill(screen, fields) + submit(screen)


RESULT_PAGE = "Number($('#pagination .active').text())"  # 0 before the search


def search_result(screen: Screen) -> Plan:
    """Search-engine: three results stand on a page."""
    wanted, place = said(screen, r'enter "(.*?)".* the (\d+)\w\w search result')
    page, line = divmod(int(place) - 1, 3)
    field = seen(screen, name="search-text")[0]
    if not screen.hidden or field.value != wanted:
        return [*fill(screen, {field: wanted}), click(seen(screen, tag="button", text="Search")[0])]
    if screen.hidden == page + 1:
        return [click(seen(screen, name="search-title")[line])]
    return [click(seen(screen, tag="a", text=str(page + 1))[-1])]


def forwarded(screen: Screen) -> Plan:
    """Email-inbox-forward."""
    sender, receiver = said(screen, r"email by (.*) and forward that email to (.*?)\.?$")
    if field := seen(screen, name="forward-sender"):
        return [*fill(screen, {field[0]: receiver}), click(seen(screen, name="send-forward")[0])]
    if bar := seen(screen, text="Reply Forward"):  # which is one element: on its right half lies "Forward"
        return [click(bar[0], dx=bar[0].width / 4)]
    return [click(next(each for each in seen(screen, name="email-thread") if each.text.startswith(sender)))]


def completed(screen: Screen) -> Plan:
    """Use-autocomplete-nodelay."""
    start, end = said(screen, r'starts with "(.*?)"(?: and ends with "(.*?)")?')
    field = seen(screen, name="tags")[0]
    if field.value.startswith(start) and field.value.endswith(end or ""):
        return submit(screen)
    for item in seen(screen, name="ui-menu-item"):
        if item.text.startswith(start) and item.text.endswith(end or ""):
            return [click(item), *submit(screen)]
    return [enter(screen, field, start)]


def boxed(screen: Screen) -> Plan:
    """Drag-box: the large box lies on top, so it goes to the small one where that is hidden behind it."""
    small, large = (seen(screen, name=f"draggable{size}")[0] for size in ("Small", "Large"))
    apart = [abs(small.x - large.x), abs(small.y - large.y)]
    if max(apart) < 0.9 * (large.width - small.width) / 2:
        return submit(screen)
    hidden = max(apart) < large.width / 2
    return [drag(large, small) if hidden else drag(small, large), *submit(screen)]


SLIDER = "['min', 'max', 'value', 'orientation'].map((name) => $('#slider').slider('option', name))"
KEYS_AT_MOST = 5  # what is further is dragged


def slider(screen: Screen) -> Plan:
    """Use-slider: a drag for the most of the way, keys for the rest; then it looks again."""
    low, high, now, orientation = screen.hidden
    missing = int(said(screen, r"Select (-?\d+) with")[0]) - now
    handle = seen(screen, name="ui-slider-handle")[0]
    if not missing:
        return submit(screen)
    if abs(missing) <= KEYS_AT_MOST:
        return press(handle, "ArrowRight" if missing > 0 else "ArrowLeft", abs(missing))
    track = seen(screen, name="slider")[0]
    way = missing / (high - low)
    if orientation == "horizontal":
        return [drag(handle, handle, dx=way * track.width)]
    return [drag(handle, handle, dy=-way * track.height)]


def sort_numbers(screen: Screen) -> Plan:
    """Drag-sort-numbers: the first that stands wrong gets its number, then it looks again."""
    rows = sorted((each for each in screen.elements if _is_number(each.text)), key=lambda each: each.y)
    for place, row in enumerate(rows):
        least = min(rows[place:], key=lambda each: int(each.text))
        if int(least.text) < int(row.text):
            return [drag(least, row, dy=-0.5 * row.height)]
    return submit(screen)


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdigit()


# How often a regular polygon repeats around its middle, from the pixels of the canvas: the strongest of the harmonics
# 3 to 7 of the distance from the middle to the line that is drawn.
SIDES = """(() => {
  const canvas = document.getElementById('c'), {width, height} = canvas;
  const ink = canvas.getContext('2d').getImageData(0, 0, width, height).data;
  const harmonics = [3, 4, 5, 6, 7].map((n) => {
    let re = 0, im = 0;
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
      const weight = ink[4 * (y * width + x) + 3], angle = n * Math.atan2(y - height / 2, x - width / 2);
      const far = weight * Math.hypot(x - width / 2, y - height / 2);
      re += far * Math.cos(angle); im += far * Math.sin(angle);
    }
    return Math.hypot(re, im);
  });
  return 3 + harmonics.indexOf(Math.max(...harmonics));
})()"""


def sides(screen: Screen) -> Plan:
    """Count-sides."""
    return [click(seen(screen, tag="button", text=str(screen.hidden))[0])]
