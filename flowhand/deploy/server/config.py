"""Configuration of the server, apart from it so that composing a configuration needs no websockets."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flowhand.contracts.strict import whole_numbers


@dataclass
class ServerConfig:
    """Where a server listens, and every limit that it holds its clients to."""

    host: str = "127.0.0.1"  # address to listen on; another than loopback needs a key
    port: int = 8000  # TCP port; 0: any free one
    key_file: str = ""  # file with the key, readable by its owner only; the variable FLOWHAND_API_KEY is the other way
    tls_certificate: str = ""  # PEM file with the certificate chain; empty: no encryption
    tls_key: str = ""  # PEM file with the certificate's private key
    inference_batch: int = 16  # rows of every inference call; another value may change an action's last bit
    noise_seed: int = 0  # another value gives another draw of all noise; in [0, 2^32)
    clip: bool = True  # actions to the low and high of the policy's specification
    max_wait_ms: float = 0.0  # ms that a free worker waits for more requests to share its call
    deadline_s: float = 1.0  # s after which a request that has no answer is given up
    max_waiting: int = 128  # requests that wait for inference; who has the most of them is answered "busy" first
    max_connections: int = 128  # open connections; further ones are refused with HTTP status 503
    max_connections_each: int = 96  # of them with one key from one address; further ones are refused with status 429
    max_opening: int = 256  # connections that have asked for nothing yet; a further one ends one of the fullest address
    max_request_hz: float = 1000.0  # requests and connections per second, of one key and address; a faster one waits
    max_message_bytes: int = 0  # of one request; 0: what the policy's observation history needs, and 64 KiB
    open_timeout_s: float = 5.0  # s for the TLS handshake, and for the HTTP request
    write_timeout_s: float = 5.0  # s that a client may take to read an answer
    ping_s: float = 20.0  # s between pings of an idle connection, and for the pong
    drain_s: float = 10.0  # s that requests may take to finish after SIGTERM

    def __post_init__(self) -> None:
        whole_numbers(self)
        limits = {
            "port": (0, 2**16 - 1),
            "inference_batch": (1, 4096),
            "noise_seed": (0, 2**32 - 1),
            "max_wait_ms": (0, 1000),
            "deadline_s": (0.001, 3600),
            "max_waiting": (1, 2**20),
            "max_connections": (1, 2**16),
            "max_connections_each": (1, 2**16),
            "max_opening": (1, 2**16),
            "max_request_hz": (0.001, 1e6),
            "max_message_bytes": (0, 2**30),
            "open_timeout_s": (0.001, 3600),
            "write_timeout_s": (0.001, 3600),
            "ping_s": (0.001, 3600),
            "drain_s": (0, 3600),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high or not math.isfinite(value):
                raise ValueError(f"{name}={value} must lie in {low}..{high}")
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key go together; give both or neither")
