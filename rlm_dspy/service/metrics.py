"""Counts requests, runs, tokens and cost for Prometheus."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_dspy.usage import Usage

_SECONDS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """The metrics of one server.

    Attributes:
        in_progress: How many runs go on.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("rlm_requests", "Requests.", ["path", "status"], registry=registry)
        self._runs = Counter(
            "rlm_runs",
            "Runs by how they ended: as prediction.stop, failed, refused or cancelled.",
            ["stop"],
            registry=registry,
        )
        self._seconds = Histogram("rlm_run_seconds", "How long runs took.", buckets=_SECONDS, registry=registry)
        self._tokens = Counter("rlm_tokens", "Tokens of model calls.", ["kind"], registry=registry)
        self._cost = Counter("rlm_cost_usd", "Cost of model calls with a known price, USD.", registry=registry)
        self._in_progress = Gauge("rlm_runs_in_progress", "Runs that go on.", registry=registry)
        self._in_progress.set_function(lambda: self.in_progress)
        self.in_progress = 0

    @contextlib.contextmanager
    def run_in_progress(self) -> Iterator[None]:
        """Count a run as going on in this scope."""
        self.in_progress += 1
        try:
            yield
        finally:
            self.in_progress -= 1

    def answered(self, path: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()

    def count(self, stop: str, seconds: float, spent: Usage) -> None:
        """Count a run that ended."""
        self._runs.labels(stop).inc()
        self._seconds.observe(seconds)
        self._tokens.labels("input").inc(spent.input_tokens)
        self._tokens.labels("output").inc(spent.output_tokens)
        self._cost.inc(spent.cost or 0.0)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)
