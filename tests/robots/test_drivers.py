"""Drivers: keys and sticks move a target or are a speed; a terminal's keys have names."""

from __future__ import annotations

import os
import pty
import sys

import numpy as np
import pytest

from flowhand.contracts.features import Feature, Spec
from flowhand.robots.teleoperators import (
    GamepadConfig,
    GamepadDriver,
    KeyboardConfig,
    KeyboardDriver,
    ScriptedDriver,
    TerminalKeys,
    WaitingKeys,
    make,
)
from flowhand.robots.teleoperators.base import DriverConfig
from flowhand.robots.teleoperators.gamepad import EVENT
from flowhand.robots.teleoperators.keys import names

JOINTS = Feature((2,), "float32", "rad", (-1.0, -1.0), (1.0, 1.0), names=("pan", "tilt"))
SPEC = Spec({"state": JOINTS}, JOINTS, 0.1)
HERE = {"state": np.array([0.5, -0.5], np.float32)}


def test_keys_move_a_target_that_begins_where_the_robot_stands():
    keys, now = WaitingKeys(), [0.0]
    driver = KeyboardDriver(KeyboardConfig(speed=[1.0, 2.0], held_s=0.15), SPEC, keys, lambda: now[0])
    driver.reset(0)
    assert driver.action(HERE).tolist() == [0.5, -0.5]
    keys.press("d", "s", "q")
    moved = [driver.action(HERE)]
    now[0] = 0.1
    moved.append(driver.action(HERE))
    now[0] = 0.2  # the presses are over
    moved.append(driver.action(HERE))
    np.testing.assert_allclose(moved, [[0.6, -0.7], [0.7, -0.9], [0.7, -0.9]])
    assert keys.take("q") == ["q"]  # left for others
    for _ in range(9):
        keys.press("d")
        moved.append(driver.action(HERE))
    assert moved[-1][0] == 1.0  # the bounds
    driver.lead(np.array([0.1, 0.2]))
    now[0] = 9
    np.testing.assert_allclose(driver.action(HERE), [0.1, 0.2])


def test_keys_as_speeds():
    keys = WaitingKeys()
    driver = KeyboardDriver(KeyboardConfig(mode="rate", speed=[0.3]), SPEC, keys, lambda: 0.0)
    assert driver.action(HERE).tolist() == [0, 0]
    keys.press("a")
    assert driver.action(HERE).tolist() == [-0.3, 0]


def test_a_target_needs_to_know_where_the_robot_stands():
    place = Feature((2,), "float32", "m")
    with pytest.raises(ValueError, match="begins where the robot stands, and no single state says that of dimension 0"):
        make(KeyboardConfig(), Spec({"state": place}, place, 0.1))
    make(KeyboardConfig(mode="rate"), Spec({"state": place}, place, 0.1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: KeyboardConfig(keys=["a/d", "a/w"]), "has a key twice"),
        (lambda: KeyboardConfig(keys=["ad"]), "must be pairs such as a/d"),
        (lambda: make(KeyboardConfig(keys=["a/d"]), SPEC), "has 1 pairs of keys, the action 2 dimensions"),
        (lambda: make(KeyboardConfig(speed=[1, 2, 3]), SPEC), "speed has 3 numbers, expected 1 or 2"),
        (lambda: make(KeyboardConfig(mode="place"), SPEC), "mode='place' is unknown; choices: target, rate"),
        (lambda: make(GamepadConfig(controls=["axis0", "stick1"]), SPEC), "'stick1'; expected axis3"),
        (lambda: make(DriverConfig(kind="keybord"), SPEC), "did you mean keyboard"),
    ],
)
def test_what_is_wrong_with_a_driver_is_said(config, message):
    with pytest.raises(ValueError, match=message):
        config()


def test_a_gamepad_is_read_as_linux_writes_it(tmp_path):
    pipe = tmp_path / "js0"
    os.mkfifo(pipe)
    config = GamepadConfig(device=str(pipe), controls=["-axis1", "buttons4/5"], mode="rate", speed=[2.0])
    driver = GamepadDriver(config, SPEC)
    driver.connect()
    writer = os.open(pipe, os.O_WRONLY)
    assert driver.action(HERE).tolist() == [0, 0]
    os.write(writer, EVENT.pack(0, 16384, 2 | 0x80, 1) + EVENT.pack(0, 1, 1, 4))
    np.testing.assert_allclose(driver.action(HERE), [-1.0, -1.0], atol=1e-3)
    os.write(writer, EVENT.pack(0, 2000, 2, 1) + EVENT.pack(0, 0, 1, 4) + EVENT.pack(0, 1, 1, 5))
    assert driver.action(HERE).tolist() == [0, 1.0]  # within the dead zone; bounds hold
    os.close(writer)
    driver.disconnect()
    with pytest.raises(ValueError, match="cannot be opened"):
        GamepadDriver(GamepadConfig(device=str(tmp_path / "none")), SPEC).connect()


def test_the_keys_of_a_terminal_have_names_and_the_terminal_is_given_back(monkeypatch):
    assert names("a \x1b[A\x1b[D\r\x1b[3~z") == ["a", "space", "up", "left", "enter", "z"]
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        keys = TerminalKeys()
        keys.connect()
        os.write(ours, b"ab\x1b[C")
        assert keys.take(("right", "b")) == ["b", "right"]
        assert [keys.take("a"), keys.take("a")] == [["a"], []]
        keys.disconnect()
        os.write(ours, b"line\n")
        assert terminal.readline() == "line\n"  # lines again
    os.close(ours)
    with (tmp := open(os.devnull)):
        monkeypatch.setattr(sys, "stdin", tmp)
        with pytest.raises(ValueError, match="run it in a terminal"):
            TerminalKeys().connect()


def test_a_script_is_played_once_per_episode():
    driver = ScriptedDriver([np.zeros(2), None, np.ones(2)])
    assert [driver.action(HERE) is None for _ in range(4)] == [False, True, False, True]
    driver.reset(1)
    first = driver.action(HERE)
    assert first is not None
    assert first.tolist() == [0, 0]
