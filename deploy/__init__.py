"""The wire: server, client, runtime, safety, export."""
