"""Elements of a page, and plots made of them: SVG that takes its colours from the page's style sheet."""

from xml.etree.ElementTree import Element

import numpy as np
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator
from numpy.typing import ArrayLike

MAX_POINTS = 600  # per line; more are not seen and make the page heavy


def h(tag: str, *children: Element | str, **attributes: object) -> Element:
    """Return an element; in attribute names a trailing underscore is dropped and others become hyphens."""
    element = Element(tag, {name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items()})
    for child in children:
        if isinstance(child, Element):
            element.append(child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + child
        else:
            element.text = (element.text or "") + child
    return element


class Axes:
    """One plot: data in, `svg` out.

    Args:
        title: Stands above, in place of a label along the y axis.
        x: Values whose range the x axis covers; likewise y.
        x_label: Below the axis, at the right.
        log: Logarithmic y axis; y must be positive.
        width, height: In SVG units; the page scales the picture.
        ticks: About how many labels an axis gets.
    """

    def __init__(self, title: str, x: ArrayLike, y: ArrayLike, x_label="", log=False, width=360, height=200, ticks=5):
        self._log = log
        self._x_range, self._y_range = _limits(np.asarray(x, float)), _limits(self._scale(y), margin=0.04)
        self._left, self._right, self._top, self._bottom = 46, width - 12, 26, height - (36 if x_label else 20)
        self.svg = h("svg", viewBox=f"0 0 {width} {height}", role="img", aria_label=title, class_="plot")
        self._text(title, 0, 12, "title")
        self._text(x_label, self._right, height - 4, "end")
        for value in _ticks(*self._y_range, ticks, log):
            _, y_px = self._pixels(0, value)
            self.svg.append(h("path", d=f"M{self._left} {y_px:.1f}H{self._right}", class_="grid"))
            self._text(_label(value), self._left - 6, y_px + 4, "end")
        for value in _ticks(*self._x_range, ticks):
            x_px, _ = self._pixels(value, 1)
            self._text(_label(value), x_px, self._bottom + 15, "middle")

    def line(self, x: ArrayLike, y: ArrayLike, class_: str) -> None:
        """Draw y over x; what is not finite is left out."""
        keep = np.flatnonzero(np.isfinite(y))
        keep = keep[:: 1 + len(keep) // MAX_POINTS]
        self._draw(np.asarray(x)[keep], np.asarray(y)[keep], class_)

    def stairs(self, edges: ArrayLike, counts: ArrayLike, class_: str) -> None:
        """Draw a histogram with B counts between B + 1 edges."""
        self._draw(np.repeat(edges, 2), np.concatenate([[0], np.repeat(counts, 2), [0]]), class_)

    def dot(self, x: float, y: float, tip: str) -> None:
        """Mark one point, with a text that appears over it."""
        x_px, y_px = self._pixels(x, y)
        self.svg.append(h("circle", h("title", tip), cx=f"{x_px:.1f}", cy=f"{y_px:.1f}", r=4, class_="policy"))

    def _draw(self, x: np.ndarray, y: np.ndarray, class_: str) -> None:
        points = np.stack(self._pixels(x, y), axis=-1)
        if len(points) == 1:
            points = points.repeat(2, axis=0)  # a line without length shows as a dot
        self.svg.append(h("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in points), class_=class_))

    def _scale(self, y: ArrayLike) -> np.ndarray:
        return np.log10(y) if self._log else np.asarray(y, float)

    def _pixels(self, x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        (x_low, x_high), (y_low, y_high) = self._x_range, self._y_range
        right = (np.asarray(x) - x_low) / (x_high - x_low)
        up = (self._scale(y) - y_low) / (y_high - y_low)
        return self._left + right * (self._right - self._left), self._bottom - up * (self._bottom - self._top)

    def _text(self, text: str, x: float | np.ndarray, y: float | np.ndarray, class_: str) -> None:
        self.svg.append(h("text", text, x=f"{x:.1f}", y=f"{y:.1f}", class_=class_))


def _limits(values: np.ndarray, margin: float = 0.0) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    space = margin * (high - low)
    return (low - space if low else 0.0), high + space  # bars stand on zero


def _ticks(low: float, high: float, n: int, log: bool = False) -> list[float]:
    locator = MaxNLocator(n, steps=[1, 2, 2.5, 5, 10])
    if log:
        low, high = 10**low, 10**high
        if high / low > 5:  # on a shorter range even ticks are easier to read
            locator = LogLocator(subs=(1.0,) if high / low > 300 else (1.0, 2.0, 5.0), numticks=8)
    return [t for t in locator.tick_values(low, high) if low <= t <= high]


def _label(value: float) -> str:
    text = EngFormatter(sep="")(value) if abs(value) >= 1000 else f"{round(value, 12) + 0:g}"
    return text.replace("-", "\N{MINUS SIGN}")
