"""The command line of the server: where its key comes from, TLS, and one real checkpoint."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

import policies
from benchmarks.toy_server import ToyPolicy
from conf.cli import compose
from flowhand.commands.serve import KEY_VARIABLE, open_policy, read_key, tls_context
from flowhand.contracts.features import Spec
from flowhand.control.controller import Controller
from flowhand.deploy.client import Client, RemoteController
from flowhand.deploy.server.config import ServerConfig

ROOT = Path(__file__).parents[2]
KEY = "correct-horse-battery-staple"


def key_file(tmp_path: Path, content: str = KEY, mode: int = 0o600) -> str:
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(mode)
    return str(path)


def test_the_key_comes_from_the_environment_or_a_private_file(tmp_path):
    assert read_key({}, "") is None
    assert read_key({KEY_VARIABLE: KEY}, "") == KEY
    assert read_key({}, key_file(tmp_path, f"{KEY}\n")) == KEY
    assert read_key({}, key_file(tmp_path, f"{KEY}\n{KEY[::-1]}\n")) == f"{KEY} {KEY[::-1]}"


def test_a_key_that_protects_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="both given; choose one"):
        read_key({KEY_VARIABLE: KEY}, key_file(tmp_path))
    with pytest.raises(ValueError, match="can be read by others; chmod 600 it"):
        read_key({}, key_file(tmp_path, mode=0o644))
    with pytest.raises(ValueError, match="is not there"):
        read_key({}, str(tmp_path / "nothing"))
    for weak in ("", "short", "x" * 15, "with spaces in between", "ümlaut-" * 4, "line\nbreak-line-break"):
        with pytest.raises(ValueError, match=f"{KEY_VARIABLE} does not hold a key of at least 16"):
            read_key({KEY_VARIABLE: weak}, "")


def unreadable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is for another user than the owner; root could read it all the same."""

    def opened(self: Path, *of: object, **options: object) -> object:
        if self == path:
            raise PermissionError(13, "Permission denied", str(path))
        return real(self, *of, **options)  # pyright: ignore[reportCallIssue, reportArgumentType]

    real = Path.open
    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("missing", r"='.*mine' is not there; "),
        ("folder", r"='.*mine' is no file; give the file itself"),
        ("pipe", r"='.*mine' is no file; give the file itself"),
        ("unreadable", r"='.*mine' cannot be read \(Permission denied\); let the user who serves read it"),
        ("binary", r"='.*mine' is no small text file; give another; "),
        ("endless", r"='.*mine' is no small text file; give another; "),
    ],
)
@pytest.mark.parametrize("name", ["key_file", "tls_certificate", "tls_key"])
def test_a_file_that_cannot_be_read_is_told_in_one_line(tmp_path, monkeypatch, name, kind, match):
    mine, good = tmp_path / "mine", tmp_path / "good"
    good.touch()
    make = {"missing": lambda: None, "folder": mine.mkdir, "pipe": lambda: os.mkfifo(mine)}
    make.get(kind, lambda: mine.write_bytes(b"\xff\xfe" if kind == "binary" else b"x" * 17))()
    if kind == "endless":
        os.truncate(mine, 2**32)
    if kind == "unreadable":
        unreadable(mine, monkeypatch)
    files = SimpleNamespace(**{"tls_certificate": str(good), "tls_key": str(good), name: str(mine)})
    read = partial(read_key, {}, str(mine)) if name == "key_file" else partial(tls_context, cast(ServerConfig, files))
    with pytest.raises(ValueError, match=name + match) as told:
        read()
    assert "\n" not in str(told.value)


def certificate(folder: Path, *options: str) -> tuple[str, str]:
    names = str(folder / "certificate.pem"), str(folder / "key.pem")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2", *(options or ["-nodes"])]
    command = ["openssl", "req", "-x509", *curve, "-keyout", names[1], "-out", names[0], *subject]
    subprocess.run(command, check=True, capture_output=True)
    return names


NEEDS_OPENSSL = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate of this test")


@NEEDS_OPENSSL
def test_a_private_key_with_a_pass_phrase_asks_nobody(tmp_path):
    files = certificate(tmp_path, "-passout", "pass:secret")
    with pytest.raises(ValueError, match=r"has a pass phrase; write it without one: openssl pkey -in .*key\.pem -out "):
        tls_context(ServerConfig(tls_certificate=files[0], tls_key=files[1]))


@NEEDS_OPENSSL
def test_tls_needs_a_certificate_that_can_be_used(tmp_path):
    assert tls_context(ServerConfig()) is None
    (tmp_path / "other").mkdir()
    good, other = certificate(tmp_path), certificate(tmp_path / "other")
    for pair in ((good[0], other[1]), (good[1], good[0])):
        with pytest.raises(ValueError, match=r"cannot be used .*; give PEM files that belong together"):
            tls_context(ServerConfig(tls_certificate=pair[0], tls_key=pair[1]))


@NEEDS_OPENSSL
def test_over_tls(tmp_path, serving, observation):
    public, private = certificate(tmp_path)
    running = serving(key=KEY, tls=tls_context(ServerConfig(tls_certificate=public, tls_key=private)))
    uri = running.uri.replace("ws:", "wss:")
    with closing(Client(uri, KEY, tls=ssl.create_default_context(cafile=public))) as client:
        assert client.infer(observation)["actions"].shape == (8, 2)
    with pytest.raises(ConnectionError, match="certificate"):
        Client(uri, KEY).connect()  # a certificate that nobody vouches for
    with pytest.raises((ConnectionError, TimeoutError)):
        Client(running.uri, KEY).connect()  # not encrypted


def test_a_robot_needs_one_file_and_no_torch(tmp_path):
    shutil.copy(ROOT / "flowhand" / "deploy" / "client.py", tmp_path)
    program = "import sys, client; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"client", "numpy", "msgpack", "websockets"} <= loaded
    assert loaded & {"torch", "policies", "flowhand", "hydra", "mujoco", "prometheus_client"} == set()


def test_a_server_of_an_exported_policy_needs_no_torch():
    program = "import sys, flowhand.deploy.server.server; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & {"torch", "hydra", "mujoco", "envs", "demos"} == set()


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    config = compose(["encoder.width=16", "net.width=16", "net.blocks=1"])
    features = {
        "observation": {"state": {"shape": [4], "dtype": "float32", "unit": "m", "low": None, "high": None}},
        "action": {"shape": [2], "dtype": "float32", "unit": "m/s", "low": None, "high": None},
        "control_dt_s": 0.1,
    }
    policy = policies.Policy(config.policy, Spec.from_dict(features))
    policy.fit_normalizers({"state": torch.randn(50, 4)}, torch.randn(50, 2))
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    source = policies.Provenance({"kind": "toy"}, "toy", "reach", "", [], {}, "", 0)
    golden = {"state": torch.randn(1, config.chunk.history, 4)}
    policies.save(tmp_path / "checkpoint", policy, source, golden, {})
    return tmp_path / "checkpoint"


def test_an_export_is_opened_as_one(tmp_path, checkpoint, monkeypatch):
    exported = ToyPolicy()
    monkeypatch.setattr("flowhand.commands.serve.load_export", lambda path, threads: (path, threads, exported)[2])
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "manifest.json").touch()
    assert open_policy(str(tmp_path / "export"), "auto", 1) is exported
    with pytest.raises(ValueError, match="an export, which runs on the CPU as it is; device='cuda'"):
        open_policy(str(tmp_path / "export"), "cuda", 1)
    with pytest.raises(ValueError, match=r"has its sampler in it; give head\.steps=2 to flowhand export"):
        open_policy(str(tmp_path / "export"), "cpu", 1, head={"steps": 2})
    with pytest.raises(ValueError, match="compile='fp32' are for checkpoints"):
        open_policy(str(tmp_path / "export"), "cpu", 1, "fp32")
    assert isinstance(open_policy(str(checkpoint), "cpu", 1), policies.Policy)


def test_a_checkpoint_is_served_with_another_sampler_on_request(checkpoint):
    policy = open_policy(str(checkpoint), "cpu", 1, head={"steps": 9})
    assert isinstance(policy, policies.Policy)
    assert policy.head.evaluations == 9
    with pytest.raises(ValueError, match="head=flow has no field 'sampler'"):
        open_policy(str(checkpoint), "cpu", 1, head={"sampler": "ddpm"})


def test_a_checkpoint_is_compiled_on_request(checkpoint, monkeypatch):
    asked = []
    monkeypatch.setattr(policies.Policy, "compile", lambda self, precision: asked.append(precision))
    open_policy(str(checkpoint), "cpu", 1)
    open_policy(str(checkpoint), "cpu", 1, "bf16")
    assert asked == ["bf16"]
    monkeypatch.undo()
    with pytest.raises(ValueError, match="precision='fp16' is unknown; choices: fp32, bf16"):
        open_policy(str(checkpoint), "cpu", 1, "fp16")


@pytest.mark.slow
def test_a_checkpoint_is_served_as_it_acts_locally(checkpoint):
    command = [sys.executable, "-m", "flowhand", "serve", f"checkpoint={checkpoint}", "port=0", "inference_batch=4"]
    environment = {**os.environ, KEY_VARIABLE: KEY}
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line.endswith(" with a key\n")
    local = Controller(policies.load(checkpoint), inference_batch=4)
    robot = RemoteController(Client(line.split()[4], KEY), ahead=0, wait_s=5.0)
    for seed in (1, 2):
        robot.reset(seed)
        local.reset(seed=seed)
        for step in range(5):
            state = {"state": np.full(4, 0.1 * step, np.float32)}
            action = robot.step(state)
            assert action is not None
            assert action.tobytes() == local.step(state).tobytes()
    robot.close()
    server.terminate()
    assert server.wait(20) == 0
    server.stdout.close()


@pytest.mark.slow
def test_an_error_is_one_line_and_status_1(checkpoint):
    command = [sys.executable, "-m", "flowhand", "serve", f"checkpoint={checkpoint}"]
    for words, match in (("host=0.0.0.0", "needs a key"), ("portt=1", "did you mean 'port'?"), ("port=70000", "65535")):
        done = subprocess.run([*command, words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 1
        assert match in done.stderr
        assert done.stderr.count("\n") == 1
