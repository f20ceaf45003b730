"""Keeping time: waiting for a moment, a thread's real-time privileges, and ending on signals."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SWITCH_INTERVAL_S = 2e-4  # how long a thread may run Python while another one waits to


def wait_until(moment_ns: int, spin_s: float) -> int:
    """Sleeps until the moment on the clock of time.monotonic_ns, the last `spin_s` seconds actively; returns now."""
    now_ns = time.monotonic_ns()
    sleep_s = (moment_ns - now_ns) / 1e9 - spin_s
    if sleep_s > 0:
        time.sleep(sleep_s)
    while (now_ns := time.monotonic_ns()) < moment_ns:
        time.sleep(0)  # lets other threads run
    return now_ns


@contextmanager
def real_time(priority: int, core: int) -> Iterator[None]:
    """Inside the block this thread has the priority (SCHED_FIFO, 0: ordinary) and stays on the core (-1: any).

    Python's threads take turns quickly, and its garbage collector leaves out what there was before: a full collection
    takes tens of milliseconds once torch is loaded.

    Raises:
        ValueError: the system does not know or not permit it.
    """
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.freeze()
    try:
        with _scheduled(priority, core):
            yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval_s)


@contextmanager
def _scheduled(priority: int, core: int) -> Iterator[None]:
    if not hasattr(os, "sched_setscheduler") and (priority or core >= 0):
        raise ValueError("runtime.priority and runtime.core need Linux; leave them at 0 and -1")
    if not priority and core < 0:
        yield
        return
    cores, scheduler, parameters = os.sched_getaffinity(0), os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        if core >= 0:
            os.sched_setaffinity(0, {core})
        if priority:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError as error:
        os.sched_setaffinity(0, cores)
        raise ValueError(
            f"runtime.priority={priority} and runtime.core={core} are not permitted here ({error}); a priority needs "
            "the capability CAP_SYS_NICE or an rtprio limit, a core must be one that this process may use"
        ) from error
    try:
        yield
    finally:
        os.sched_setscheduler(0, scheduler, parameters)
        os.sched_setaffinity(0, cores)


@contextmanager
def on_signals(stop: Callable[[str], None]) -> Iterator[None]:
    """Inside the block SIGINT and SIGTERM call `stop` with their name; a second one ends the program at once.

    Only the main thread can catch signals; in another one the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def caught(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop(signal.Signals(number).name)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, caught) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
