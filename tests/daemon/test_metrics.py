"""Metrics of a service, and their page."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from poetry.daemon.metrics import OUTCOMES, Metrics
from poetry.server import PoetryService
from poetry.serving.poems import PoemFactory
from tests.loop import reactor, wait
from tests.transfers import transferred


@pytest.fixture
def service() -> Iterator[PoetryService]:
    """A service of one poem."""
    pytest.importorskip("prometheus_client", reason="needs twisted-poetry[metrics]")
    endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    service = PoetryService([(endpoint, PoemFactory(b"a poem", "poem.txt"))], clock=reactor)
    service.startService()
    yield service
    wait(service.stopService())


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """A sample."""
    found: float | None = metrics.registry.get_sample_value(f"poetry_{name}", labels)
    return found


def test_metrics_count_transfers(service: PoetryService) -> None:
    """Transfers are counted by outcome, and the service's own numbers are read at each scrape."""
    metrics = Metrics(service)
    assert [value(metrics, "poems_total", poem="poem.txt", outcome=each) for each in OUTCOMES] == (
        [0] * len(OUTCOMES)
    )
    assert value(metrics, "bytes_total", poem="poem.txt") == 0
    for whole in (True, True, False):
        transferred(metrics, whole=whole)
    assert value(metrics, "poems_total", poem="poem.txt", outcome="sent") == 2
    assert value(metrics, "poems_total", poem="poem.txt", outcome="truncated") == 1
    assert value(metrics, "bytes_total", poem="poem.txt") == 18
    assert value(metrics, "transfer_seconds_count") == 3
    assert value(metrics, "open_connections") == 0
    assert value(metrics, "poem_size_bytes", poem="poem.txt") == 6
    assert value(metrics, "last_reload_success") == 1
    assert value(metrics, "last_reload_timestamp_seconds") == service.reloaded_at
    assert value(metrics, "waiting_connections") == 0
    assert value(metrics, "max_connections") == service.limit
    assert value(metrics, "build_info", version=version("twisted-poetry")) == 1
    assert metrics.registry.get_sample_value("process_open_fds")


def test_metrics_page(service: PoetryService) -> None:
    """The page is what Prometheus takes, and says so."""
    scrape = Metrics(service).site().buildProtocol(IPv4Address("TCP", "127.0.0.1", 5))
    transport = StringTransport()
    scrape.makeConnection(transport)
    scrape.dataReceived(b"GET /metrics HTTP/1.0\r\n\r\n")
    scrape.connectionLost(Failure(ConnectionDone()))
    head, _, page = transport.value().partition(b"\r\n\r\n")
    assert b"Content-Type: text/plain; version=" in head
    assert b"poetry_max_connections" in page
