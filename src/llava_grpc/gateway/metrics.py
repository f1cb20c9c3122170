"""What the gateway counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """One gateway's."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        prefix = "llava_grpc_gateway"
        self.requests = Counter(f"{prefix}_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.in_flight = Gauge(f"{prefix}_in_flight", "Requests under way.", ["route"], registry=registry)
        self.seconds = Histogram(
            f"{prefix}_request_seconds", "From request to end.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.first_token = Histogram(
            f"{prefix}_first_token_seconds",
            "From request to the first text.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.tokens = Counter(f"{prefix}_tokens", "Tokens of complete answers.", ["kind"], registry=registry)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
