"""A policy server as a planner: what `flowhand.load("ws://host:port")` gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from flowhand.contracts.features import ChunkConfig, Spec
from flowhand.contracts.planner import NOTHING, PrefixArrays
from flowhand.contracts.provenance import Provenance

from .client import Client, _described

SCHEMES = ("ws://", "wss://")


class RemotePlanner:
    """Decides on a flowhand server. One call waits for one answer after the other, for at most the client's timeout.

    The server draws the noise, from a seed that the client sends. So the noise of a decision is one number here, whose
    32 bits are that seed: the same noise still gives the same chunk, which is another than the checkpoint itself would
    give. Prefixes are not sent. A robot that must not wait for the network takes `RemoteController` instead.

    Args:
        client: for this planner alone; it is connected here.

    Raises:
        ValueError: the server does not describe a flowhand policy, as openpi's own servers do not.
        ConnectionError, TimeoutError: it cannot be reached.
    """

    continues = NOTHING
    noise_shape = (1,)

    def __init__(self, client: Client):
        self._client = client
        metadata = client.connect()
        try:
            _described(metadata)
            self.spec = Spec.from_dict(metadata["spec"])
            chunk = {name: metadata[name] for name in ("history", "prediction_horizon", "execution_horizon")}
            self.chunk = ChunkConfig(**chunk)
        except (ValueError, KeyError, TypeError) as error:
            client.close()
            raise ValueError(
                f"{client.uri} says too little of its policy to be loaded ({error}); talk to it through "
                "flowhand.deploy.client.Client, in its own names of observations"
            ) from error

    def __repr__(self) -> str:
        return f"RemotePlanner({self._client.uri}, {self.spec})"

    @property
    def words(self) -> str:
        """What it is, in words."""
        return f"policy served at {self._client.uri}"

    @property
    def identity(self) -> dict[str, Any]:
        """The server's address."""
        return {"server": self._client.uri}

    @property
    def changed_head(self) -> dict[str, Any]:
        """Nothing that is known here."""
        return {}

    @property
    def device_name(self) -> str:
        """The processor that waits for the answers."""
        return "cpu"

    @property
    def provenance(self) -> Provenance:
        """A server does not say it."""
        self._refuse()

    @property
    def observation_spread(self) -> Mapping[str, list[float]]:
        """A server does not say it."""
        self._refuse()

    def settled(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """A server does not say it."""
        self._refuse()

    def plan(
        self, observation: Mapping[str, np.ndarray], noise: np.ndarray, prefix: PrefixArrays | None = None
    ) -> np.ndarray:
        """Chunks (B, T, A) for histories, each (B, O, *shape), and noise (B, 1), one request for each row.

        Raises:
            ValueError: a prefix, or an observation that the server refuses before it is sent.
            RuntimeError: the server's error.
            ConnectionError, TimeoutError: no connection, or no answer in time.
        """
        if prefix is not None:
            raise ValueError("a served policy takes no prefix; execute it with mode=receding_horizon")
        seeds = np.ascontiguousarray(noise, np.float32).view(np.uint32)[:, 0]
        chunks = [
            self._client.infer({**{name: rows[row] for name, rows in observation.items()}, "reset": int(seed)})
            for row, seed in enumerate(seeds)
        ]
        return np.stack([answer["actions"] for answer in chunks]).astype(np.float32)

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def _refuse(self) -> NoReturn:
        raise ValueError(
            f"{self._client.uri} does not say what its policy was trained on; load the checkpoint or the export itself"
        )


def load(uri: str, key: str | None = None) -> RemotePlanner:
    """The policy that a server decides with; `key` is the server's, where it wants one."""
    return RemotePlanner(Client(uri, key))
