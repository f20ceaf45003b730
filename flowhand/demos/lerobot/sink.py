"""The file that a video is written into. The video library crashes on a full disk, and so never hears of one."""

from __future__ import annotations

import os
from pathlib import Path


class Sink:
    """A file object that swallows what the disk does not take, and says so when it is closed.

    A failed write within PyAV 18 leaves a container whose end brings the process down (segmentation fault, with a full
    tmpfs), and with it the control of a robot.

    Args:
        path: of the file, which is made.
    """

    def __init__(self, path: Path):
        self._file = path.open("wb", buffering=0)
        self._error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Writes all of it, or remembers why not."""
        view = memoryview(data)
        if self._error is None:
            try:
                done = 0
                while done < len(view):
                    done += self._file.write(view[done:]) or 0
            except OSError as error:
                self._error = error
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of a file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As of a file."""
        return self._file.tell()

    def close(self) -> None:
        """Closes the file.

        Raises:
            OSError: some of what was written is not there.
        """
        self._file.close()
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror, self._file.name)
