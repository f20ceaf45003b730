"""The server of policies: openpi's websocket protocol, with limits, sessions and batching."""
