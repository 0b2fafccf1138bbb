"""What the server measures of itself, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Upper bounds of latencies in seconds: from a look-up to a long answer."""
METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})


class Metrics:
    """The meters of one server.

    Args:
        jobs: counts jobs by status; asked at every reading.
    """

    def __init__(self, jobs: Callable[[], Mapping[str, int]]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tunesmith_requests", "Requests by route and status.", ["method", "route", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "tunesmith_request_seconds", "Seconds from a request to the end of its answer.",
            ["method", "route"], buckets=BUCKETS, registry=self._registry,
        )  # fmt: skip
        self.in_flight = Gauge(
            "tunesmith_requests_in_flight", "Requests under way.", registry=self._registry
        )
        self._registry.register(_Jobs(jobs))
        ProcessCollector(registry=self._registry)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request has ended. `route` is a template, or empty where none fits."""
        method = method if method in METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def read(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)


class _Jobs(Collector):
    def __init__(self, count: Callable[[], Mapping[str, int]]) -> None:
        self._count = count

    def describe(self) -> list[GaugeMetricFamily]:
        return [GaugeMetricFamily("tunesmith_jobs", "Jobs by status.", labels=["status"])]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        [family] = self.describe()
        for status, number in self._count().items():
            family.add_metric([status], number)
        yield family
