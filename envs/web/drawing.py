"""The mouse and the last action, drawn into a picture of the screen."""

from __future__ import annotations

import numpy as np

from .hands import Act

RED, BLUE, BLACK, WHITE = (220, 30, 30), (30, 80, 220), (0, 0, 0), (255, 255, 255)
# The mouse as it is usually drawn: X outline, o inside.
POINTER = """
X
XX
XoX
XooX
XoooX
XooooX
XoooooX
XooooooX
XoooXXXXX
XoXoX
XX XoX
X  XoX
    X
""".strip("\n").splitlines()


def drawn(picture: np.ndarray, act: Act | None, mouse: tuple[float, float], zoom: int) -> np.ndarray:
    """The picture (H, W, 3) uint8 with what the act is at framed, a ring at its place, a line along a drag or scroll.

    Args:
        picture: of the screen; it is drawn into.
        act: the last action, or None.
        mouse: where the mouse is, pixels of the screen.
        zoom: pixels of the picture for one of the screen.
    """
    if act is not None and act.kind != "stop" and not act.problem:
        if act.element is not None:
            box = act.element
            _frame(picture, *(round(zoom * box[name]) for name in ("left", "top", "width", "height")))
        _ring(picture, zoom * act.place[0], zoom * act.place[1], 4.0 * zoom, RED)
        if act.kind in ("drag", "scroll"):
            end = act.end if act.kind == "drag" else (act.place[0] + act.end[0], act.place[1] + act.end[1])
            _line(picture, np.array(act.place) * zoom, np.array(end) * zoom, RED)
    for down, row in enumerate(POINTER):
        for right, mark in enumerate(row):
            if mark != " ":
                _dot(picture, zoom * mouse[0] + right, zoom * mouse[1] + down, BLACK if mark == "X" else WHITE)
    return picture


def _dot(picture: np.ndarray, x: float, y: float, color: tuple[int, int, int]) -> None:
    if 0 <= round(y) < len(picture) and 0 <= round(x) < picture.shape[1]:
        picture[round(y), round(x)] = color


def _frame(picture: np.ndarray, left: int, top: int, width: int, height: int) -> None:
    rows, columns = slice(max(top, 0), top + height), slice(max(left, 0), left + width)
    for line in (top, top + height - 1):
        if 0 <= line < len(picture):
            picture[line, columns] = BLUE
    for line in (left, left + width - 1):
        if 0 <= line < picture.shape[1]:
            picture[rows, line] = BLUE


def _ring(picture: np.ndarray, x: float, y: float, radius: float, color: tuple[int, int, int]) -> None:
    down, right = np.indices(picture.shape[:2])
    distance = np.hypot(right - x, down - y)
    picture[np.abs(distance - radius) < 1] = color


def _line(picture: np.ndarray, start: np.ndarray, end: np.ndarray, color: tuple[int, int, int]) -> None:
    for part in np.linspace(0, 1, int(np.abs(end - start).max()) + 2):
        x, y = start + part * (end - start)
        _dot(picture, x, y, color)
