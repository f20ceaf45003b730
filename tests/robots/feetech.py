"""Feetech servos on a serial port that there is not: a pseudo-terminal, answered by the arm of so101 in MuJoCo.

What a servo says is the protocol of the STS3215 (0xFF 0xFF, id, length, instruction or error, parameters, checksum):
ping 1, read 2, write 3, sync read 0x82, sync write 0x83. The other end can be the manufacturer's own SDK.
"""

from __future__ import annotations

import os
import pty
import select
import threading
import time
import tty

import numpy as np

from envs.so101 import JOINTS, SUBSTEPS, SO101Env

PING, READ, WRITE, SYNC_READ, SYNC_WRITE, ALL = 1, 2, 3, 0x82, 0x83, 0xFE
MODEL, TORQUE, GOAL, PRESENT = 3, 40, 42, 56  # addresses
STS3215 = 777
TICKS = 4095 / (2 * np.pi)  # of one radian
MIDDLE = 2048  # tick at which a joint's angle is zero
MOST_STEPS = 6 * SUBSTEPS  # of physics that one request catches up on
ACROSS_S = 0.0005  # time that an answer takes


class Arm:
    """The arm as servos know it: ticks, and torque that can be switched off. Time passes as it does outside."""

    def __init__(self, env: SO101Env):
        self.env = env
        self.model, self.data = env.physics.model, env.physics.data  # type: ignore[union-attr]
        self._gains = self.model.actuator_gainprm.copy(), self.model.actuator_biasprm.copy()
        self.lock = threading.Lock()
        self._time_s = time.monotonic()
        self.torque = np.zeros(6, bool)

    def ticks(self) -> np.ndarray:
        """Present positions (6,)."""
        self._advance()
        return np.rint(MIDDLE + TICKS * self.env.angles).astype(int)

    def go(self, joint: int, tick: int) -> None:
        """A goal for one servo."""
        self._advance()
        self.data.ctrl[joint] = np.clip((tick - MIDDLE) / TICKS, self.env.low[joint], self.env.high[joint])

    def switch(self, joint: int, on: bool) -> None:
        """Torque on, where the joint is, or off."""
        self._advance()
        if on and not self.torque[joint]:
            self.data.ctrl[joint] = self.env.angles[joint]
        self.torque[joint] = on
        for now, own in zip((self.model.actuator_gainprm, self.model.actuator_biasprm), self._gains, strict=True):
            now[joint] = own[joint] if on else 0.0

    def _advance(self) -> None:
        now, step_s = time.monotonic(), self.model.opt.timestep
        steps = min(int((now - self._time_s) / step_s), MOST_STEPS)  # after a pause the bus must answer all the same
        for _ in range(steps):
            self.env._mujoco.mj_step(self.model, self.data)
        self._time_s = now if steps == MOST_STEPS else self._time_s + steps * step_s


class Bus:
    """Six servos at `port`, until it is closed.

    Attributes:
        silent: they do not answer while this is set.
        collisions: requests that came while an answer was under way.
        goals: how many sync writes of goals there were.
        memory: registers of each servo.
    """

    def __init__(self, arm: Arm, calibrated: bool = True):
        self.arm = arm
        self.memory = [bytearray(256) for _ in JOINTS]
        for joint, memory in enumerate(self.memory):
            memory[0], memory[1], memory[5] = 3, 10, joint + 1
            memory[MODEL : MODEL + 2] = STS3215.to_bytes(2, "little")
            low, high = limits(arm.env, joint) if calibrated else (0, 4095)
            memory[9:11], memory[11:13] = low.to_bytes(2, "little"), high.to_bytes(2, "little")
        self.silent = threading.Event()
        self.collisions = self.goals = 0
        self._ours, theirs = pty.openpty()
        tty.setraw(theirs)
        self.port = os.ttyname(theirs)
        self._theirs, self._open = theirs, True
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Switches the bus off."""
        self._open = False
        self._thread.join()
        os.close(self._ours)
        os.close(self._theirs)

    def _serve(self) -> None:
        waiting = b""
        while self._open:
            if not select.select([self._ours], [], [], 0.02)[0]:
                continue
            waiting += os.read(self._ours, 4096)
            while (start := waiting.find(b"\xff\xff")) >= 0 and len(waiting) >= start + 4:
                end = start + 4 + waiting[start + 3]
                if len(waiting) < end:
                    break
                packet, waiting = waiting[start + 2 : end], waiting[end:]
                assert (~sum(packet[:-1]) & 0xFF) == packet[-1], "a packet was damaged"
                self._answer(packet[0], packet[2], packet[3:-1])

    def _answer(self, number: int, instruction: int, values: bytes) -> None:
        with self.arm.lock:
            answers = self._act(number, instruction, values)
        if not answers or self.silent.is_set():
            return
        time.sleep(ACROSS_S)
        self.collisions += bool(select.select([self._ours], [], [], 0)[0])
        for servo, data in answers:
            body = bytes([servo, len(data) + 2, 0]) + data
            os.write(self._ours, b"\xff\xff" + body + bytes([~sum(body) & 0xFF]))

    def _act(self, number: int, instruction: int, values: bytes) -> list[tuple[int, bytes]]:
        """Does what is asked; the answers, of servo and bytes."""
        if instruction == PING:
            return [(number, b"")]
        if instruction == READ:
            return [(number, self._read(number, *values))]
        if instruction == WRITE:
            self._write(number, values[0], values[1:])
            return [(number, b"")]
        if instruction == SYNC_READ:
            return [(servo, self._read(servo, *values[:2])) for servo in values[2:]]
        assert instruction == SYNC_WRITE, f"instruction {instruction}"
        address, size = values[:2]
        self.goals += address == GOAL
        for place in range(2, len(values), size + 1):
            self._write(values[place], address, values[place + 1 : place + 1 + size])
        return []

    def _read(self, servo: int, address: int, size: int) -> bytes:
        memory = self.memory[servo - 1]
        if address <= PRESENT < address + size:
            memory[PRESENT : PRESENT + 2] = int(self.arm.ticks()[servo - 1]).to_bytes(2, "little")
        return bytes(memory[address : address + size])

    def _write(self, servo: int, address: int, data: bytes) -> None:
        self.memory[servo - 1][address : address + len(data)] = data
        if address == TORQUE:
            self.arm.switch(servo - 1, bool(data[0]))
        if address == GOAL:
            self.arm.go(servo - 1, int.from_bytes(data[:2], "little"))


def limits(env: SO101Env, joint: int) -> tuple[int, int]:
    """Smallest and largest tick of a joint, as a calibration finds them."""
    return round(MIDDLE + TICKS * env.low[joint]), round(MIDDLE + TICKS * env.high[joint])


def calibration(env: SO101Env) -> dict[str, dict[str, int]]:
    """Lerobot's calibration of the arm."""
    found = {}
    for joint, name in enumerate(JOINTS):
        low, high = limits(env, joint)
        found[name] = {"id": joint + 1, "drive_mode": 0, "homing_offset": 0, "range_min": low, "range_max": high}
    return found
