"""Log lines: one for each transfer, as text or JSON, and floods cut short."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from time import monotonic, time
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
from zope.interface import implementer

from poetry.addresses import peer_address
from poetry.protocol import PoetryProtocol
from poetry.system.streams import LossyStream

FLOOD_LINES, FLOOD_SECONDS = 10, 10.0
"""So many lines of the same trouble are logged in so many seconds; of the rest, their number."""

ROOM_SECONDS = 1.0
"""How often a log that nobody reads is tried again."""

_LEVELS = {LogLevel.debug: 0, LogLevel.info: 1, LogLevel.warn: 2, LogLevel.error: 3}
_WORST = 4
_JSON = (str, int, float)
_NOT_JSON = (float("inf"), float("-inf"))
_to_json = json.JSONEncoder(ensure_ascii=False).encode
_SUCCESSES = frozenset({"sent", "received"})
_log = Logger()


class TransferLog:
    """Logs a line for each transfer: success at info, failure at warn."""

    def __init__(self, level: str = "info") -> None:
        """@param level: below this nothing is logged, and hardly anything spent on it."""
        self._successes = level in ("debug", "info")

    def __call__(self, protocol: PoetryProtocol) -> None:
        """Be one of a factory's `observers`."""
        success = protocol.outcome in _SUCCESSES
        if success and not self._successes:
            return
        factory = protocol.factory
        fields = {
            "event": "transfer" if protocol.outcome != "handshake" else "handshake_failed",
            "listener": getattr(factory, "listener", ""),
            "poem": factory.name,
            "peer": peer_address(protocol.transport),
            "bytes": protocol.size,
            "seconds": round(monotonic() - protocol.started, 6),
            "outcome": protocol.outcome,
        }
        if success:
            _log.info("{outcome} {poem} {peer} {bytes} bytes in {seconds} s", **fields)
        else:
            _log.warn(
                "{outcome} {poem} {peer} {bytes} bytes in {seconds} s: {reason}",
                reason=_one_line(protocol.error),
                **fields,
            )


def _one_line(value: object) -> str:
    return " ".join(str(value).split())


def format_text(event: LogEvent) -> str:
    """One event for a reader at a terminal; a traceback only for what nobody foresaw."""
    if "log_failure" in event:
        text = eventAsText(event, includeTimestamp=False, includeSystem=False)
    elif not (text := _message(event)).isprintable():
        # A peer may choose a name that looks like another line.
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return f"{_time(event)} {event['log_level'].name:5} {text}\n"


def format_json(event: LogEvent) -> str:
    """One event as one flat JSON object: time, level, event, message, and its own fields."""
    fields = {
        "time": _time(event),
        "level": event["log_level"].name,
        "event": event.get("event", "log"),
        "message": _message(event),
    }
    own = {
        key: str(value) if value in _NOT_JSON else value
        for key, value in event.items()
        if isinstance(value, _JSON) and not key.startswith("log_")
    }
    fields = {**fields, **{key: own[key] for key in own.keys() - fields.keys()}}
    if "log_failure" in event:
        fields["traceback"] = event["log_failure"].getTraceback()
    return _to_json(fields) + "\n"


def error_line(message: str) -> str:
    """What keeps a server from starting, as one flat JSON object."""
    return format_json(
        {
            "log_time": time(),
            "log_level": LogLevel.error,
            "log_namespace": __name__,
            "log_format": "{reason}",
            "event": "start_failed",
            "reason": message,
        }
    )


def _message(event: LogEvent) -> str:
    """What an event says. Ours need nothing but `str.format`; Twisted's way takes 8 us more."""
    if str(event.get("log_namespace", "")).startswith("poetry.") and "log_format" in event:
        return str(event["log_format"]).format_map(event)
    return formatEvent(event)


def _time(event: LogEvent) -> str:
    when = datetime.fromtimestamp(event["log_time"], timezone.utc)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


FORMATS: dict[str, Callable[[LogEvent], str]] = {"text": format_text, "json": format_json}


@implementer(ILogObserver)
class Threshold:
    """Passes on what is at `level` or above; of others' events only warnings and worse.

    A flood of the same trouble is cut to `FLOOD_LINES` in `FLOOD_SECONDS`, and its rest counted.
    """

    def __init__(self, observer: ILogObserver, level: str, clock: Any) -> None:
        """@param clock: an IReactorTime."""
        self._observer = observer
        self._clock = clock
        self._level = _LEVELS[LogLevel.levelWithName(level)]
        self._foreign = self._level if level == "debug" else max(self._level, 2)
        self._seen: dict[str, tuple[float, int]] = {}

    def __call__(self, event: LogEvent) -> None:
        """Be an ILogObserver."""
        level = _LEVELS.get(event["log_level"], _WORST)
        own = str(event.get("log_namespace", "")).startswith("poetry")
        if level < (self._level if own else self._foreign):
            return
        if level >= _LEVELS[LogLevel.warn] and self._is_flood(event):
            return
        self._observer(event)

    def _is_flood(self, event: LogEvent) -> bool:
        name = event.get("event") or event.get("log_format") or event.get("format")
        kind = f"{name} {event.get('outcome', '')}".rstrip()
        now: float = self._clock.seconds()
        since, count = self._seen.get(kind, (now, 0))
        if count <= FLOOD_LINES and now - since >= FLOOD_SECONDS:
            since, count = now, 0
        self._seen[kind] = since, count + 1
        if count == FLOOD_LINES:
            self._clock.callLater(since + FLOOD_SECONDS - now, self.tell, kind)
        return count >= FLOOD_LINES

    def tell(self, kind: str) -> None:
        """Say how many lines of a flood were not logged, if any: when its time is over."""
        _, count = self._seen.pop(kind, (0.0, 0))
        if count > FLOOD_LINES:
            _log.warn(
                "{count} more of {kind} were not logged",
                event="suppressed",
                kind=kind,
                count=count - FLOOD_LINES,
            )

    def tell_all(self) -> None:
        """Say it of all floods: there is no later."""
        for kind in list(self._seen):
            self.tell(kind)


@implementer(ILogObserver)
class LogWriter:
    """Writes events to a stream, and says how many lines were lost where nobody read it."""

    def __init__(self, stream: LossyStream, log_format: str, clock: Any) -> None:
        """@param log_format: one of `FORMATS`.

        @param clock: an IReactorTime.
        """
        self._stream = stream
        self._format = FORMATS[log_format]
        self._clock = clock
        self._telling: Any = None

    def __call__(self, event: LogEvent) -> None:
        """Be an ILogObserver."""
        self._stream.write(self._format(event))
        if self._stream.dropped and self._telling is None:
            self._telling = self._clock.callLater(ROOM_SECONDS, self._tell)

    def _tell(self) -> None:
        self._telling = None
        lost, self._stream.dropped = self._stream.dropped, 0
        _log.warn("{count} log lines were lost: nobody read them", event="lines_lost", count=lost)
        if self._stream.dropped:  # nor this one
            self._stream.dropped = lost


def start_logging(stream: TextIO | None, log_format: str, level: str, reactor: Any) -> None:
    """Send the process's log to `stream`, in one of `FORMATS`, from `level` up."""
    observers: list[Threshold] = []
    if stream is not None:
        writer = LogWriter(LossyStream(stream.fileno()), log_format, reactor)
        observers.append(Threshold(writer, level, reactor))
        reactor.addSystemEventTrigger("after", "shutdown", observers[0].tell_all)
    globalLogBeginner.beginLoggingTo(observers, discardBuffer=True, redirectStandardIO=False)
