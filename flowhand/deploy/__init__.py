"""The wire: server, client, and an export that runs without torch."""
