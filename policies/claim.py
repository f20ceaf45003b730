"""An output folder belongs to one program at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = "writer.lock"  # while a program writes there; one that was killed leaves it, and holds it no longer


@contextmanager
def claimed(folder: Path | str) -> Iterator[None]:
    """Holds a lock on the folder, which is made; the system takes the lock from a process that dies.

    What was made for the lock alone is taken away again.

    Raises:
        ValueError: another process holds it.
    """
    folder = Path(os.path.realpath(folder))
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
            if is_new:
                folder.rmdir()
        os.close(descriptor)


def _locked(folder: Path) -> int:
    while True:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(folder / LOCK)):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}".encode())
                return descriptor
        except FileNotFoundError:  # the last owner took it away after we had opened it
            pass
        except BlockingIOError as error:
            owner = os.pread(descriptor, 20, 0).decode(errors="replace") or "unknown"
            os.close(descriptor)
            raise ValueError(
                f"another process (number {owner}) is writing to {folder}; wait for its end, or choose another folder "
                "with out="
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
