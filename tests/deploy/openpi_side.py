"""Run by test_openpi_client.py in an environment of its own, with the real openpi packages.

python openpi_side.py ask PORT KEY    asks a server with openpi-client, prints what came as JSON lines
python openpi_side.py serve PORT      serves a policy with openpi-server
"""

# pyright: reportMissingImports=false

import json
import sys

import numpy as np


def observation(n):
    return {"joints": np.full(3, n, np.float64), "camera": np.full((8, 8, 3), n, np.uint8), "prompt": "pick it up"}


def tell(**values):
    print(json.dumps(values))  # noqa: T201


def ask(port, key):
    from openpi_client.action_chunk_broker import ActionChunkBroker
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

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


def serve(port):
    from openpi_server import WebsocketPolicyServer

    class Policy:
        def infer(self, obs):
            return {"actions": np.outer(np.arange(1, 5), obs["state"]), "policy_timing": {"infer_ms": np.float64(1)}}

    WebsocketPolicyServer(Policy(), "127.0.0.1", port, metadata={"name": "openpi"}).serve_forever()


if __name__ == "__main__":
    {"ask": ask, "serve": serve}[sys.argv[1]](int(sys.argv[2]), *sys.argv[3:])
