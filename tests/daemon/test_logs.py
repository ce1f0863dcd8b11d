"""Log lines."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import (
    LogBeginner,
    LogEvent,
    Logger,
    LogLevel,
    LogPublisher,
)
from twisted.python.failure import Failure
from twisted.python.log import LogPublisher as LegacyPublisher

from poetry.daemon import logs
from poetry.daemon.logs import (
    FLOOD_LINES,
    FLOOD_SECONDS,
    FORMATS,
    LOST_LINES_SECONDS,
    LogWriter,
    Threshold,
    TransferLog,
    error_line,
    format_json,
    format_text,
    start_logging,
)
from poetry.system.streams import LossyStream
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
def test_transfer_is_logged_by_its_outcome(
    log: Log, level: str, *, whole: bool, logged: str | None
) -> None:
    """A success is logged at info, if at all, and a failure at warn."""
    transferred(TransferLog(level), whole=whole)
    assert [event["log_level"].name for event in log] == ([logged] if logged else [])
    for event in log:
        assert event["event"] == "transfer"
        assert event["listener"] == "127.0.0.1:10000"
        assert event["peer"] == "127.0.0.1:5"
        text = format_text(event)
        assert (" sent poem.txt 127.0.0.1:5 6 bytes in " in text) is whole
        assert "\n" not in text[:-1]


def test_failed_handshake_is_an_event(log: Log) -> None:
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


def test_text_line_has_time_level_and_message() -> None:
    """A line of text has the time, the level and the message."""
    assert format_text(event_of()) == "2020-01-01T00:00:00.250Z info  it is so\n"


def test_unprintable_characters_are_escaped() -> None:
    """No peer can forge a line: unprintable characters are escaped in text."""
    assert format_text(event_of(what="a\nb\x1b[0m")).count("\n") == 1
    assert format_text(event_of(what="a\nb\x1b[0m")).endswith("it is a\\nb\\x1b[0m\n")


def test_json_object_has_the_events_fields() -> None:
    """An object has the event's own fields, of which none hides those of every event."""
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


def test_failed_start_is_a_json_object() -> None:
    """The error that keeps a server from starting is an object like the lines of a log."""
    line = json.loads(error_line("no {braces} are read"))
    assert (line["level"], line["event"]) == ("error", "start_failed")
    assert line["message"] == line["reason"] == "no {braces} are read"


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS.keys())
def test_foreign_formats_are_rendered(write: Callable[[LogEvent], str]) -> None:
    """Events of other packages may have any format of Twisted's, or none."""
    theirs = event_of(log_namespace="twisted.web", log_format="{call()}", call=lambda: "called")
    assert "called" in write(theirs)
    empty = event_of()
    del empty["log_format"]
    assert "so" not in write({**empty, "what": ""})


def test_failure_has_its_traceback() -> None:
    """An unexpected error is logged with its traceback, in both formats."""
    try:
        raise RuntimeError("nobody foresaw it")
    except RuntimeError:
        event = event_of(LogLevel.critical, log_failure=Failure())
    assert "RuntimeError: nobody foresaw it" in json.loads(format_json(event))["traceback"]
    assert "RuntimeError: nobody foresaw it" in format_text(event)


@pytest.mark.parametrize(
    ("threshold", "own", "foreign"),
    [
        ("debug", ["debug", "info", "warn", "error", "critical"], ["debug", "debug"]),
        ("info", ["info", "warn", "error", "critical"], []),
        ("warn", ["warn", "error", "critical"], []),
        ("error", ["error", "critical"], []),
    ],
)
def test_level_filters_events(threshold: str, own: list[str], foreign: list[str]) -> None:
    """Our events pass from the level up, and others' below a warning only as debug."""
    log = Log()
    observer = Threshold(log, threshold, Clock())
    for level in LogLevel.iterconstants():
        observer(event_of(level))
    assert [event["log_level"].name for event in log] == own
    log.clear()
    for level in (LogLevel.debug, LogLevel.info):
        observer(event_of(level, log_namespace="twisted.web"))
    assert [event["log_level"].name for event in log] == foreign


def test_flood_is_summarized(log: Log) -> None:
    """Of many equal events some lines pass, and later their number; other events pass as before."""
    passed, clock = Log(), Clock()
    observer = Threshold(passed, "info", clock)

    def trouble(**fields: Any) -> None:
        observer(event_of(LogLevel.warn, event="trouble", **fields))

    for _ in range(FLOOD_LINES + 5):
        trouble()
    assert len(passed) == FLOOD_LINES
    trouble(outcome="another")
    observer(event_of(LogLevel.info, event="trouble"))
    assert len(passed) == FLOOD_LINES + 2
    assert not log
    clock.advance(FLOOD_SECONDS)
    assert [(event["event"], event["count"]) for event in log] == [("suppressed", 5)]
    trouble()
    assert len(passed) == FLOOD_LINES + 3
    clock.advance(3 * FLOOD_SECONDS)
    trouble()
    assert (len(log), len(passed)) == (1, FLOOD_LINES + 4)
    assert not clock.getDelayedCalls()


def raised(error: Exception) -> Failure:
    try:
        raise error
    except Exception:
        return Failure()


def test_foreign_floods_are_told_apart(log: Log) -> None:
    """Errors of other packages are told apart by their kind, although they share one format."""
    passed, clock = Log(), Clock()
    legacy = LegacyPublisher(publishPublisher=LogPublisher(Threshold(passed, "info", clock)))
    for error in (KeyError("a peer's words"), KeyError("others"), OSError()):
        for _ in range(FLOOD_LINES):
            failure = raised(error)
            legacy.msg(failure=failure, why="it failed", isError=1)
    assert len(passed) == 2 * FLOOD_LINES
    legacy.msg(failure=Failure(OSError()), why="it was never raised", isError=1)
    legacy.msg("an error without a failure", isError=1)
    assert len(passed) == 2 * FLOOD_LINES + 2
    clock.advance(FLOOD_SECONDS)
    [event] = log
    assert (event["kind"], event["count"]) == ("KeyError in raised", FLOOD_LINES)


def test_nothing_suppressed_is_no_summary(log: Log) -> None:
    """Where all events were logged there is no summary."""
    clock = Clock()
    observer = Threshold(Log(), "info", clock)
    for _ in range(FLOOD_LINES + 1):
        observer(event_of(LogLevel.warn, event="trouble"))
    observer.log_all_dropped()
    assert [event["count"] for event in log] == [1]
    for _ in range(FLOOD_LINES):
        observer(event_of(LogLevel.warn, event="trouble"))
    observer.log_all_dropped()
    assert len(log) == 1


def read(descriptor: int) -> str:
    """All that is in a pipe."""
    parts = []
    with suppress(BlockingIOError):
        while part := os.read(descriptor, 1 << 20):
            parts.append(part)
    return b"".join(parts).decode()


@pytest.mark.parametrize("log_format", FORMATS)
def test_lost_lines_are_counted(
    pipe: tuple[int, int], log_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines without room are dropped whole, and their count is written once there is room."""
    reading, writing = pipe
    clock = Clock()
    writer = LogWriter(LossyStream(writing), log_format, clock)
    monkeypatch.setattr(logs, "_log", Logger("poetry.daemon.logs", observer=writer))
    for number in range(2000):
        writer(event_of(what=f"number {number} " + 500 * "x"))
    clock.advance(LOST_LINES_SECONDS)
    clock.advance(LOST_LINES_SECONDS)
    lines = read(reading).splitlines()
    written = len(lines)
    assert 0 < written < 2000
    clock.advance(LOST_LINES_SECONDS)
    lines += read(reading).splitlines()
    numbers = [line for line in lines if "number" in line]
    assert all("x" * 500 in line for line in numbers)
    assert f"{2000 - len(numbers)} log lines were lost: nobody read them" in lines[-1]
    assert not clock.getDelayedCalls()
    writer(event_of())
    assert "it is so" in read(reading)


def test_lost_lines_are_counted_at_the_end(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends before the next report counts the lines that it lost until then."""
    reading, writing = pipe
    clock = Clock()
    writer = LogWriter(LossyStream(writing), "text", clock)
    monkeypatch.setattr(logs, "_log", Logger("poetry.daemon.logs", observer=writer))
    writer.log_lost()
    for number in range(2000):
        writer(event_of(what=f"number {number} " + 500 * "x"))
    written = read(reading).count("number")
    writer.log_lost()
    assert f"{2000 - written} log lines were lost" in read(reading)
    assert not clock.getDelayedCalls()


def test_lost_lines_blame_what_lost_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is not taken for a reader that sleeps, and not for what comes later."""
    clock, said = Clock(), Log()
    with Path("/dev/full").open("wb") as full:
        stream = LossyStream(full.fileno())
        writer = LogWriter(stream, "text", clock)
        monkeypatch.setattr(logs, "_log", Logger("poetry.daemon.logs", observer=said))
        writer(event_of(what="lost"))
        clock.advance(LOST_LINES_SECONDS)
        assert (said[0]["reason"], stream.error) == ("No space left on device", None)
        stream.close()


@pytest.mark.parametrize("log_format", FORMATS)
def test_log_goes_to_the_stream(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log: Log, log_format: str
) -> None:
    """The process's log goes to the stream, in the given format and from the given level."""
    publisher, reactor = LogPublisher(), MemoryReactorClock()
    beginner = LogBeginner(publisher, io.StringIO(), sys, warnings)
    monkeypatch.setattr(logs, "globalLogBeginner", beginner)
    path = tmp_path / "log"
    with path.open("w", encoding="utf-8") as stream:
        start_logging(stream, log_format, "warn", reactor)
    logger = Logger("poetry.test", observer=publisher)
    logger.info("not this")
    for _ in range(FLOOD_LINES + 2):
        logger.warn("but this")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == FLOOD_LINES
    assert "but this" in lines[0]
    assert lines[0].startswith("{") is (log_format == "json")
    for at_the_end, _, _ in reactor.triggers["after"]["shutdown"]:
        at_the_end()
    assert [event["event"] for event in log] == ["suppressed"]


def test_closed_standard_error_takes_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where standard error is closed, the log goes nowhere."""
    publisher, reactor = LogPublisher(), MemoryReactorClock()
    beginner = LogBeginner(publisher, io.StringIO(), sys, warnings)
    monkeypatch.setattr(logs, "globalLogBeginner", beginner)
    start_logging(None, "text", "info", reactor)
    Logger("poetry.test", observer=publisher).warn("to nobody")
