"""The judge: the one episode loop, worker processes, records and statistics."""
