"""Any recorded set opens by its path, or by its name on the hub; `flowhand inspect` says what it is."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import flowhand
from conf.verbs.inspect import InspectRoot
from flowhand.commands.inspect import described, looked_at, opened, reported
from flowhand.demos import hub
from flowhand.demos.formats import open_dataset
from flowhand.demos.hdf5_files.minari import MinariDataset
from flowhand.demos.hdf5_files.robomimic import RobomimicDataset
from flowhand.demos.lerobot.dataset import LeRobotDataset
from flowhand.demos.native import Store
from flowhand.demos.zarr_files.replay_zarr import ReplayZarrDataset
from tests import programs
from tests.demos.recorded import Set2, Set3
from tests.demos.test_lerobot import error_of
from tests.demos.test_recorded_hdf5 import minari, robomimic
from tests.demos.test_replay_zarr import make
from tests.demos.test_store import META, make_episode

hdf5: Any = pytest.importorskip("h5py")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sets(tmp_path) -> dict[str, tuple[Path, type]]:
    store = Store.create(tmp_path / "native", META)
    store.append(make_episode(0))
    return {
        "native": (store.path, Store),
        "lerobot 2": (Set2(tmp_path / "two", cameras=("front",)).write(), LeRobotDataset),
        "lerobot 3": (Set3(tmp_path / "three").write(), LeRobotDataset),
        "robomimic": (robomimic(tmp_path / "lift.hdf5"), RobomimicDataset),
        "replay": (make(tmp_path / "set.zarr"), ReplayZarrDataset),
        "minari": (minari(tmp_path / "minari"), MinariDataset),
        "minari file": (tmp_path / "minari" / "data" / "main_data.hdf5", MinariDataset),
    }


def test_the_files_say_which_format_it_is(sets):
    for path, kind in sets.values():
        assert type(open_dataset(path)) is kind
        assert type(flowhand.open_dataset(str(path))) is kind


def test_options_reach_the_reader_and_wrong_ones_are_told(sets):
    data = open_dataset(sets["replay"][0], rate_hz=25)
    assert data.spec.control_dt_s == 1 / 25
    assert "unexpected keyword argument 'rate'" in error_of(lambda: open_dataset(sets["replay"][0], rate=25))
    assert "has no option 'rate_hz'" in error_of(lambda: open_dataset(sets["native"][0], rate_hz=25))


def test_what_is_no_data_set(tmp_path, sets):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no data")
    assert "is no data set that is known; expected a store of flowhand" in error_of(
        lambda: open_dataset(tmp_path / "empty")
    )
    assert "is no data set that is known" in error_of(lambda: open_dataset(tmp_path / "text"))
    line = error_of(lambda: open_dataset(tmp_path))
    assert f"there are data sets in it: {tmp_path / 'lift.hdf5'}" in line
    with hdf5.File(tmp_path / "other.hdf5", "w") as file:
        file["x"] = 1
    assert "is no data set that is known" in error_of(lambda: open_dataset(tmp_path / "other.hdf5"))
    assert "does not exist; expected a path, or OWNER/NAME" in error_of(lambda: open_dataset("/nowhere/at/all"))
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04nothing")
    assert "no zip file that can be read" in error_of(lambda: open_dataset(tmp_path / "bad.zip"))


def lines(path, **options) -> list[str]:
    config = InspectRoot(where=str(path), **options)
    data = opened(config)
    return [*described(data, config), *reported(looked_at(data, config))]


def test_inspect_describes_every_format(sets):
    for path, _ in sets.values():
        text = "\n".join(lines(path, check=True))
        for part in ("episodes  ", "steps  ", "rate  ", "size  ", "action", "tasks  "):
            assert part in text, (path, part)
        assert "error" not in text.replace("0 errors", "")
    text = "\n".join(lines(sets["lerobot 2"][0], statistics=True))
    assert "LeRobot v2.1" in text
    assert "state   state  float32 (3,)  from 'observation.state'  [x, y, z]" in text
    assert "front   image  uint8 (48, 64, 3)" in text
    assert "     2 x 'pick up the cube'" in text
    assert "state.x " in text


def test_inspect_names_what_is_damaged(sets):
    path = sets["lerobot 2"][0]
    file = path / "data/chunk-000/episode_000001.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    text = lines(path, check=True)
    assert text[-1].startswith("health     2 errors, ")  # of the rows, and of the frames
    assert "; 2 of 3 episodes read" in text[-1]
    assert [line for line in text if line.startswith(f"error    unreadable: {file}") and "episode 1" in line]


def test_inspect_needs_no_torch_and_tells_errors_in_one_line(sets):
    command = ["-m", "flowhand", "inspect"]
    alone = [sys.executable, "-X", "importtime", *command, str(sets["lerobot 3"][0])]
    done = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "LeRobot v3.0" in done.stdout
    assert " torch" not in done.stderr
    assert programs.run(*command, f"where={sets['lerobot 3'][0]}").stdout == done.stdout
    failed = programs.run(*command, "/nowhere/at/all")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("error: /nowhere/at/all does not exist")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """A stand-in for the hub: one data set of files in a folder."""

    folder: Path
    asked: list[str]
    broken = ""  # a file that breaks off in its middle

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        names = {str(file.relative_to(self.folder)): file for file in self.folder.rglob("*") if file.is_file()}
        if path.startswith("/api/datasets/robot/arm/tree/"):
            self._json([self._entry(name, file) for name, file in names.items()])
        elif path.startswith("/api/datasets/robot/arm"):
            siblings = [{"rfilename": name} for name in names]
            self._json({"id": "robot/arm", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        elif (
            path.startswith(f"/datasets/robot/arm/resolve/{COMMIT}/") and (name := path.split(COMMIT + "/")[1]) in names
        ):
            self._file(name, names[name].read_bytes())
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def _entry(self, name: str, file: Path) -> dict:
        return {
            "type": "file",
            "path": name,
            "size": file.stat().st_size,
            "oid": hashlib.sha1(name.encode()).hexdigest(),
        }

    def _json(self, content) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _file(self, name: str, data: bytes) -> None:
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{hashlib.sha1(name.encode()).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        if self.command == "GET":
            if name == type(self).broken:
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            else:
                self.wfile.write(data[first:])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub_address(tmp_path, monkeypatch):
    Hub.folder, Hub.asked, Hub.broken = Set3(tmp_path / "remote").write(), [], ""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_data_set_of_the_hub_is_downloaded_once(tmp_path, hub_address):
    folder = hub.fetched("robot/arm", cache_dir=tmp_path / "cache", endpoint=hub_address)
    assert folder.name == COMMIT
    data = LeRobotDataset(folder)
    data.read(3)
    asked = len(Hub.asked)
    assert hub.fetched("robot/arm", cache_dir=tmp_path / "cache", endpoint=hub_address) == folder
    assert len(Hub.asked) == asked


def test_an_interrupted_download_goes_on(tmp_path, hub_address):
    Hub.broken = "data/chunk-000/file-001.parquet"
    line = error_of(lambda: hub.fetched("robot/arm", cache_dir=tmp_path / "cache", endpoint=hub_address))
    assert line.startswith("robot/arm is neither a path here nor a data set that the hub gives")
    Hub.broken = ""
    Hub.asked.clear()
    folder = hub.fetched("robot/arm", cache_dir=tmp_path / "cache", endpoint=hub_address)
    LeRobotDataset(folder).read(3)
    again = [path for path in Hub.asked if path.startswith("GET") and "resolve" in path]
    assert 0 < len(again) < sum(file.is_file() for file in Hub.folder.rglob("*"))  # what was whole stayed


def test_a_repo_id_opens_and_pins_the_revision(tmp_path, hub_address, monkeypatch):
    fetch = hub.fetched
    monkeypatch.setattr(
        "flowhand.demos.formats.fetched", lambda repo, revision: fetch(repo, revision, tmp_path / "cache", hub_address)
    )
    monkeypatch.chdir(tmp_path)
    data = open_dataset("robot/arm")
    assert isinstance(data, LeRobotDataset)
    assert data.revision == f"robot/arm@{COMMIT}"
    plain = LeRobotDataset(data.path)
    assert plain.fingerprint != data.fingerprint
    assert f"revision   robot/arm@{COMMIT}" in "\n".join(lines("robot/arm"))
    assert "neither a path here nor a data set" in error_of(lambda: open_dataset("robot/leg"))
    for name in ("../arm", "robot/..", "a/b/c", "robot/a b"):
        assert "does not exist" in error_of(lambda name=name: open_dataset(name))
