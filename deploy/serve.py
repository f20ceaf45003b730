"""Serves a checkpoint or an export to robots: `python -m deploy.serve checkpoint=outputs/demo/checkpoint`."""

from __future__ import annotations

import asyncio
import os
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policies.checkpoint import load
from policies.controller import Planner
from policies.device import select_device

from .background import divert_logging
from .exported import is_export, require_own_sampler
from .runner import load as load_export
from .server import PolicyServer
from .server_config import ServerConfig

KEY_VARIABLE = "FLOWHAND_API_KEY"
MIN_KEY_LENGTH = 16
MAKE_KEY = "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"


def read_key(environment: Mapping[str, str], key_file: str) -> str | None:
    """The key from the environment or from a file that only its owner can read; None where there is neither.

    Raises:
        ValueError: both are given, the file is missing or readable by others, or the key is too short to be one.
    """
    if KEY_VARIABLE in environment and key_file:
        raise ValueError(f"{KEY_VARIABLE} and key_file={key_file!r} are both given; choose one")
    if KEY_VARIABLE in environment:
        key, source = environment[KEY_VARIABLE], KEY_VARIABLE
    elif key_file:
        path = Path(key_file)
        if not path.is_file():
            raise ValueError(f"key_file={key_file!r} is not there; {MAKE_KEY}")
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ValueError(f"key_file={key_file!r} can be read by others; chmod 600 it")
        key, source = path.read_text().strip(), f"key_file={key_file!r}"
    else:
        return None
    if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"{source} does not hold a key of at least {MIN_KEY_LENGTH} printable characters without spaces; {MAKE_KEY}"
        )
    return key


def tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """TLS 1.2 or newer with the configured certificate; None where there is none.

    Raises:
        ValueError: certificate or private key cannot be used.
    """
    if not config.tls_certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.tls_certificate, config.tls_key)
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"{config.tls_certificate!r} and {config.tls_key!r} cannot be used: {error}") from error
    return context


def open_policy(
    path: str, device: str, threads: int, compile: str = "no", head: Mapping[str, Any] | None = None
) -> Planner:
    """The policy of a checkpoint folder, or of one that `python -m deploy.export` wrote.

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


def main() -> None:
    """Serves as the Hydra config says, until SIGTERM or SIGINT."""
    import hydra
    from omegaconf import DictConfig

    from conf import cli, schema

    schema.register()

    @hydra.main(version_base="1.3", config_path="../conf", config_name="serve")
    def run(config: DictConfig) -> None:
        with cli.one_line_errors():
            root: Any = cli.typed(config)
            key, tls = read_key(os.environ, root.key_file), tls_context(root)
            policy = open_policy(root.checkpoint, root.device, root.threads, root.compile, root.head.changes)
            server = PolicyServer(policy, root, key, tls)

            def announce(port: int) -> None:
                access = "with a key" if key else "without a key"
                scheme = "wss" if tls else "ws"
                host = f"[{root.host}]" if ":" in root.host else root.host
                print(f"{root.checkpoint} is served on {scheme}://{host}:{port} {access}", flush=True)  # noqa: T201

            divert_logging()  # no line, of whichever library, may hold up the event loop
            asyncio.run(server.run(announce))

    cli.run(run)


if __name__ == "__main__":
    main()
