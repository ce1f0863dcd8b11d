"""Prometheus metrics of a service."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from time import monotonic
from typing import TYPE_CHECKING, Any

from poetry.protocol import PoetryFactory, PoetryProtocol

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from poetry.daemon.site import ScrapeSite
    from poetry.server import PoetryService

OUTCOMES = ("sent", "truncated", "timed_out", "stopped", "failed", "handshake")
"""Outcomes of a poem that is sent. Each has a counter from the start, at 0, as Prometheus sees no
increase in the first value of a counter."""


class Metrics:
    """Prometheus metrics of a `PoetryService`: counts its transfers, and reads its state.

    The label `poem` is the name of a poem that is served, so its values are bounded.
    """

    def __init__(self, service: PoetryService) -> None:
        """@raise ImportError: if prometheus-client is not installed (the extra `metrics`)."""
        from prometheus_client import (
            CollectorRegistry,
            Counter,
            Gauge,
            Histogram,
            Info,
            ProcessCollector,
        )

        self._clock = service.clock
        self.registry: CollectorRegistry = CollectorRegistry()
        given: dict[str, Any] = {"registry": self.registry}
        ProcessCollector(**given)
        Info("poetry_build", "What serves.", **given).info({"version": version("twisted-poetry")})
        self._poems = Counter(
            "poetry_poems", "Transfers, by how they ended.", ["poem", "outcome"], **given
        )
        self._bytes = Counter("poetry_bytes", "Bytes of poems sent or received.", ["poem"], **given)
        self._seconds = Histogram(
            "poetry_transfer_seconds",
            "Seconds from connection to its end.",
            buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300),
            **given,
        )
        gauges: list[tuple[str, str, Callable[[], float]]] = [
            ("open_connections", "Connections open now.", lambda: len(service.connections)),
            ("max_connections", "Connections that may be open.", lambda: service.limit),
            (
                "waiting_connections",
                "Connections that wait in the kernel's queue.",
                lambda: service.accept_queue,
            ),
            (
                "last_reload_success",
                "1 where the last reload read all poems and certificates, else 0.",
                lambda: service.reloaded_well,
            ),
            (
                "last_reload_timestamp_seconds",
                "When the last reload ended; before the first, when the service was made.",
                lambda: service.reloaded_at,
            ),
        ]
        for name, text, value in gauges:
            Gauge(f"poetry_{name}", text, **given).set_function(value)
        sizes = Gauge("poetry_poem_size_bytes", "Size of each poem.", ["poem"], **given)
        for factory in {factory for _, factory in service.listeners}:
            sizes.labels(factory.name).set_function(partial(_poem_size, factory))
            self._bytes.labels(factory.name)
            for outcome in OUTCOMES:
                self._poems.labels(factory.name, outcome)
            factory.observers = (*factory.observers, self)

    def __call__(self, protocol: PoetryProtocol) -> None:
        """Count a transfer that has ended, as one of a factory's `observers`."""
        poem = protocol.factory.name
        self._poems.labels(poem, protocol.outcome).inc()
        self._bytes.labels(poem).inc(protocol.size)
        self._seconds.observe(monotonic() - protocol.started)

    def site(self) -> ScrapeSite:
        """Make the web site that serves the metrics at /metrics."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        from poetry.daemon.site import Page, ScrapeSite

        page = Page(partial(generate_latest, self.registry), CONTENT_TYPE_LATEST)
        return ScrapeSite(page, self._clock)


def _poem_size(factory: PoetryFactory) -> float:
    return len(factory.poem or b"")
