"""Serves a checkpoint or an export to robots: `flowhand serve checkpoint=outputs/demo/checkpoint`."""

from __future__ import annotations

import asyncio
import os
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from conf import cli
from conf.verbs.serve import ServeRoot
from flowhand.contracts.export.artifact import is_export
from flowhand.contracts.export.exported_policy import require_own_sampler
from flowhand.contracts.planner import Planner
from flowhand.control.background import divert_logging
from flowhand.deploy.runner import load as load_export
from flowhand.deploy.server.config import ServerConfig
from flowhand.deploy.server.server import PolicyServer
from policies.checkpoint import load
from policies.device import select_device

KEY_VARIABLE = "FLOWHAND_API_KEY"
MIN_KEY_LENGTH = 16
MAX_FILE_BYTES = 2**20  # of a key or certificate
MAKE_KEY = "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"


def read_key(environment: Mapping[str, str], key_file: str) -> str | None:
    """The key from the environment or from a file that only its owner can read; None where there is neither.

    Either may hold several keys with white space between them, one for each client that is to have its own share.

    Raises:
        ValueError: both are given, the file is missing or readable by others, or a key is too short to be one.
    """
    if KEY_VARIABLE in environment and key_file:
        raise ValueError(f"{KEY_VARIABLE} and key_file={key_file!r} are both given; choose one")
    if KEY_VARIABLE in environment:
        text, source = environment[KEY_VARIABLE], KEY_VARIABLE
    elif key_file:
        text, source = _content("key_file", key_file, MAKE_KEY), f"key_file={key_file!r}"
        if stat.S_IMODE(Path(key_file).stat().st_mode) & 0o077:
            raise ValueError(f"key_file={key_file!r} can be read by others; chmod 600 it")
    else:
        return None
    keys = text.split()
    if not keys or not all(len(key) >= MIN_KEY_LENGTH and key.isascii() and key.isprintable() for key in keys):
        raise ValueError(
            f"{source} does not hold a key of at least {MIN_KEY_LENGTH} printable characters without spaces; {MAKE_KEY}"
        )
    return " ".join(keys)


def tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """TLS 1.2 or newer with the configured certificate; None where there is none.

    Raises:
        ValueError: certificate or private key cannot be used.
    """
    if not config.tls_certificate:
        return None
    make = "docs/deploy.md shows how to make one"
    _content("tls_certificate", config.tls_certificate, make)
    _content("tls_key", config.tls_key, make)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2

    def ask_nobody() -> str:  # openssl itself would ask the terminal, and wait
        clear = f"openssl pkey -in {config.tls_key} -out {config.tls_key}.clear"
        raise ValueError(f"tls_key={config.tls_key!r} has a pass phrase; write it without one: {clear}")

    try:
        context.load_cert_chain(config.tls_certificate, config.tls_key, ask_nobody)
    except OSError as error:  # ssl.SSLError is one
        names = f"tls_certificate={config.tls_certificate!r} and tls_key={config.tls_key!r}"
        raise ValueError(f"{names} cannot be used ({error}); give PEM files that belong together") from error
    return context


def _content(name: str, path: str, make: str) -> str:
    """The text of a small file that an option names; `ValueError` saying what to do where it cannot be read."""
    try:
        if not Path(path).exists():
            raise ValueError(f"{name}={path!r} is not there; {make}")
        if not Path(path).is_file():
            raise ValueError(f"{name}={path!r} is no file; give the file itself")
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(
            f"{name}={path!r} cannot be read ({error.strerror}); let the user who serves read it"
        ) from error
    if len(data) > MAX_FILE_BYTES or not data.isascii():
        raise ValueError(f"{name}={path!r} is no small text file; give another; {make}")
    return data.decode()


def open_policy(
    path: str, device: str, threads: int, compile: str = "no", head: Mapping[str, Any] | None = None
) -> Planner:
    """The policy of a checkpoint folder, or of one that `flowhand export` wrote.

    Args:
        path: the folder.
        device: auto | cpu | cuda | cuda:N.
        threads: CPU threads; 0: as many as this process may use.
        compile: no | fp32 | bf16 (`Policy.compile`).
        head: fields of the checkpoint's head to sample with in place of its own (`Policy.with_head`).

    Raises:
        ValueError: what is wrong with it; or an export, which runs on the CPU as it is, and another device, compile or
            head.
    """
    if not is_export(path):
        policy = load(path, select_device(device, threads))
        if head:
            policy = policy.with_head(**head)
        if compile != "no":
            policy.compile(compile)
        return policy
    require_own_sampler(path, head or {})
    if device not in ("auto", "cpu") or compile != "no":
        raise ValueError(
            f"{path} is an export, which runs on the CPU as it is; device={device!r} and compile={compile!r} "
            "are for checkpoints"
        )
    return load_export(path, threads)


def run(config: DictConfig) -> None:
    """Serves as the configuration says, until SIGTERM or SIGINT."""
    cli.require_given(config, "checkpoint")
    root: ServeRoot = cli.typed(config)
    key, tls = read_key(os.environ, root.server.key_file), tls_context(root.server)
    policy = open_policy(root.checkpoint, root.device, root.threads, root.compile, root.head.changes)
    server = PolicyServer(policy, root.server, key, tls)

    def announce(port: int) -> None:
        access = "with a key" if key else "without a key"
        scheme = "wss" if tls else "ws"
        host = f"[{root.server.host}]" if ":" in root.server.host else root.server.host
        print(f"{root.checkpoint} is served on {scheme}://{host}:{port} {access}", flush=True)

    divert_logging()  # no line, of whichever library, may hold up the event loop
    asyncio.run(server.run(announce))


def main() -> None:
    """Entry point."""
    cli.program("serve", run)
