"""PoetryService: listen, hold the limit, sweep, drain, reload."""

from __future__ import annotations

import resource
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import time
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.task import LoopingCall
from twisted.internet.tcp import Port
from twisted.logger import Logger
from twisted.python.failure import Failure

from poetry.addresses import listening_address
from poetry.errors import EmptyPoem
from poetry.protocol import PoetryProtocol, PoetryServerFactory

LINGER = 30.0
"""Seconds that a reader which has everything may keep the connection (nginx's lingering_time)."""

CROWDED_LINGER = 2.0
"""The same while others wait for a place."""

RESERVED_DESCRIPTORS = 48
"""Descriptors kept back from readers: standard streams, the reactor's, files, metrics."""

_log = Logger()


class PoemFactory(PoetryServerFactory):
    """A poem as it is served: with a name, and with what logs, reloading and pacing need.

    @ivar name: what logs and metrics call the poem.
    @ivar path: the file to read again on `PoetryService.reload`; None: there is none.
    @ivar address: where it is to be served, as text.
    @ivar listener: where it is served, once it is.
    @ivar num_bytes, delay: of the slow server, bytes at a time and seconds between them.
    """

    listener = ""
    num_bytes = 0
    delay = 0.0
    clock: Any = None

    def __init__(self, poem: bytes, name: str, path: Path | None = None, address: str = "") -> None:
        super().__init__(poem)
        self.name = name
        self.path = path
        self.address = address


class SlowPoetryProtocol(PoetryProtocol):
    """The slow poetry server: its factory's `num_bytes` at a time, `delay` seconds apart."""

    factory: Any
    _timer: Any = None

    def startSending(self) -> None:
        """Begin at once, as a push producer: a reader that lags behind pauses it."""
        self.produce(streaming=True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        """Hand over a few bytes, and some more after the delay."""
        self._timer = None
        self.handOver(self.factory.num_bytes)
        if not self.finished and self.outcome is None:
            self._timer = self.factory.clock.callLater(self.factory.delay, self.resumeProducing)

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def sweep(self, now: float, idle: float, linger: float) -> None:
        """A reader that has taken all so far waits for us."""
        if self._timer is not None and not self._queued():
            self._mark = None
        else:
            super().sweep(now, idle, linger)

    def stopProducing(self) -> None:
        """The transport is going."""
        self.pauseProducing()
        super().stopProducing()


class PoetryService(Service):
    """Serves poems within limits, and ends each transfer in a way that its reader can tell.

    @ivar others: what is served beside the poems and does not count: metrics.
    @ivar ports: the `IListeningPort` of each listener, then of each of the others, once started.
    @ivar addresses: as `poetry get` takes them, in the same order.
    @ivar connections: the live connections of all listeners.
    @ivar waiting: whether the limit is reached, so that the kernel's queue holds new readers.
    @ivar limit: most connections at once, once started.
    @ivar reloaded_at: when the poems were last read, in seconds since the epoch.
    @ivar reloaded_well: whether all of them could be.
    """

    def __init__(
        self,
        listeners: Sequence[tuple[IStreamServerEndpoint, PoetryServerFactory]],
        *,
        max_connections: int | None = None,
        idle_timeout: float = 60.0,
        grace: float = 30.0,
        clock: Any = None,
    ) -> None:
        """@param listeners: where to listen, and what to send there.

        @param max_connections: most connections at once; None, or more than that: what the
            descriptor limit (RLIMIT_NOFILE, raised to its hard value) allows.
        @param idle_timeout: seconds without progress after which a peer is reset.
        @param grace: seconds that a stop waits for readers in flight.
        @param clock: an IReactorTime; None: the global reactor.
        @raise ValueError: where a limit makes no sense.
        """
        if max_connections is not None and max_connections < 1:
            raise ValueError(f"max_connections has to be at least 1, not {max_connections}")
        if not idle_timeout > 0:
            raise ValueError(f"idle_timeout has to be more than 0 s, not {idle_timeout:g}")
        if not grace >= 0:
            raise ValueError(f"grace has to be at least 0 s, not {grace:g}")
        self.listeners = list(listeners)
        self.max_connections = max_connections
        self.idle_timeout = idle_timeout
        self.grace = grace
        self.others: list[tuple[IStreamServerEndpoint, Any]] = []
        self.ports: list[IListeningPort] = []
        self.addresses: list[str] = []
        self.connections: set[PoetryProtocol] = set()
        self.waiting = False
        self._waited = False
        self._stopping: Deferred[None] | None = None
        if clock is None:
            from twisted.internet import reactor as clock
        self.clock = clock
        self._sweeper = LoopingCall(self._sweep)
        self._interval = min(1.0, idle_timeout / 4)
        self._now = 0.0
        self.reloaded_at = time()
        self.reloaded_well = True
        for _, factory in self.listeners:
            factory.connections = self.connections
            factory.observers = (*factory.observers, self._connectionEnded)

    # Listening, and the limit

    def privilegedStartService(self) -> None:
        """Listen while ports below 1024 can still be had.

        @raise CannotListenError: for the first address that is taken or not ours.
        """
        self.limit = connection_limit(self.max_connections, len(self.listeners))
        failures: list[Failure] = []
        for endpoint, factory in (*self.listeners, *self.others):
            listening = endpoint.listen(factory)
            listening.addCallbacks(self._hold, failures.append, callbackArgs=(factory,))
            if failures:
                for port in self.ports:
                    port.stopListening()
                self.ports.clear()
                if not failures[0].check(CannotListenError):
                    where = getattr(factory, "address", "")
                    raise CannotListenError("", where, failures[0].value)
                failures[0].raiseException()
        self._share()

    def _share(self) -> None:
        """Make the files of long poems now, so that a reader brings no descriptor but its own."""
        for port in self._poem_ports():
            sending = getattr(port.factory, "sending", None)  # under TLS it is another factory
            if sending is not None and port.addressFamily != socket.AF_UNIX:
                sending.share()

    def startService(self) -> None:
        """Listen, unless that is done, and begin to watch over the connections."""
        if not self.ports:
            self.privilegedStartService()
        super().startService()  # type: ignore[no-untyped-call]

    def _hold(self, port: Any, factory: Factory) -> None:
        """Keep a port from accepting more than there is room for.

        A port accepts up to `numberAccepts` in one `doRead`, and raises that number afterwards:
        `pauseProducing` alone comes too late.
        """
        self.ports.append(port)
        self.addresses.append(listening_address(port, getattr(factory, "address", "")))
        if isinstance(factory, PoemFactory):
            factory.listener = self.addresses[-1]
        if not isinstance(port, Port) or not isinstance(factory, PoetryServerFactory):
            return
        accept: Callable[[], None] = port.doRead

        def acceptWithin() -> None:
            room = self.limit - len(self.connections)
            port.numberAccepts = min(port.numberAccepts, room)
            accept()
            if len(self.connections) >= self.limit:
                self._wait()
            if self.connections and not self._sweeper.running:
                self._sweeper.clock = self.clock
                self._sweeper.start(self._interval, now=False)

        port.doRead = acceptWithin  # type: ignore[method-assign]

    def _poem_ports(self) -> list[Any]:
        return [port for port in self.ports[: len(self.listeners)] if isinstance(port, Port)]

    def _wait(self) -> None:
        self.waiting = True
        for port in self._poem_ports():
            port.pauseProducing()
        if not self._waited:
            self._waited = True
            _log.warn(
                "{limit} connections are open, the most there may be: new readers wait",
                event="limit_reached",
                limit=self.limit,
            )

    def _connectionEnded(self, protocol: PoetryProtocol) -> None:  # noqa: ARG002
        if self._stopping is not None:
            if not self.connections:
                self._stopping.callback(None)
        elif self.waiting:
            self.waiting = False
            for port in self._poem_ports():
                port.resumeProducing()

    def _sweep(self) -> None:
        # Sweeps are counted rather than timed, so that a clock that jumps resets nobody.
        self._now += self._interval
        linger = CROWDED_LINGER if self.waiting else LINGER
        if self._stopping is not None:
            linger = 0.0
        for connection in list(self.connections):
            connection.sweep(self._now, self.idle_timeout, linger)
        if not self.connections:
            self._sweeper.stop()
        if self._waited and not self.waiting and len(self.connections) < self.limit:
            self._waited = False
            _log.warn("below {limit} connections again", event="limit_left", limit=self.limit)

    # Stopping

    def stopService(self) -> Deferred[None]:
        """Close the listeners, let readers in flight finish within the grace, reset the rest.

        @return: fires with None when the last connection is gone.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self._stopping = Deferred()
        closed: list[Any] = [maybeDeferred(self._close, port) for port in self.ports]
        if self.connections:
            _log.info(
                "stopping: {count} in flight have {grace:g} s to finish",
                event="draining",
                count=len(self.connections),
                grace=self.grace,
            )
        else:
            self._stopping.callback(None)
        late = self.clock.callLater(self.grace, self.abort)

        def done(_: object) -> None:
            if late.active():
                late.cancel()
            if self._sweeper.running:
                self._sweeper.stop()

        return gatherResults([self._stopping, *closed]).addCallback(done)

    def _close(self, port: Any) -> Any:
        """Close a listener, and take in first whom the kernel has connected: it would reset them.

        All in one reactor turn: `stopListening` would leave the next one for more to connect.
        """
        if port not in self._poem_ports():
            return port.stopListening()
        port.stopReading()
        before = -1
        while before < len(self.connections):
            before = len(self.connections)
            port.doRead()
        port.connectionLost(connectionDone)
        return None

    def abort(self) -> None:
        """End what is in flight: with a plain close where the kernel has the poem, else a reset."""
        stopped = 0
        for connection in list(self.connections):
            connection.stop()
            stopped += connection.outcome is not None
        if stopped:
            _log.warn("reset {count} readers in flight", event="grace_over", count=stopped)

    # Reloading

    def reload(self) -> None:
        """Read the poems again; where one cannot be read or is empty, keep the old and log it.

        Readers in flight keep the poem that they began.
        """
        fresh: dict[Path, PoetryServerFactory] = {}
        self.reloaded_well = True
        for _, factory in self.listeners:
            path = getattr(factory, "path", None)
            if path is None:
                continue
            if path in fresh:
                factory.sending = fresh[path].sending
                continue
            try:
                factory.poem = path.read_bytes()
                fresh[path] = factory
            except (EmptyPoem, MemoryError, OSError) as error:
                self.reloaded_well = False
                _log.error(
                    "kept the old {poem}: {reason}",
                    event="reload_failed",
                    poem=str(path),
                    reason=describe(error),
                )
        self._share()
        self.reloaded_at = time()
        if self.reloaded_well:
            _log.info("read the poems again", event="reloaded")


def describe(error: Exception) -> str:
    """What was wrong with a poem's file, in a few words without its name."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    return "it is empty, and there is no empty poem"


def connection_limit(wanted: int | None, listeners: int = 1) -> int:
    """How many connections the descriptors allow beside the listeners, and at most `wanted`.

    Out of descriptors, Twisted accepts and closes at once, which reads as an empty poem. Raises the
    process's soft RLIMIT_NOFILE to its hard value.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    allowed = max(1, hard - RESERVED_DESCRIPTORS - 2 * listeners)  # its socket, and its poem
    if hard == resource.RLIM_INFINITY:
        allowed = sys.maxsize
    if wanted is not None and wanted > allowed:
        _log.warn(
            "the descriptor limit allows {limit} connections, not {wanted}",
            event="limit_lowered",
            limit=allowed,
            wanted=wanted,
        )
    return allowed if wanted is None else min(wanted, allowed)


def serve_poem(
    endpoint: IStreamServerEndpoint,
    poem: bytes | None,
    *,
    max_connections: int | None = None,
    idle_timeout: float = 60.0,
) -> Deferred[IListeningPort]:
    """Send `poem` to whoever connects to `endpoint` (None: receive theirs), within limits.

    @return: fires with the listening port; its `stopListening` leaves readers in flight alone.
        Fails with CannotListenError.
    @see: `PoetryService` for the parameters, a drain and a reload.
    """
    factory = PoetryServerFactory(poem)
    service = PoetryService(
        [(endpoint, factory)], max_connections=max_connections, idle_timeout=idle_timeout
    )
    return maybeDeferred(service.startService).addCallback(lambda _: service.ports[0])
