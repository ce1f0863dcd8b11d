"""Log lines, metrics, and systemd's notifications."""

from __future__ import annotations

import io
import json
import math
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import TCP4ServerEndpoint, UNIXServerEndpoint
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import ServerFactory
from twisted.internet.testing import StringTransport
from twisted.logger import (
    ILogObserver,
    LogBeginner,
    LogEvent,
    Logger,
    LogLevel,
    LogPublisher,
    globalLogPublisher,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from poetry import observe
from poetry.observe import (
    FLOOD_LINES,
    FLOOD_SECONDS,
    FORMATS,
    METRICS_CONNECTIONS,
    Metrics,
    Threshold,
    TransferLog,
    accept_queue,
    format_json,
    format_text,
    notify,
    start_logging,
)
from poetry.protocol import PoetryProtocol
from poetry.server import PoemFactory, PoetryService
from tests.loop import reactor, wait


@implementer(ILogObserver)
class Log(list[LogEvent]):
    """The events that were logged."""

    def __call__(self, event: LogEvent) -> None:
        """Keep one."""
        self.append(event)


@pytest.fixture
def log() -> Iterator[Log]:
    """What is logged during the test."""
    events = Log()
    globalLogPublisher.addObserver(events)
    yield events
    globalLogPublisher.removeObserver(events)


def transferred(*observers: Any, whole: bool) -> PoetryProtocol:
    """A transfer of a short poem that has ended, well or not."""
    factory = PoemFactory(b"a poem", "poem.txt")
    factory.listener = "127.0.0.1:10000"
    factory.observers = observers
    protocol = factory.buildProtocol(None)
    assert isinstance(protocol, PoetryProtocol)
    protocol.makeConnection(StringTransport(peerAddress=IPv4Address("TCP", "127.0.0.1", 5)))
    protocol.connectionLost(Failure(ConnectionDone() if whole else ConnectionLost()))
    return protocol


# Transfers


@pytest.mark.parametrize(
    ("level", "whole", "logged"),
    [
        ("debug", True, "info"),
        ("info", True, "info"),
        ("warn", True, None),
        ("info", False, "warn"),
        ("error", False, "warn"),
    ],
)
def test_transfer(log: Log, level: str, *, whole: bool, logged: str | None) -> None:
    """A success is logged at info, unless nobody wants to know, and a failure at warn."""
    transferred(TransferLog(level), whole=whole)
    assert [event["log_level"].name for event in log] == ([logged] if logged else [])
    for event in log:
        assert event["event"] == "transfer"
        assert event["listener"] == "127.0.0.1:10000"
        assert event["peer"] == "127.0.0.1:5"
        text = format_text(event)
        assert (" sent poem.txt 127.0.0.1:5 6 bytes in " in text) is whole
        assert "\n" not in text[:-1]


def test_handshake(log: Log) -> None:
    """A TLS handshake that failed is an event of its own."""
    protocol = transferred(whole=True)
    protocol.outcome = "handshake"
    TransferLog()(protocol)
    assert [event["event"] for event in log] == ["handshake_failed"]


# Log lines


def event_of(level: LogLevel = LogLevel.info, **fields: Any) -> LogEvent:
    """An event of this package, at the beginning of 2020."""
    return {
        "log_time": 1577836800.25,
        "log_level": level,
        "log_namespace": "poetry.server",
        "log_format": "it is {what}",
        "what": "so",
        **fields,
    }


def test_text() -> None:
    """A line of text has the time, the level and the message."""
    assert format_text(event_of()) == "2020-01-01T00:00:00.250Z info  it is so\n"


def test_a_peer_cannot_forge_a_line() -> None:
    """What cannot be printed is escaped in a line of text."""
    assert format_text(event_of(what="a\nb\x1b[0m")).count("\n") == 1
    assert format_text(event_of(what="a\nb\x1b[0m")).endswith("it is a\\nb\\x1b[0m\n")


def test_json() -> None:
    """A JSON object has the event's own fields, of which none hides those that each has."""
    event = event_of(event="test", count=3, message="hidden", thing=object(), ever=math.inf)
    assert json.loads(format_json(event)) == {
        "time": "2020-01-01T00:00:00.250Z",
        "level": "info",
        "event": "test",
        "message": "it is so",
        "what": "so",
        "count": 3,
        "ever": "inf",
    }
    assert json.loads(format_json(event_of()))["event"] == "log"


def test_a_failure_has_its_traceback() -> None:
    """What nobody foresaw is logged with its traceback, in both formats."""
    try:
        raise RuntimeError("nobody foresaw it")
    except RuntimeError:
        event = event_of(LogLevel.critical, log_failure=Failure())
    assert "RuntimeError: nobody foresaw it" in json.loads(format_json(event))["traceback"]
    assert "RuntimeError: nobody foresaw it" in format_text(event)


@pytest.mark.parametrize(
    ("threshold", "own", "foreign"),
    [
        ("debug", ["debug", "info", "warn", "error", "critical"], ["debug", "info"]),
        ("info", ["info", "warn", "error", "critical"], []),
        ("warn", ["warn", "error", "critical"], []),
        ("error", ["error", "critical"], []),
    ],
)
def test_threshold(threshold: str, own: list[str], foreign: list[str]) -> None:
    """Our events pass from the level up, and others' below a warning only to debug."""
    log = Log()
    observer = Threshold(log, threshold)
    for level in LogLevel.iterconstants():
        observer(event_of(level))
    assert [event["log_level"].name for event in log] == own
    log.clear()
    for level in (LogLevel.debug, LogLevel.info):
        observer(event_of(level, log_namespace="twisted.web"))
    assert [event["log_level"].name for event in log] == foreign


def test_a_flood(log: Log) -> None:
    """Of a flood of the same trouble some lines pass, and later its number; the rest is as ever."""
    passed = Log()
    observer = Threshold(passed, "info")

    def trouble(seconds: float, **fields: Any) -> None:
        observer(event_of(LogLevel.warn, log_time=1000 + seconds, event="trouble", **fields))

    for _ in range(FLOOD_LINES + 5):
        trouble(0)
    assert len(passed) == FLOOD_LINES
    trouble(0, outcome="another")
    observer(event_of(LogLevel.info, event="trouble"))
    assert len(passed) == FLOOD_LINES + 2
    assert not log
    trouble(FLOOD_SECONDS)
    assert len(passed) == FLOOD_LINES + 3
    assert [(event["event"], event["count"]) for event in log] == [("suppressed", 5)]
    trouble(3 * FLOOD_SECONDS)
    assert len(log) == 1


@pytest.mark.parametrize("log_format", FORMATS)
def test_start_logging(monkeypatch: pytest.MonkeyPatch, log_format: str) -> None:
    """The process's log goes to the stream, in the format and from the level asked for."""
    publisher, stream = LogPublisher(), io.StringIO()
    beginner = LogBeginner(publisher, io.StringIO(), sys, warnings)
    monkeypatch.setattr(observe, "globalLogBeginner", beginner)
    start_logging(stream, log_format, "warn")
    logger = Logger("poetry.test", observer=publisher)
    logger.info("not this")
    logger.warn("but this")
    [line] = stream.getvalue().splitlines()
    assert "but this" in line
    assert line.startswith("{") is (log_format == "json")


# Metrics


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


def test_metrics(service: PoetryService) -> None:
    """Transfers are counted by outcome, and the service's own numbers are read when asked for."""
    metrics = Metrics(service)
    for whole in (True, True, False):
        transferred(metrics, whole=whole)
    assert value(metrics, "poems_total", outcome="sent") == 2
    assert value(metrics, "poems_total", outcome="truncated") == 1
    assert value(metrics, "bytes_total") == 18
    assert value(metrics, "transfer_seconds_count") == 3
    assert value(metrics, "open_connections") == 0
    assert value(metrics, "poem_size_bytes", poem="poem.txt") == 6
    assert value(metrics, "last_reload_success") == 1
    assert value(metrics, "last_reload_timestamp_seconds") == service.reloaded_at
    assert value(metrics, "waiting_connections") == 0
    assert value(metrics, "max_connections") == service.limit


def test_metrics_page(service: PoetryService) -> None:
    """The page is at /metrics, and a connection too many is closed."""
    site = Metrics(service).site()
    transports = [StringTransport() for _ in range(METRICS_CONNECTIONS)]
    for transport in transports:
        protocol = site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 5))
        protocol.makeConnection(transport)
    assert site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 5)) is None
    protocol.dataReceived(b"GET /metrics HTTP/1.0\r\n\r\n")
    assert b"poetry_max_connections" in transports[-1].value()
    for each in list(site.protocols):
        each.connectionLost(Failure(ConnectionDone()))
    assert site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 5)) is not None


def test_accept_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells how many wait to be accepted, where it can be asked."""
    tcp = wait(TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(ServerFactory()))
    unix = wait(UNIXServerEndpoint(reactor, str(tmp_path / "poem")).listen(ServerFactory()))
    tcp.pauseProducing()
    address = tcp.getHost()
    with socket.create_connection((address.host, address.port)):
        assert accept_queue(tcp) == 1
        assert accept_queue(unix) == 0
        assert accept_queue(object()) == 0
        with monkeypatch.context() as patched:
            patched.delattr(socket, "TCP_INFO")
            assert accept_queue(tcp) == 0
    for port in (tcp, unix):
        wait(port.stopListening())
    assert accept_queue(tcp) == 0


# systemd


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, abstract: bool) -> None:
    """systemd is told where it listens, and since when a reload lasts."""
    name = f"@poetry-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(30)
        systemd.bind(name.replace("@", "\0"))
        notify("READY=1")
        assert systemd.recv(100) == b"READY=1"
        notify("RELOADING=1")
        first, second = systemd.recv(100).decode().split("\n")
        assert first == "RELOADING=1"
        assert int(second.removeprefix("MONOTONIC_USEC=")) > 0


def test_nobody_to_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    """Without systemd nothing is told; a socket that is gone is logged, and no more."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    assert not log
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")
    assert [event["event"] for event in log] == ["notify_failed"]
