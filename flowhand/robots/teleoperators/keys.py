"""Keys that a person presses, for whoever wants them: a driver, a recorder. Standard library only."""

from __future__ import annotations

import os
import select
import sys
from collections import deque
from collections.abc import Collection
from typing import Protocol

MOST_KEYS = 100  # that wait for somebody
ARROWS = {"A": "up", "B": "down", "C": "right", "D": "left"}  # what ends the terminal's sequences
NAMES = {" ": "space", "\r": "enter", "\n": "enter", "\x7f": "backspace", "\t": "tab", "\x1b": "escape"}


class Keys(Protocol):
    """Where pressed keys come from. Several may share it: each takes the keys that it knows."""

    def take(self, wanted: Collection[str]) -> list[str]:
        """The keys of these names that were pressed since they were taken last, oldest first; others stay."""
        ...


class WaitingKeys:
    """Keys that were pressed and that nobody has taken yet; a script or a test presses them."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque(maxlen=MOST_KEYS)

    def press(self, *names: str) -> None:
        """Notes keys: letters and digits by themselves, others as space, enter, escape, up, down, left, right."""
        self._waiting.extend(names)

    def take(self, wanted: Collection[str]) -> list[str]:
        """The keys of these names that wait, oldest first."""
        taken = [name for name in self._waiting if name in wanted]
        for name in taken:
            self._waiting.remove(name)
        return taken


class TerminalKeys(WaitingKeys):
    """The keys of the terminal in which the program runs. A terminal tells presses and repeats, and no releases."""

    def connect(self) -> None:
        """Has the terminal hand over every key at once and show none.

        Raises:
            ValueError: the standard input is no terminal.
        """
        import termios
        import tty

        if not sys.stdin.isatty():
            raise ValueError("keys are read from a terminal, and the standard input is none; run it in a terminal")
        self._file = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._file)
        tty.setcbreak(self._file)

    def disconnect(self) -> None:
        """Gives the terminal back as it was."""
        import termios

        if before := getattr(self, "_before", None):
            termios.tcsetattr(self._file, termios.TCSADRAIN, before)

    def take(self, wanted: Collection[str]) -> list[str]:
        """The keys of these names that were pressed, without waiting for any."""
        while select.select([self._file], [], [], 0)[0] and (data := os.read(self._file, 256)):
            self.press(*names(data.decode(errors="ignore")))
        return super().take(wanted)


def names(text: str) -> list[str]:
    """The names of the keys that a terminal wrote; sequences of keys that have no name here are passed over."""
    found, place = [], 0
    while place < len(text):
        letter = text[place]
        if letter == "\x1b" and text[place + 1 : place + 2] in ("[", "O"):
            end = place + 2
            while end < len(text) - 1 and not text[end].isalpha() and text[end] != "~":
                end += 1
            if arrow := ARROWS.get(text[end : end + 1]):
                found.append(arrow)
            place = end + 1
        else:
            found.append(NAMES.get(letter, letter))
            place += 1
    return found
