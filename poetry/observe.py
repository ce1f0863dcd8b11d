"""What the server tells the world: log lines, metrics, and systemd's notifications."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Any, TextIO

from twisted.internet.tcp import Port
from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    eventAsText,
    formatEvent,
    globalLogBeginner,
)
from twisted.protocols.policies import WrappingFactory
from zope.interface import implementer

from poetry.addresses import peer_address
from poetry.protocol import PoetryFactory, PoetryProtocol

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from poetry.server import PoetryService

METRICS_CONNECTIONS, METRICS_SECONDS = 8, 10.0
"""Scrapes at once, out of `RESERVED_DESCRIPTORS`, and how long each may stay silent."""

FLOOD_LINES, FLOOD_SECONDS = 10, 10.0
"""So many lines of the same trouble are logged in so many seconds; of the rest, their number."""

_LEVELS = {LogLevel.debug: 0, LogLevel.info: 1, LogLevel.warn: 2, LogLevel.error: 3}
_WORST = 4
_NOT_JSON = (float("inf"), float("-inf"))
_SUCCESSES = frozenset({"sent", "received"})
_log = Logger()


# Transfers


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


# Log lines


def format_text(event: LogEvent) -> str:
    """One event for a reader at a terminal; a traceback only for what nobody foresaw."""
    text = eventAsText(event, includeTimestamp=False, includeSystem=False)
    if "log_failure" not in event:
        # A peer may choose a name that looks like another line.
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return f"{_time(event)} {event['log_level'].name:5} {text}\n"


def format_json(event: LogEvent) -> str:
    """One event as one flat JSON object: time, level, event, message, and its own fields."""
    fields = {
        "time": _time(event),
        "level": event["log_level"].name,
        "event": event.get("event", "log"),
        "message": formatEvent(event),
    }
    own = {
        key: str(value) if value in _NOT_JSON else value
        for key, value in event.items()
        if not key.startswith("log_") and isinstance(value, str | int | float)
    }
    fields = {**fields, **{key: own[key] for key in own.keys() - fields.keys()}}
    if "log_failure" in event:
        fields["traceback"] = event["log_failure"].getTraceback()
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _time(event: LogEvent) -> str:
    when = datetime.fromtimestamp(event["log_time"], timezone.utc)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


FORMATS: dict[str, Callable[[LogEvent], str]] = {"text": format_text, "json": format_json}


@implementer(ILogObserver)
class Threshold:
    """Passes on what is at `level` or above; of others' events only warnings and worse.

    A flood of the same trouble is cut to `FLOOD_LINES` in `FLOOD_SECONDS`.
    """

    def __init__(self, observer: ILogObserver, level: str) -> None:
        self._observer = observer
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
        now = event["log_time"]
        since, count = self._seen.get(kind, (now, 0))
        if not 0 <= now - since < FLOOD_SECONDS:
            if count > FLOOD_LINES:
                _log.warn(
                    "{count} more of {kind} were not logged",
                    event="suppressed",
                    kind=kind,
                    count=count - FLOOD_LINES,
                )
            since, count = now, 0
        self._seen[kind] = since, count + 1
        return count >= FLOOD_LINES


def start_logging(stream: TextIO, log_format: str, level: str) -> None:
    """Send the process's log to `stream`, in one of `FORMATS`, from `level` up."""
    observer = FileLogObserver(stream, FORMATS[log_format])
    globalLogBeginner.beginLoggingTo(
        [Threshold(observer, level)], discardBuffer=True, redirectStandardIO=False
    )


# Metrics


class Metrics:
    """Prometheus metrics of a `PoetryService`: an observer of its transfers, and a web resource."""

    def __init__(self, service: PoetryService) -> None:
        """@raise ImportError: without prometheus-client (the extra `metrics`)."""
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry: CollectorRegistry = CollectorRegistry()
        given: dict[str, Any] = {"registry": self.registry}
        self._poems = Counter("poetry_poems", "Transfers, by how they ended.", ["outcome"], **given)
        self._bytes = Counter("poetry_bytes", "Bytes of poems sent or received.", **given)
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
                lambda: sum(map(accept_queue, service.ports)),
            ),
            (
                "last_reload_success",
                "1 where the last reload read all poems, else 0.",
                lambda: service.reloaded_well,
            ),
            (
                "last_reload_timestamp_seconds",
                "When the poems were last read.",
                lambda: service.reloaded_at,
            ),
        ]
        for name, text, value in gauges:
            Gauge(f"poetry_{name}", text, **given).set_function(value)
        sizes = Gauge("poetry_poem_size_bytes", "Size of each poem.", ["poem"], **given)
        for _, factory in service.listeners:
            sizes.labels(factory.name).set_function(partial(_poem_size, factory))
            factory.observers = (*factory.observers, self)

    def __call__(self, protocol: PoetryProtocol) -> None:
        """Be one of a factory's `observers`."""
        self._poems.labels(protocol.outcome).inc()
        self._bytes.inc(protocol.size)
        self._seconds.observe(monotonic() - protocol.started)

    def site(self) -> WrappingFactory:
        """A web site that has them at /metrics, for a few connections at once."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
        from twisted.web.resource import Resource
        from twisted.web.server import Request, Site

        class Page(Resource):
            isLeaf = True

            def render_GET(page, request: Request) -> bytes:
                request.setHeader(b"content-type", CONTENT_TYPE_LATEST.encode())
                return generate_latest(self.registry)

        root = Resource()
        root.putChild(b"metrics", Page())
        return _Few(Site(root, timeout=METRICS_SECONDS))


class _Few(WrappingFactory):
    """Closes more than a few connections: the descriptors are the readers'."""

    noisy = False

    def buildProtocol(self, addr: Any) -> Any:
        if len(self.protocols) >= METRICS_CONNECTIONS:
            return None
        return super().buildProtocol(addr)


def _poem_size(factory: PoetryFactory) -> float:
    return len(factory.poem or b"")


def accept_queue(port: object) -> int:
    """How many connections the kernel holds for a listener (Linux: TCP_INFO's tcpi_unacked)."""
    if not isinstance(port, Port) or port.addressFamily not in (socket.AF_INET, socket.AF_INET6):
        return 0
    if not port.connected or not hasattr(socket, "TCP_INFO"):
        return 0
    info = port.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
    return int(struct.unpack_from("=I", info, 24)[0])


# systemd


def notify(state: str) -> None:
    """Tell systemd, where it asked to be told (sd_notify(3)): READY=1, RELOADING=1, STOPPING=1."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    if state == "RELOADING=1":
        state += f"\nMONOTONIC_USEC={monotonic_ns() // 1000}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
            notifier.connect("\0" + path[1:] if path.startswith("@") else path)
            notifier.sendall(state.encode())
    except OSError as error:
        _log.warn(
            "cannot notify {path}: {reason}", event="notify_failed", path=path, reason=str(error)
        )
