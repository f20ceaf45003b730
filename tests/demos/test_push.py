"""What is pushed to the hub comes back from it: policies by flowhand.load, demonstrations by their address."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import flowhand
from conf.verbs.push import PushRoot
from flowhand.commands.push.upload import contents, push
from flowhand.demos import hub
from flowhand.demos.formats import open_dataset
from tests.demos.recorded import Set3

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "v2"


class Hub(BaseHTTPRequestHandler):
    """A stand-in for the hub: repositories of commits, in memory; it takes and gives files."""

    commits: dict[str, dict[str, dict[str, bytes]]]  # of "models/owner/name", the newest last: id -> everything at it
    tags: dict[str, dict[str, str]]
    made: list[dict]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            type(self).made.append(asked)
            place = f"{asked.get('type', 'model')}s/{asked['organization']}/{asked['name']}"
            known = place in self.commits
            self.commits.setdefault(place, {})
            self.tags.setdefault(place, {})
            return self._json({"url": "https://huggingface.co/" + place.removeprefix("models/")}, 409 if known else 200)
        place, _, rest = self.path.removeprefix("/api/").partition("/preupload/")
        if rest:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        place, _, rest = self.path.removeprefix("/api/").partition("/commit/")
        if rest:
            return self._commit(place, body)
        place, _, revision = self.path.removeprefix("/api/").partition("/tag/")
        if json.loads(body)["tag"] in self.tags[place]:
            return self._json({"error": "there"}, 409)
        self.tags[place][json.loads(body)["tag"]] = revision
        return self._json({})

    def _commit(self, place: str, body: bytes) -> None:
        rows = [json.loads(line) for line in body.splitlines()]
        held = dict(self.commits[place][list(self.commits[place])[-1]]) if self.commits[place] else {}
        held |= {r["value"]["path"]: base64.b64decode(r["value"]["content"]) for r in rows if r["key"] == "file"}
        oid = hashlib.sha1(repr(sorted(held.items())).encode()).hexdigest()
        self.commits[place][oid] = held
        at = f"https://huggingface.co/{place.removeprefix('models/')}/commit/{oid}"
        self._json({"commitUrl": at, "commitOid": oid, "commitMessage": "m"})

    def do_DELETE(self) -> None:
        place, _, tag = self.path.removeprefix("/api/").partition("/tag/")
        del self.tags[place][tag]
        self._json({})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.endswith("/refs"):
            place = path.removeprefix("/api/").removesuffix("/refs")
            tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in self.tags[place].items()]
            return self._json({"branches": [], "converts": [], "tags": tags})
        for place, commits in self.commits.items():
            at = place.removeprefix("models/")
            if path.startswith(f"/api/{place}/tree/"):
                held = self._at(place, path.split("/tree/")[1].partition("/")[0])
                return self._json([self._entry(n, d) for n, d in held.items()])
            if path == f"/api/{place}" or path.startswith(f"/api/{place}/revision/"):
                revision = path.partition("/revision/")[2] or "main"
                held = self._at(place, revision)
                oid = next(oid for oid, each in commits.items() if each is held)
                siblings = [{"rfilename": name} for name in held]
                about = {"id": place.partition("/")[2], "sha": oid, "siblings": siblings, "private": False, "tags": []}
                return self._json({**about, "downloads": 0, "likes": 0})
            if path.startswith(f"/{at}/resolve/"):
                revision, _, name = path.split("/resolve/")[1].partition("/")
                return self._file(revision, name, self._at(place, revision)[name])
        return self._json({"error": "Repository not found"}, 404)

    do_HEAD = do_GET  # noqa: N815

    def _at(self, place: str, revision: str) -> dict[str, bytes]:
        commits = self.commits[place]
        return commits.get(self.tags[place].get(revision, revision)) or commits[list(commits)[-1]]

    def _entry(self, name: str, data: bytes) -> dict:
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def _json(self, content, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self._end(data)

    def _file(self, revision: str, name: str, data: bytes) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", revision)
        self._end(data)

    def _end(self, data: bytes) -> None:
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub_address(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub", reason="the extra is not installed: pip install 'flowhand[data]'")
    Hub.commits, Hub.tags, Hub.made = {}, {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    at = f"http://127.0.0.1:{server.server_address[1]}"
    fetch = hub.fetched
    monkeypatch.setattr(
        hub, "fetched", lambda repo, revision, kind: fetch(repo, revision, tmp_path / "cache", at, kind)
    )
    monkeypatch.setattr(
        "flowhand.demos.formats.fetched", lambda repo, revision: fetch(repo, revision, tmp_path / "cache", at)
    )
    yield at
    server.shutdown()
    server.server_close()


def golden() -> Path:
    return next(path.parent for path in sorted(GOLDEN.rglob("config.json")))


def test_a_checkpoint_comes_back_without_what_only_training_needs(hub_address):
    line = push(PushRoot(str(golden()), "me/demo", endpoint=hub_address))
    commit = list(Hub.commits["models/me/demo"])[-1]
    assert f"are at me/demo@{commit}; flowhand.load takes hf://me/demo@{commit}" in line
    assert sorted(Hub.commits["models/me/demo"][commit]) == ["config.json", "golden.safetensors", "model.safetensors"]
    assert Hub.made[0].get("visibility", Hub.made[0].get("private")) in (
        "private",
        True,
    )  # as the library's version says
    policy = flowhand.load(f"hf://me/demo@{commit}")  # which compares its golden action
    assert policy.spec == flowhand.load(golden()).spec


def test_demonstrations_come_back_and_carry_the_tag_that_lerobot_asks_for(tmp_path, hub_address):
    folder = Set3(tmp_path / "mine").write()
    (folder / "notes.txt").write_text("not part of it")
    (folder / "data" / ".hidden").write_text("nor this")
    for _ in range(2):  # again: the tag moves
        push(PushRoot(str(folder), "me/mine", endpoint=hub_address))
    place = "datasets/me/mine"
    assert not {"notes.txt", "data/.hidden"} & set(list(Hub.commits[place].values())[-1])
    assert Hub.tags[place] == {"v3.0": list(Hub.commits[place])[-1]}
    there, here = open_dataset("hf://me/mine"), open_dataset(folder)
    assert there.lengths == here.lengths
    np.testing.assert_array_equal(there.read(1).action, here.read(1).action)


@pytest.mark.parametrize("where", ["hf://", "hf://name", "hf://a/b/c", "hf://../x", "hf://a/b c"])
def test_what_is_no_address_is_said(where):
    for opens in (flowhand.load, open_dataset):
        with pytest.raises(ValueError, match="is no address on the hub; expected hf://OWNER/NAME"):
            opens(where)


def test_what_is_not_there_is_one_line(hub_address):
    with pytest.raises(ValueError, match="me/none is neither a path here nor a policy that the hub gives"):
        flowhand.load("hf://me/none")


def test_only_whole_policies_and_data_sets_are_pushed(tmp_path, hub_address):
    for folder, message in (
        (tmp_path / "none", "there is no folder"),
        (tmp_path, "is no checkpoint, no export and no data set"),
    ):
        with pytest.raises(ValueError, match=message):
            push(PushRoot(str(folder), "me/demo", endpoint=hub_address))
    with pytest.raises(ValueError, match="expected OWNER/NAME"):
        push(PushRoot(str(golden()), "demo"))
    assert Hub.made == []
    folder = Set3(tmp_path / "mine").write()
    (folder / "data" / "out").symlink_to(ROOT / "README.md")
    with pytest.raises(ValueError, match="is a link to a place outside"):
        contents(folder)


def test_a_hub_that_refuses_is_one_line():
    with pytest.raises(ValueError, match="the hub does not take me/demo: "):
        push(PushRoot(str(golden()), "me/demo", endpoint="http://127.0.0.1:9"))
