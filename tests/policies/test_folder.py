"""Replacing a folder: readers beside a writer never fail and never hurt it, with and without an exchange of names."""

import fcntl
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from flowhand.contracts import durable

NAMES = ("a", "b", "c")


@pytest.fixture(params=["exchange", "two renames"])
def way(request, monkeypatch, tmp_path):
    """Both ways to put a folder in place; the first only where the system has it."""
    for name in ("one", "other"):
        (tmp_path / "tried" / name).mkdir(parents=True)
    if request.param == "two renames":
        monkeypatch.setattr(durable, "exchange", lambda one, other: False)
    elif not durable.exchange(tmp_path / "tried" / "one", tmp_path / "tried" / "other"):
        pytest.skip("no exchange of names here")
    shutil.rmtree(tmp_path / "tried")
    return request.param


def write(path, content):
    with durable.replacing(path, NAMES, "thing") as new:
        for name in NAMES:
            (new / name).write_text(content)


def read(path):
    with durable.opened(path, NAMES) as files:
        return [files.read(name, 100).decode() for name in NAMES]


def test_a_reader_beside_a_writer_never_fails_and_never_hurts_it(way, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the order of names is tried here, not the disk
    path, failures, seen = tmp_path / "thing", [], set()
    write(path, "0")
    done = threading.Event()

    def reads():
        try:
            while not done.is_set():
                found = set(read(path))
                seen.update(found)
                if len(found) != 1:
                    failures.append(f"mixed: {found}")
        except Exception as error:
            failures.append(repr(error))

    readers = [threading.Thread(target=reads) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for number in range(1, 150):
            write(path, str(number))
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert failures == []
    assert len(seen) > 2
    assert read(path) == ["149"] * 3
    assert os.listdir(tmp_path) == ["thing"]


def test_a_replacement_at_any_moment_of_reading_is_not_seen_in_part(way, tmp_path, monkeypatch):
    """Every call to the system that a reader makes is tried as the moment at which a whole replacement happens."""
    for number in range(100):
        path = tmp_path / str(number) / "thing"
        write(path, "old")
        calls = 0

        def at_this_moment(call, number=number, path=path):
            def wrapped(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == number + 1:
                    write(path, "new")
                return call(*args, **kwargs)

            return wrapped

        with monkeypatch.context() as patch:
            for name in ("open", "stat", "fstat"):
                patch.setattr(os, name, at_this_moment(getattr(os, name)))
            found = read(path)
        assert found in (["old"] * 3, ["new"] * 3)
        if calls <= number:
            return
    raise AssertionError("a reader makes no hundred calls")


class Killed(BaseException):
    """Stands for a process that ends here."""


def test_a_kill_at_any_moment_loses_neither_the_old_nor_the_new_folder(way, tmp_path, monkeypatch):
    seen = set()
    for number in range(100):
        path, calls = tmp_path / str(number) / "thing", 0
        write(path, "old")

        def mortal(call, number=number):
            def wrapped(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls > number:
                    raise Killed
                return call(*args, **kwargs)

            return wrapped

        with monkeypatch.context() as patch, suppress(Killed):
            for owner, name in ((os, "mkdir"), (os, "rename"), (os, "fsync"), (os, "rmdir"), (os, "unlink")):
                patch.setattr(owner, name, mortal(getattr(owner, name)))
            patch.setattr(durable, "exchange", mortal(durable.exchange))
            write(path, "new")
        found = read(path)
        seen.add(found[0])
        assert found in (["old"] * 3, ["new"] * 3)
        write(path, "newer")
        assert read(path) == ["newer"] * 3
        assert os.listdir(path.parent) == ["thing"]
        if calls <= number:
            assert seen == {"old", "new"}
            return
    raise AssertionError("a writer makes no hundred calls")


def test_between_the_two_renames_the_earlier_folder_is_read_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "exchange", lambda one, other: False)
    path, rename = tmp_path / "thing", os.rename
    write(path, "old")

    def looked_at(one, other):
        if Path(other) == path:
            assert not path.exists()
            assert read(path) == ["old"] * 3
            assert durable.exists(path)
            assert not path.exists()
        rename(one, other)

    monkeypatch.setattr(os, "rename", looked_at)
    write(path, "new")
    assert read(path) == ["new"] * 3
    assert os.listdir(tmp_path) == ["thing"]


def test_what_a_kill_left_is_read_and_the_next_writer_takes_it_away(way, tmp_path):
    path = tmp_path / "thing"
    write(path, "old")
    os.rename(path, tmp_path / "thing.previous")
    (tmp_path / "thing.tmp-0123abcd").mkdir()
    (tmp_path / "thing.tmp-0123abcd" / "a").write_text("half")
    assert read(path) == ["old"] * 3
    write(path, "new")
    assert read(path) == ["new"] * 3
    assert os.listdir(tmp_path) == ["thing"]


def test_nothing_of_others_is_removed(way, tmp_path):
    """The name is no pattern, and a folder that a living writer holds is not abandoned."""
    for name in ("precious.tmp-dir", "precious.tmp-0123abcd", "*.tmp-x", "*.tmp-0123abcde", "x*.tmp-0123abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis").write_text("mine")
    before = set(os.listdir(tmp_path))
    write(tmp_path / "*", "new")
    with durable.replacing(tmp_path / "*", NAMES, "thing") as new:
        for name in NAMES:
            (new / name).write_text("slow")
        write(tmp_path / "*", "quick")
        assert new.is_dir()
    assert read(tmp_path / "*") == ["slow"] * 3
    assert set(os.listdir(tmp_path)) == {*before, "*"}
    assert all((tmp_path / name / "thesis").exists() for name in before)


def test_what_lies_where_the_earlier_folder_would_is_not_removed(way, tmp_path):
    (tmp_path / "thing.previous").mkdir()
    (tmp_path / "thing.previous" / "thesis").write_text("mine")
    with pytest.raises(ValueError, match=r"thing\.previous exists and is no thing; it is not overwritten"):
        write(tmp_path / "thing", "new")
    assert (tmp_path / "thing.previous" / "thesis").exists()


def test_a_symbolic_link_is_followed(way, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "thing").symlink_to(tmp_path / "disk" / "place")
    for content in ("one", "two", "three"):
        write(tmp_path / "thing", content)
        assert read(tmp_path / "thing") == [content] * 3
        assert (tmp_path / "thing").is_symlink()
        assert os.listdir(tmp_path / "disk") == ["place"]
    os.rename(tmp_path / "disk" / "place", tmp_path / "disk" / "place.previous")
    assert read(tmp_path / "thing") == ["three"] * 3


def test_pipes_devices_and_files_that_are_too_large_are_not_read(tmp_path):
    write(tmp_path / "thing", "x")
    (tmp_path / "thing" / "b").unlink()
    os.mkfifo(tmp_path / "thing" / "b")
    with pytest.raises(ValueError, match="b is no regular file"):
        read(tmp_path / "thing")
    (tmp_path / "thing" / "b").unlink()
    (tmp_path / "thing" / "b").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="b is no regular file"):
        read(tmp_path / "thing")
    (tmp_path / "thing" / "b").unlink()
    with (tmp_path / "thing" / "b").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="b has 1099511627776 bytes, more than the 100 allowed"):
        read(tmp_path / "thing")


def test_a_file_system_without_locks_or_exchange_still_replaces(tmp_path, monkeypatch):
    def unable(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unable)
    monkeypatch.setattr(durable, "exchange", lambda one, other: False)
    for content in ("one", "two"):
        write(tmp_path / "thing", content)
    assert read(tmp_path / "thing") == ["two"] * 3


def test_two_writers_at_once_both_come_to_their_end(way, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    path, failures = tmp_path / "thing", []

    def writes(content):
        try:
            for _ in range(40):
                write(path, content)
        except Exception as error:
            failures.append(repr(error))

    writers = [threading.Thread(target=writes, args=(content,)) for content in "xy"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failures == []
    assert read(path) in (["x"] * 3, ["y"] * 3)
    write(path, "z")
    assert os.listdir(tmp_path) == ["thing"]


def test_another_writer_moves_the_folder_while_it_is_looked_at(tmp_path, monkeypatch):
    """Between the look at one file and at the next it is removed by whoever replaced it: it was such a folder."""
    path, is_file = tmp_path / "thing", durable._is_file
    write(path, "one")

    def looked(descriptor, name):
        if name == "b" and path.is_dir() and not (tmp_path / "moved").exists():
            path.rename(tmp_path / "moved")
            for file in (tmp_path / "moved").iterdir():
                file.unlink()
        return is_file(descriptor, name)

    monkeypatch.setattr(durable, "_is_file", looked)
    write(path, "two")
    assert read(path) == ["two"] * 3


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_what_is_no_such_folder_stays(tmp_path, make):
    make(tmp_path / "thing")
    with pytest.raises(ValueError, match="thing exists and is no thing; it is not overwritten"):
        write(tmp_path / "thing", "x")
