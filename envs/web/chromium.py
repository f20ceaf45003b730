"""Headless Chromium as a process: found, started, ended, and its profile removed however a run ends.

The browser is told what to do through two pipes. It ends by itself when they close, so it outlives no parent, however
that ends. A profile is a folder that its parent holds locked; one whose lock is free belongs to nobody and is removed
by whoever starts a browser next.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from flowhand.contracts.world import WorldGoneError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
VARIABLE = "FLOWHAND_CHROMIUM"
PREFIX = "flowhand-web-"  # of profile folders
LOCK = "held"
UNLOCKED_S = 60.0  # a folder without a lock that is older belongs to nobody
MOST_LETTERS = 40  # of the path of the folder of profiles
EXIT_S = 5.0  # longest wait for a process that was killed
FLAGS = (
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-default-browser-check",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--disable-extensions", "--disable-breakpad", "--disable-crash-reporter", "--disable-dev-shm-usage",
    "--disable-background-timer-throttling", "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding", "--disable-smooth-scrolling", "--disable-hang-monitor",
    "--disable-features=Translate,MediaRouter,OptimizationHints,PaintHolding,BackForwardCache",
    "--block-new-web-contents",
    "--hide-scrollbars", "--mute-audio", "--password-store=basic", "--use-mock-keychain", "--lang=en-US",
    "--force-device-scale-factor=1", "--force-color-profile=srgb", "--font-render-hinting=none",
)  # fmt: skip


class BrowserError(WorldGoneError):
    """The browser has died, or a page does not answer."""


def find_chromium() -> str:
    """Path of the browser: FLOWHAND_CHROMIUM, otherwise the first of `NAMES` on the PATH.

    Raises:
        FileNotFoundError: there is none.
    """
    if given := os.environ.get(VARIABLE):
        if found := shutil.which(given):
            return found
        raise FileNotFoundError(f"{VARIABLE} is {given!r}, where no program lies; expected the path of Chromium")
    for name in NAMES:
        if found := shutil.which(name):
            return found
    raise FileNotFoundError(
        f"env=web needs Chromium, and none of {', '.join(NAMES)} is on the PATH: install it (Debian, Ubuntu: "
        f"apt install chromium), or set {VARIABLE} to its path"
    )


class Profile:
    """A fresh profile folder, locked as long as this process lives and has not removed it."""

    def __init__(self) -> None:
        remove_stale()
        made = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=_folder()))
        self._lock = os.open(made / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # It has its name only now, so that nobody who removes what is not locked sees it before.
        self.path = made.rename(made.with_name(made.name.removeprefix(".")))

    def remove(self) -> None:
        """Removes the folder; a browser that is just ending may still write into it for a moment."""
        for _ in range(50):
            shutil.rmtree(self.path, ignore_errors=True)
            if not self.path.exists():
                break
            time.sleep(0.02)
        os.close(self._lock)


def _folder() -> str:
    """Where profiles lie: the browser aborts where the path of a socket in its folder has more than 107 letters."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= MOST_LETTERS else "/tmp"


def remove_stale() -> None:
    """Removes the profiles of this user whose parents are gone."""
    for path in Path(_folder()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            if not (path / LOCK).exists():
                if time.time() - path.stat().st_mtime > UNLOCKED_S:
                    shutil.rmtree(path, ignore_errors=True)
                continue
            lock = os.open(path / LOCK, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


class Process:
    """A running browser and its pipes.

    Args:
        hosts: names of hosts that its pages may reach; without any, the network is off.

    Attributes:
        write: the file descriptor for what it is told.
        read: the file descriptor for what it says.

    Raises:
        FileNotFoundError: there is no browser.
    """

    def __init__(self, hosts: Sequence[str] = ()):
        program = find_chromium()
        self.profile = Profile()
        self.log = self.profile.path / "stderr"
        rules = ", ".join(["MAP * ~NOTFOUND", *(f"EXCLUDE {host}" for host in hosts)])
        flags = [*FLAGS, f"--host-resolver-rules={rules}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        flags += [f"--user-data-dir={self.profile.path}", "--remote-debugging-pipe", "about:blank"]
        theirs, self.write = _high_pipe()
        self.read, answers = _high_pipe()
        actions = [
            (os.POSIX_SPAWN_DUP2, theirs, 3),
            (os.POSIX_SPAWN_DUP2, answers, 4),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, str(self.log), os.O_WRONLY | os.O_CREAT, 0o600),
        ]
        try:
            # In a process group of its own: Ctrl+C is for its parent, and its children are ended with it.
            # What it writes into the temporary folder goes with its profile.
            environment = {**os.environ, "TMPDIR": str(self.profile.path)}
            self.pid = os.posix_spawn(program, [program, *flags], environment, file_actions=actions, setpgroup=0)
        except OSError:
            self._close(self.write, self.read)
            self.profile.remove()
            raise
        finally:
            self._close(theirs, answers)
        self._status: int | None = None

    def died(self) -> str:
        """How it has ended, in words; empty while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        if self._status is None:
            return ""
        how = f"killed by {signal.Signals(-self._status).name}" if self._status < 0 else f"exit status {self._status}"
        said = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return f"{how}; it last said: {said[-1][:200]}" if said and self._status > 0 else how

    def end(self) -> None:
        """Ends it and all its children, and removes its profile."""
        self._close(self.write, self.read)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        until = time.monotonic() + EXIT_S
        while not self.died() and time.monotonic() < until:
            time.sleep(0.002)
        self.profile.remove()

    @staticmethod
    def _close(*descriptors: int) -> None:
        for each in descriptors:
            with contextlib.suppress(OSError):
                os.close(each)


def _high_pipe() -> tuple[int, int]:
    """A pipe whose ends are none of the numbers that the browser's own ends get; no child inherits them."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(high[0], fcntl.F_SETPIPE_SZ, 2**20)
    return high[0], high[1]
