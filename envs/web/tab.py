"""One tab with a page whose clock is frozen: loaded, asked, and acted on with mouse and keyboard."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .chromium import BrowserError
from .devtools import Browser, Command, NoAnswerError, RefusedError

SCRIPTS = ("clock.js", "guard.js", "elements.js", "acts.js")
MODIFIER = {"Control": 2, "Shift": 8}
# Of each key: its code, its number, and what it writes.
CODES = {
    "Enter": ("Enter", 13, "\r"),
    "Tab": ("Tab", 9, ""),
    "Escape": ("Escape", 27, ""),
    "Backspace": ("Backspace", 8, ""),
    "Delete": ("Delete", 46, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
    "ArrowLeft": ("ArrowLeft", 37, ""),
    "ArrowRight": ("ArrowRight", 39, ""),
    "A": ("KeyA", 65, ""),
}
SETTLE_S = 2.0  # longest wait for what a page loads beside itself
ENDLESS = ("EventSource", "WebSocket", "Ping", "Media", "Prefetch")  # requests that nobody waits for
DRAG_MOVES = 5  # on the way from where a drag begins to where it ends


class Tab:
    """A tab in a browsing context of its own: no cookies, storage or history shared with others.

    Args:
        browser: where it opens.
        screen: width and height of what is seen of the page, from its upper left corner, pixels.
        viewport: width and height of the page's window, pixels.
        roots: beginnings of the addresses that it may load.
        settings: `never` (selectors) and `ignore` (a selector), for the scripts in `page/`.
        timeout_s: longest wait for an answer.

    Raises:
        BrowserError: from every method, if the browser has died or the page does not answer.
    """

    def __init__(
        self,
        browser: Browser,
        screen: tuple[int, int],
        viewport: tuple[int, int],
        roots: Sequence[str],
        settings: Mapping[str, Any],
        timeout_s: float,
    ):
        self.browser, self.screen, self.timeout_s = browser, screen, timeout_s
        self.blocked: list[str] = []  # addresses that it was kept from loading, since somebody emptied this
        self._roots = tuple(roots)
        self._loading, self._crashed = False, False
        self._requests: set[str] = set()  # that are under way
        self._mouse = (0.0, 0.0)
        self._context = browser.call("Target.createBrowserContext", {}, timeout_s=timeout_s)["browserContextId"]
        given = {"url": "about:blank", "browserContextId": self._context}
        target = browser.call("Target.createTarget", given, timeout_s=timeout_s)["targetId"]
        attached = browser.call("Target.attachToTarget", {"targetId": target, "flatten": True}, timeout_s=timeout_s)
        self._session = attached["sessionId"]
        self._frame = target  # the id of a page's outermost frame is that of its target
        browser.listen(self._session, self._event)
        source = _source(json.dumps({**settings, "width": screen[0], "height": screen[1]}))
        metrics = {"width": viewport[0], "height": viewport[1], "deviceScaleFactor": 1, "mobile": False}
        patterns = [{"urlPattern": "*", "resourceType": "Document"}, {"urlPattern": "http*"}, {"urlPattern": "file*"}]
        self._calls(
            ("Page.enable", {}),
            ("Inspector.enable", {}),
            ("Network.enable", {"maxTotalBufferSize": 10_000, "maxResourceBufferSize": 5_000}),  # bytes kept
            ("Emulation.setDeviceMetricsOverride", metrics),
            ("Emulation.setTimezoneOverride", {"timezoneId": "UTC"}),
            ("Emulation.setLocaleOverride", {"locale": "en-US"}),
            ("Emulation.setFocusEmulationEnabled", {"enabled": True}),
            ("Page.setInterceptFileChooserDialog", {"enabled": True}),
            ("Page.addScriptToEvaluateOnNewDocument", {"source": source}),
            ("Fetch.enable", {"patterns": patterns[:1] if all(r.startswith("file:") for r in roots) else patterns}),
        )

    def load(self, address: str) -> None:
        """Loads a page anew.

        Raises:
            ValueError: there is no such page.
        """
        self._loading = True
        self._requests.clear()
        answer = self._call("Page.navigate", {"url": address})
        if answer.get("errorText"):
            self._loading = False
            raise ValueError(f"{address} cannot be loaded ({answer['errorText']})")
        self._loaded()

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression, of what it promises where it is a promise; waits for pages that load.

        Raises:
            ValueError: the page's script failed.
        """
        for _ in range(10):
            self._loaded()
            answer = self._call(
                "Runtime.evaluate", {"expression": expression, "returnByValue": True, "awaitPromise": True}, True
            )
            if answer is None:  # another page is taking its place
                time.sleep(0.02)
                continue
            if "exceptionDetails" in answer:
                details = answer["exceptionDetails"]
                text = details.get("exception", {}).get("description") or details.get("text", "")
                raise ValueError(f"the page's script failed: {' '.join(str(text).split())[:300]}")
            return answer["result"].get("value")
        raise BrowserError("the page is replaced over and over")

    def settle(self) -> bool:
        """Waits for what the page is loading, such as pictures, which have no size before; whether it did.

        After `SETTLE_S` it waits no longer: some requests of pages with a server never end.
        """
        if not self._requests:
            return False
        with contextlib.suppress(NoAnswerError):
            self.browser.wait(lambda: not self._requests or self._crashed, SETTLE_S, "requests")
        self._requests.clear()
        self._check()
        return True

    def click(self, x: float, y: float) -> None:
        """Moves the mouse to a place (pixels) and clicks."""
        place = {"x": x, "y": y}
        button = {**place, "button": "left", "clickCount": 1}
        self._mouse = (x, y)
        self._calls(
            ("Input.dispatchMouseEvent", {**place, "type": "mouseMoved"}),
            ("Input.dispatchMouseEvent", {**button, "type": "mousePressed", "buttons": 1}),
            ("Input.dispatchMouseEvent", {**button, "type": "mouseReleased"}),
        )

    def move(self, x: float, y: float) -> None:
        """Moves the mouse."""
        self._mouse = (x, y)
        self._calls(("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y}))

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Presses at one place, moves to another in steps, each of which the page sees, and lets go."""
        self.move(*start)
        press = {"x": start[0], "y": start[1], "button": "left", "clickCount": 1}
        self._calls(("Input.dispatchMouseEvent", {**press, "type": "mousePressed", "buttons": 1}))
        for k in range(1, DRAG_MOVES + 1):
            x, y = (a + (b - a) * k / DRAG_MOVES for a, b in zip(start, end, strict=True))
            moved = {"type": "mouseMoved", "x": x, "y": y, "button": "left", "buttons": 1}
            self._calls(("Input.dispatchMouseEvent", moved))
        self._mouse = end
        release = {"type": "mouseReleased", "x": end[0], "y": end[1], "button": "left", "clickCount": 1}
        self._calls(("Input.dispatchMouseEvent", release))

    def write(self, text: str) -> None:
        """Replaces what stands in the focused field, key by key."""
        events = list(_press("Control+A"))
        if not text:
            events += _press("Delete")
        for letter in text:
            key = {"key": letter, "text": letter, "unmodifiedText": letter}
            if letter in "\r\n":
                events += _press("Enter")
                continue
            if letter.isascii() and letter.isalnum():
                key |= {"windowsVirtualKeyCode": ord(letter.upper())}
            events += [("Input.dispatchKeyEvent", {"type": "keyDown", **key})]
            events += [("Input.dispatchKeyEvent", {"type": "keyUp", **key})]
        self._calls(*events)

    def press(self, key: str) -> None:
        """Presses one of the contract's `KEYS`."""
        self._calls(*_press(key))

    def picture(self) -> np.ndarray:
        """What is seen, uint8 (height, width, 3)."""
        from PIL import Image

        clip = {"x": 0, "y": 0, "width": self.screen[0], "height": self.screen[1], "scale": 1}
        # Of what is in the window, however far the page is scrolled.
        scrolled = self.ask("[scrollX, scrollY]")
        clip |= {"x": scrolled[0], "y": scrolled[1]}
        answer = self._call("Page.captureScreenshot", {"format": "png", "clip": clip, "optimizeForSpeed": True})
        image = Image.open(io.BytesIO(base64.b64decode(answer["data"]))).convert("RGB")
        return np.asarray(image, np.uint8)[: self.screen[1], : self.screen[0]].copy()

    @property
    def loading(self) -> bool:
        """Whether another page is about to take the place of this one."""
        return self._loading

    @property
    def mouse(self) -> tuple[float, float]:
        """Where the mouse is, pixels."""
        return self._mouse

    def close(self) -> None:
        """Closes the tab, hung or not, with all that belongs to it."""
        self.browser.listen(self._session, None)
        if self.browser.running:
            self.browser.call("Target.disposeBrowserContext", {"browserContextId": self._context}, timeout_s=30.0)

    def _loaded(self) -> None:
        """Waits for a page that loads."""
        if self._loading:
            self.browser.wait(lambda: not self._loading or self._crashed, self.timeout_s, "loading the page")
        self._check()

    def _check(self) -> None:
        if self._crashed:
            raise BrowserError("the page has crashed")

    def _call(self, method: str, params: Mapping[str, Any], replaced: bool = False) -> Any:
        """The answer; None if `replaced` and the page in which it was to run is gone."""
        try:
            return self.browser.call(method, params, self._session, self.timeout_s)
        except NoAnswerError:
            self._check()
            raise NoAnswerError(f"the page did not answer within {self.timeout_s:g} s") from None
        except RefusedError as error:
            self._check()
            if replaced and any(text in str(error) for text in ("context", "navigated", "Promise was collected")):
                return None
            raise

    def _calls(self, *commands: Command) -> None:
        try:
            self.browser.calls(commands, self._session, self.timeout_s)
        except NoAnswerError:
            self._check()
            raise NoAnswerError(f"the page did not answer within {self.timeout_s:g} s") from None

    def _event(self, method: str, params: Mapping[str, Any]) -> None:
        if method in ("Page.frameRequestedNavigation", "Page.frameStartedNavigating", "Page.frameStartedLoading"):
            self._loading |= params.get("frameId") == self._frame
        elif method in ("Page.loadEventFired", "Page.frameStoppedLoading"):
            if params.get("frameId", self._frame) == self._frame:
                self._loading = False
        elif method == "Network.requestWillBeSent":
            if params.get("type") not in ENDLESS:
                self._requests.add(params["requestId"])
        elif method in ("Network.loadingFinished", "Network.loadingFailed"):
            self._requests.discard(params["requestId"])
        elif method == "Fetch.requestPaused":
            self._judge(params)
        elif method == "Page.javascriptDialogOpening":  # of leaving the page; the others are taken from it
            self.browser.post("Page.handleJavaScriptDialog", {"accept": True}, self._session)
        elif method == "Inspector.targetCrashed":
            self._crashed = True

    def _judge(self, paused: Mapping[str, Any]) -> None:
        """Lets a request go on, or not."""
        address = paused["request"]["url"]
        if address.startswith((*self._roots, "about:", "blob:")):
            self.browser.post("Fetch.continueRequest", {"requestId": paused["requestId"]}, self._session)
            return
        self.blocked.append(address)
        refused = {"requestId": paused["requestId"], "errorReason": "Aborted"}
        self.browser.post("Fetch.failRequest", refused, self._session)


def _press(key: str) -> list[Command]:
    """Down and up of a key with its modifier."""
    *modifiers, name = key.split("+")
    code, number, text = CODES[name]
    event: dict[str, Any] = {"key": name.lower() if modifiers else name, "code": code, "windowsVirtualKeyCode": number}
    event["modifiers"] = sum(MODIFIER[each] for each in modifiers)
    down: dict[str, Any] = {**event, "type": "keyDown" if text else "rawKeyDown"}
    if text:
        down["text"] = text
    if key == "Control+A":
        down["commands"] = ["selectAll"]
    return [("Input.dispatchKeyEvent", down), ("Input.dispatchKeyEvent", {**event, "type": "keyUp"})]


@cache
def _source(settings: str) -> str:
    """The scripts in `page/`, run before those of a page; in frames inside it there are none."""
    folder = Path(__file__).with_name("page")
    scripts = "\n".join((folder / name).read_text() for name in SCRIPTS)
    inside = f"const settings = {settings};\n{scripts}\n"
    hidden = "Object.defineProperty(window, '__flowhand', {value: flowhandPage});"
    return f"(() => {{ if (window !== window.top) return;\n{inside}{hidden}\n}})();"
