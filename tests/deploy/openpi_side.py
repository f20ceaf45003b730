"""Runs in an environment of its own, with the real openpi-client: asks a server, prints what came as JSON lines."""

# pyright: reportMissingImports=false

import json
import sys

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

port, key = int(sys.argv[1]), sys.argv[2]


def observation(n):
    return {"joints": np.full(3, n, np.float64), "camera": np.full((8, 8, 3), n, np.uint8)}


def tell(**values):
    print(json.dumps(values))  # noqa: T201


policy = WebsocketClientPolicy("127.0.0.1", port, api_key=key)
tell(metadata=policy.get_server_metadata(), numpy=np.__version__)
for n in range(3):
    answer = policy.infer(observation(n))
    timing = {name: sorted(answer[name]) for name in ("policy_timing", "server_timing")}
    tell(actions=answer["actions"].tolist(), dtype=str(answer["actions"].dtype), **timing)

policy = WebsocketClientPolicy(f"ws://127.0.0.1:{port}", api_key=key)
broker = ActionChunkBroker(policy, action_horizon=2)
for n in range(4):
    tell(step=broker.infer(observation(n))["actions"].tolist())

try:
    policy.infer({"joints": np.zeros(3)})
except RuntimeError as error:
    tell(error=str(error))
try:
    WebsocketClientPolicy("127.0.0.1", port, api_key="wrong")
except Exception as error:
    tell(refused=str(error))
