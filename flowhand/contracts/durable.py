"""A folder that is replaced as a whole: a reader has the earlier one or the new one, and a kill loses neither.

A writer fills a folder beside the old one, flushes it and swaps the two names in one step, where the system has such a
step (renameat2). Elsewhere there are two steps: the old one becomes <name>.previous, then the new one <name>. Between
them, and after a kill between them, <name>.previous is what readers read. No reader renames anything. A reader opens
every file before it reads the first, and open files stay readable when their folder is removed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TRIES = 100  # of steps between which another process may have moved the names; each failure takes a whole replacement


class Snapshot:
    """The files of a folder as they were at one moment, whatever happens to the folder meanwhile."""

    def __init__(self, path: Path, descriptors: dict[str, int]):
        self.path = path
        self._descriptors = descriptors

    def __contains__(self, name: str) -> bool:
        return name in self._descriptors

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return os.fstat(self._descriptors[name]).st_size

    def read(self, name: str, most: int) -> bytes:
        """The content of a file.

        Raises:
            ValueError: it has more bytes than `most`; nothing is read then.
        """
        size = self.size(name)
        if size > most:
            raise ValueError(f"{self.path / name} has {size} bytes, more than the {most} allowed")
        with open(self._descriptors[name], "rb", closefd=False) as file:
            file.seek(0)
            return file.read(size)

    def digest(self, names: Collection[str], most: int) -> str:
        """SHA-256 (hexadecimal) of the contents of these files, one after the other; none larger than `most` bytes."""
        content = hashlib.sha256()
        for name in names:
            content.update(self.read(name, most))
        return content.hexdigest()


@contextmanager
def opened(path: Path | str, names: Collection[str], links: bool = True) -> Iterator[Snapshot]:
    """The files of these names in a folder that may be replaced at any moment; a name without a file is left out.

    Args:
        path: the folder, or a symbolic link to it.
        names: of the files.
        links: whether a file may be a symbolic link.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file cannot be opened, or is no regular file.
    """
    path = Path(os.path.realpath(path))
    for _ in range(TRIES):
        for place in (path, previous(path)):
            with ExitStack() as stack:
                try:
                    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                stack.callback(os.close, folder)
                files = {name: file for name in names if (file := _open(place, folder, name, links, stack)) is not None}
                if len(files) == len(names) or _is_still(place, folder):
                    yield Snapshot(place, files)
                    return
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def exists(path: Path | str) -> bool:
    """Whether something is at the path, or was when a replacement of it was killed."""
    path = Path(os.path.realpath(path))
    return path.exists() or previous(path).exists()


def previous(path: Path) -> Path:
    """Where the earlier folder is between the two steps of a replacement."""
    return path.with_name(path.name + ".previous")


def _open(place: Path, folder: int, name: str, links: bool, stack: ExitStack) -> int | None:
    try:
        if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=links).st_mode):
            raise ValueError(f"{place / name} is no regular file")
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW), dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{place / name} cannot be read ({error.strerror})") from error
    stack.callback(os.close, descriptor)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise ValueError(f"{place / name} is no regular file")
    return descriptor


def _is_still(place: Path, folder: int) -> bool:
    """Whether the open folder is still the one of this name, so that what it lacks was not removed with it."""
    try:
        return os.path.samestat(os.stat(place), os.fstat(folder))
    except FileNotFoundError:
        return False


@contextmanager
def replacing(path: Path | str, files: Collection[str], what: str) -> Iterator[Path]:
    """Gives a new folder beside `path` and puts it in its place when the block ends without an error.

    Args:
        path: the folder; where it is a symbolic link, what it leads to is replaced.
        files: what such a folder has, so that nothing else is replaced.
        what: such a folder in words.

    Raises:
        ValueError: something is at `path` that lacks these files.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    for place in (path, previous(path)):
        if not _is_such(place, files):
            raise ValueError(f"{place} exists and is no {what}; it is not overwritten, choose another path")
    _remove_abandoned(path)
    with _temporary(path) as new:
        yield new
        for file in (*new.iterdir(), new):
            sync(file)
        _put_in_place(new, path)


def _is_such(place: Path, files: Collection[str]) -> bool:
    """Whether a folder with these files, or nothing, is here; another writer may move it meanwhile."""
    while True:
        try:
            folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return True
        except NotADirectoryError:
            return False
        try:
            if all(_is_file(folder, name) for name in files):
                return True
            if _is_still(place, folder):
                return False
        finally:
            os.close(folder)


def _is_file(folder: int, name: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=folder).st_mode)
    except FileNotFoundError:
        return False


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A new folder beside the path, which is gone afterwards unless it got another name; locked while in use."""
    new, descriptor = _made(path)
    try:
        yield new
    finally:
        os.close(descriptor)
        shutil.rmtree(new, ignore_errors=True)


def _made(path: Path) -> tuple[Path, int]:
    """A new locked folder beside the path, and what holds its lock."""
    while True:
        new = _unused(path)
        new.mkdir()
        with suppress(FileNotFoundError):  # another writer may take it for abandoned before it is locked
            descriptor = os.open(new, os.O_RDONLY | os.O_DIRECTORY)
            _lock(descriptor, fcntl.LOCK_EX)
            if _is_still(new, descriptor):
                return new, descriptor
            os.close(descriptor)


def _unused(path: Path) -> Path:
    """A name beside the path for a folder that is not, or no longer, in its place."""
    return path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")


def _remove_abandoned(path: Path) -> None:
    """Removes the temporary folders of killed writers; one that lives holds a lock on its own."""
    name = re.compile(re.escape(path.name) + r"\.tmp-[0-9a-f]{8}")
    for entry in [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]:
        try:
            descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # another writer was quicker, or it is no folder
            continue
        try:
            if _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(entry, ignore_errors=True)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, how: int) -> bool:
    """Takes the lock, which ends with the process; False if another holds it or the file system has no such lock."""
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        return False
    return True


def _put_in_place(new: Path, path: Path) -> None:
    """Gives the new folder its name. In the steps without an exchange another writer may be between ours."""
    for tries_left in reversed(range(TRIES)):
        try:
            if not path.exists():
                os.rename(new, path)
            elif not exchange(new, path):
                _discard_previous(path)
                os.rename(path, previous(path))
                os.rename(new, path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST) or not tries_left:
                raise
            continue
        sync(path.parent)
        _discard_previous(path)
        return


def _discard_previous(path: Path) -> None:
    """Removes the earlier folder, if there is one. It loses its name first: no reader may take the rest for all."""
    unnamed = _unused(path)
    with suppress(FileNotFoundError):
        os.rename(previous(path), unnamed)
        shutil.rmtree(unnamed, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step; False where the system or the file system has no such step."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, swap = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of linux/fs.h
    if rename is None:
        return False
    if rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):  # the last: of a container without the call
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def sync(path: Path) -> None:
    """Forces a file's content, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Writes a file whole or not at all; what was there before stays until then. Folders on the way are made.

    Args:
        path: of the file.
        content: its bytes, or what writes them into an open file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content) if isinstance(content, bytes) else content(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


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
