"""What the server counts and measures, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
ROWS = tuple(2**n for n in range(9))


class Metrics:
    """The instruments of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("flowhand_requests", "Requests received", registry=registry)
        self.errors = Counter("flowhand_errors", "Requests answered with an error", ["reason"], registry=registry)
        self.refused = Counter(
            "flowhand_refused", "Connections refused or ended by the server", ["reason"], registry=registry
        )
        self.connections = Gauge("flowhand_connections", "Open connections", registry=registry)
        self.queue_depth = Gauge("flowhand_queue_depth", "Requests that wait for inference", registry=registry)
        self.batch_rows = Histogram(
            "flowhand_batch_rows", "Requests that shared an inference call", buckets=ROWS, registry=registry
        )
        self.infer_seconds = Histogram(
            "flowhand_infer_seconds", "Duration of an inference call", buckets=SECONDS, registry=registry
        )
        self.request_seconds = Histogram(
            "flowhand_request_seconds",
            "From the arrival of a request to its answer",
            buckets=SECONDS,
            registry=registry,
        )

    def text(self) -> str:
        """All values in Prometheus' text format."""
        return generate_latest(self._registry).decode()
