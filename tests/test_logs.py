"""Log lines."""

from __future__ import annotations

import io
import json
import math
import sys
import warnings
from typing import Any

import pytest
from twisted.logger import (
    LogBeginner,
    LogEvent,
    Logger,
    LogLevel,
    LogPublisher,
)
from twisted.python.failure import Failure

from poetry import logs
from poetry.logs import (
    FLOOD_LINES,
    FLOOD_SECONDS,
    FORMATS,
    Threshold,
    TransferLog,
    format_json,
    format_text,
    start_logging,
)
from tests.transfers import Log, transferred

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
    monkeypatch.setattr(logs, "globalLogBeginner", beginner)
    start_logging(stream, log_format, "warn")
    logger = Logger("poetry.test", observer=publisher)
    logger.info("not this")
    logger.warn("but this")
    [line] = stream.getvalue().splitlines()
    assert "but this" in line
    assert line.startswith("{") is (log_format == "json")
