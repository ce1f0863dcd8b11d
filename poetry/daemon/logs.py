"""Logs as text or JSON: a line for each transfer; floods of the same warning are cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from time import gmtime, monotonic, strftime, time
from typing import Any, TextIO

from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    eventAsText,
    formatEvent,
    globalLogBeginner,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from poetry.addresses import peer_address
from poetry.protocol import PoetryProtocol
from poetry.system.streams import LossyStream
from poetry.text import one_line, printable, text_of

FLOOD_LINES, FLOOD_SECONDS = 10, 10.0
"""Most warnings of one kind in so many seconds; of the rest only the number is logged."""

LOST_LINES_SECONDS = 1.0
"""Seconds between two attempts to log how many lines were lost."""

_LEVELS = {LogLevel.debug: 0, LogLevel.info: 1, LogLevel.warn: 2, LogLevel.error: 3}
_WARN, _WORST = 2, 4
_JSON = (str, int, float)
_NOT_JSON = (float("inf"), float("-inf"))
_to_json = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode
_SUCCESSES = frozenset({"sent", "received"})
_SUCCESS = "{outcome} {poem} {peer} {bytes} bytes in {seconds} s"
_FAILURE = _SUCCESS + ": {reason}"
_log = Logger()


class TransferLog:
    """Logs a line for each transfer: success at info, failure at warn."""

    def __init__(self, level: str = "info") -> None:
        """@param level: of the log; events below it are not created."""
        self._successes = level in ("debug", "info")

    def __call__(self, protocol: PoetryProtocol) -> None:
        """Log how a transfer ended, as one of a factory's `observers`."""
        level, text, reason = LogLevel.info, _SUCCESS, {}
        if protocol.outcome not in _SUCCESSES:
            level, text = LogLevel.warn, _FAILURE
            reason = {"reason": one_line(text_of(protocol.error))}
        elif not self._successes:
            return
        factory = protocol.factory
        _log.emit(
            level,
            text,
            event="transfer" if protocol.outcome != "handshake" else "handshake_failed",
            listener=getattr(factory, "listener", ""),
            poem=factory.name,
            peer=peer_address(protocol.transport),
            bytes=protocol.size,
            seconds=round(monotonic() - protocol.started, 6),
            outcome=protocol.outcome,
            **reason,
        )


def format_text(event: LogEvent) -> str:
    """Format an event as a line of text; a failure has its traceback below it."""
    if "log_failure" in event:
        text = eventAsText(event, includeTimestamp=False, includeSystem=False)
    else:  # a name that a peer chooses may contain what looks like another line
        text = printable(_message(event))
    return f"{_time(event)} {event['log_level'].name:5} {text}\n"


def format_json(event: LogEvent) -> str:
    """Format an event as one flat JSON object: time, level, event, message, and its own fields."""
    fields = {
        "time": _time(event),
        "level": event["log_level"].name,
        "event": event.get("event", "log"),
        "message": _message(event),
    }
    for key, value in event.items():
        if isinstance(value, _JSON) and key[:4] != "log_" and key not in fields:
            fields[key] = value if value not in _NOT_JSON else str(value)
    if "log_failure" in event:
        fields["traceback"] = event["log_failure"].getTraceback()
    return _to_json(fields) + "\n"


def error_line(message: str) -> str:
    """Format the reason why a server cannot start, as one flat JSON object."""
    return format_json(
        {
            "log_time": time(),
            "log_level": LogLevel.error,
            "log_namespace": __name__,
            "log_format": "{reason}",
            "event": "start_failed",
            "reason": one_line(message),
        }
    )


def _message(event: LogEvent) -> str:
    """Format an event's message: ours by `str.format` alone, as `formatEvent` takes 8 us more."""
    if str(event.get("log_namespace")).startswith("poetry.") and "log_format" in event:
        return event["log_format"].format_map(event)  # type: ignore[no-any-return]
    return formatEvent(event)


def _time(event: LogEvent) -> str:
    """Format an event's time, in UTC and to the millisecond (RFC 3339)."""
    when = event["log_time"]
    second = int(when)
    return f"{_second(second)}.{int((when - second) * 1000):03d}Z"


@lru_cache(maxsize=2)
def _second(second: int) -> str:
    """Format a second since the epoch, once for all lines of that second."""
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))


FORMATS: dict[str, Callable[[LogEvent], str]] = {"text": format_text, "json": format_json}


@implementer(ILogObserver)
class Threshold:
    """A filter that passes our events from `level` up, and of others only warnings and worse.

    At level `debug` all events of others pass, those below a warning as `debug`. Twisted's own
    filter (LogLevelFilterPredicate) takes 0.9 us an event, this one 0.2 (measured).

    Of warnings of one kind `FLOOD_LINES` in `FLOOD_SECONDS` pass; the rest is counted.
    """

    def __init__(self, observer: ILogObserver, level: str, clock: Any) -> None:
        """@param observer: is called with each event that passes.

        @param clock: an IReactorTime.
        """
        self._observer = observer
        self._clock = clock
        self._level = _LEVELS[LogLevel.levelWithName(level)]
        self._seen: dict[str, tuple[float, int]] = {}

    def __call__(self, event: LogEvent) -> None:
        """Pass an event on, or drop it."""
        level = _LEVELS.get(event["log_level"], _WORST)
        if level < _WARN and not str(event.get("log_namespace", "")).startswith("poetry"):
            level = _LEVELS[LogLevel.debug]
            event = {**event, "log_level": LogLevel.debug}
        if level < self._level:
            return
        if level >= _WARN and self._is_flood(flood_kind(event)):
            return
        self._observer(event)

    def _is_flood(self, kind: str) -> bool:
        now: float = self._clock.seconds()
        since, count = self._seen.get(kind, (now, 0))
        if count <= FLOOD_LINES and now - since >= FLOOD_SECONDS:
            since, count = now, 0
        self._seen[kind] = since, count + 1
        if count == FLOOD_LINES:
            self._clock.callLater(since + FLOOD_SECONDS - now, self._log_dropped, kind)
        return count >= FLOOD_LINES

    def _log_dropped(self, kind: str) -> None:
        """Log how many events of a kind were dropped, if any, and count anew."""
        _, count = self._seen.pop(kind, (0.0, 0))
        if count > FLOOD_LINES:
            _log.warn(
                "{count} more of {kind} were not logged",
                event="suppressed",
                kind=kind,
                count=count - FLOOD_LINES,
            )

    def log_all_dropped(self) -> None:
        """Log how many events of each kind were dropped, at the end of the process."""
        for kind in list(self._seen):
            self._log_dropped(kind)


def flood_kind(event: LogEvent) -> str:
    """Return the kind of a warning or an error, by which floods are counted.

    Kinds are kept in memory, so nothing that a peer chooses may be part of one. The kind of a
    failure is its type and function, as the events of all failures have the same format.
    """
    failure = event.get("log_failure") or event.get("failure")  # "failure": of twisted.python.log
    if isinstance(failure, Failure) and failure.type is not None:
        where = f" in {failure.frames[-1][0]}" if failure.frames else ""
        return f"{failure.type.__name__}{where}"
    name = event.get("event") or event.get("log_format") or event.get("format")
    return f"{name} {event.get('outcome', '')}".rstrip()


@implementer(ILogObserver)
class LogWriter:
    """Writes events to a stream, and logs how many lines were lost, and why."""

    def __init__(self, stream: LossyStream, log_format: str, clock: Any) -> None:
        """@param log_format: one of `FORMATS`.

        @param clock: an IReactorTime.
        """
        self._stream = stream
        self._format = FORMATS[log_format]
        self._clock = clock
        self._timer: Any = None

    def __call__(self, event: LogEvent) -> None:
        """Write an event."""
        self._stream.write(self._format(event))
        if self._stream.dropped and self._timer is None:
            self._timer = self._clock.callLater(LOST_LINES_SECONDS, self.log_lost)

    def log_lost(self) -> None:
        """Log how many lines were lost, if any."""
        if self._timer is None:
            return
        if self._timer.active():  # it is the end of the process
            self._timer.cancel()
        self._timer = None
        lost, self._stream.dropped = self._stream.dropped, 0
        error, self._stream.error = self._stream.error, None
        _log.warn(
            "{count} log lines were lost: {reason}",
            event="lines_lost",
            count=lost,
            reason="nobody read them" if error is None else error.strerror,
        )
        if self._stream.dropped:  # and this line with them
            self._stream.dropped = lost


def start_logging(stream: TextIO | None, log_format: str, level: str, reactor: Any) -> None:
    """Write the log of the process to a stream, from `level` up.

    @param stream: None: it is closed, and nothing is logged.
    @param log_format: one of `FORMATS`.
    """
    observers: list[Threshold] = []
    if stream is not None:
        writer = LogWriter(LossyStream(stream.fileno()), log_format, reactor)
        observers.append(Threshold(writer, level, reactor))
        reactor.addSystemEventTrigger("after", "shutdown", observers[0].log_all_dropped)
        reactor.addSystemEventTrigger("after", "shutdown", writer.log_lost)
    globalLogBeginner.beginLoggingTo(observers, discardBuffer=True, redirectStandardIO=False)
