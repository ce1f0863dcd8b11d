"""PoetryService: listens within limits, stops gracefully, reads its poems again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.task import LoopingCall
from twisted.internet.tcp import Port
from twisted.logger import Logger
from twisted.python.failure import Failure

from poetry.addresses import listening_address
from poetry.idle import sweep
from poetry.limits import DEFAULTS, Limits
from poetry.protocol import PoetryProtocol, PoetryServerFactory
from poetry.serving.accepting import Listener
from poetry.serving.limiter import ConnectionLimiter
from poetry.serving.listening import Listening
from poetry.serving.poems import PoemFactory, Reloads
from poetry.serving.stopping import Stopping, stop_all
from poetry.system.adopted import adopt, is_own
from poetry.system.descriptors import raise_connection_limit
from poetry.wire.layers import serves_tls

LINGER = 30.0
"""Seconds that a reader which has everything may keep the connection (nginx's lingering_time)."""

CROWDED_LINGER = 2.0
"""The same while the limit is reached, and others wait for a place."""

_log = Logger()


class PoetryService(Service):
    """Serves poems within limits, and ends each transfer in a way that its reader can tell.

    It may be started and stopped in any order and as often as you like. What is in flight at a stop
    drains, whether or not the service is started again meanwhile.

    @ivar others: what is served beside the poems and does not count: metrics.
    @ivar connections: the live connections of all listeners.
    """

    def __init__(
        self,
        listeners: Iterable[tuple[IStreamServerEndpoint, PoetryServerFactory]],
        *,
        max_connections: int | None = DEFAULTS.max_connections,
        idle_timeout: float = DEFAULTS.idle_timeout,
        grace: float = DEFAULTS.grace,
        clock: Any = None,
    ) -> None:
        """@param listeners: where to listen, and what to send there. A factory may be on several
            endpoints, and in one service.

        @param max_connections: most connections at once; None, or more than that: what the
            descriptor limit (RLIMIT_NOFILE, raised to its hard value) allows.
        @param idle_timeout: seconds without progress after which a peer is reset.
        @param grace: seconds that a stop waits for readers in flight.
        @param clock: an IReactorTime; None: the global reactor.
        @raise TypeError: if an argument is of another type than it should be.
        @raise ValueError: if a limit is out of range, a factory is in another service, or a socket
            that was passed in cannot be listened on.
        """
        Limits(max_connections, idle_timeout, grace).check()
        self.listeners = list(listeners)
        for endpoint, factory in self.listeners:
            _check_listener(endpoint, factory)
        _adopt_all(endpoint for endpoint, _ in self.listeners)
        self.max_connections = max_connections
        self.idle_timeout = idle_timeout
        self.grace = grace
        if clock is None:
            from twisted.internet import reactor as clock
        self.clock = clock
        self.others: list[tuple[IStreamServerEndpoint, Any]] = []
        self.connections: set[PoetryProtocol] = set()
        self._listening: Listening | None = None
        self._open: dict[int, tuple[IListeningPort, str]] = {}
        self._limiter = ConnectionLimiter(self._limit())
        self._stops: list[Stopping] = []
        self._sweeping = LoopingCall(self._sweep)
        self._interval = min(1.0, idle_timeout / 4)
        self._now = 0.0
        factories = {factory for _, factory in self.listeners}
        self._reloads = Reloads(factories)
        for factory in factories:
            factory.service = self
            factory.connections = self.connections

    def __repr__(self) -> str:
        where = ", ".join(self.addresses) if self.running else "stopped"
        return f"<{type(self).__name__} {where}: {len(self.connections)} connections>"

    def _limit(self) -> int:
        allowed = raise_connection_limit(len(self.listeners))
        if self.max_connections is None:
            return allowed
        if self.max_connections > allowed:
            _log.warn(
                "the descriptor limit allows {limit} connections, not {wanted}",
                event="limit_lowered",
                limit=allowed,
                wanted=self.max_connections,
            )
        return min(self.max_connections, allowed)

    @property
    def ports(self) -> list[IListeningPort]:
        """The `IListeningPort` of each listener, then of each of the others, while open."""
        return [self._open[index][0] for index in sorted(self._open)]

    @property
    def addresses(self) -> list[str]:
        """The address of each of `ports`, as `poetry get` takes it."""
        return [self._open[index][1] for index in sorted(self._open)]

    @property
    def limit(self) -> int:
        """Most connections at once."""
        return self._limiter.limit

    @property
    def full(self) -> bool:
        """Whether the limit is reached, so that the kernel's queues hold new readers."""
        return self._limiter.full

    @property
    def accept_queue(self) -> int:
        """Connections that the kernel's queues hold; 0 where it does not tell."""
        return sum(port.accept_queue for port in self.ports if isinstance(port, Listener))

    # Starting

    def privilegedStartService(self) -> None:
        """Listen while ports below 1024 can still be had.

        @raise CannotListenError: for the first address that is taken or not ours. Of an endpoint
            that fails later `whenListening` tells.
        """
        if self._listening is not None and not self._listening.closed:
            return
        self._listening = Listening(self._opened)
        self._listening.listen([*self.listeners, *self.others])
        failure = self._listening.failure
        if failure is not None:
            self._open = {}
            failure.raiseException()
        self._listening.whenListening().addErrback(self._cannotListen)

    def startService(self) -> None:
        """Listen, unless that is done, and serve."""
        self.privilegedStartService()
        super().startService()  # type: ignore[no-untyped-call]

    def whenListening(self) -> Deferred[list[str]]:
        """Wait until all endpoints listen.

        @return: fires with `addresses` once all endpoints listen; fails with the
        CannotListenError of the first that cannot, after which none does, or with CancelledError
        at a stop, and before a start.
        """
        if self._listening is None:
            return fail(CancelledError())
        return self._listening.whenListening().addCallback(lambda _: list(self.addresses))

    def _opened(self, index: int, port: IListeningPort) -> IListeningPort:
        """Put a `Listener` in the place of a port of Twisted's; return what listens now."""
        pairs = [*self.listeners, *self.others]
        endpoint, factory = pairs[index]
        if index < len(self.listeners) and isinstance(port, Port):
            own = is_own(endpoint)
            port = Listener(port, factory, self._limiter, own=own, closed=self._watch)
            address = port.address
        else:
            secure = isinstance(port, Port) and serves_tls(port)
            address = listening_address(port, secure=secure)
        self._open[index] = (port, address)
        if isinstance(factory, PoemFactory):
            its_own = [at for at in sorted(self._open) if pairs[at][1] is factory]
            factory.listener = ", ".join(self._open[at][1] for at in its_own)
        return port

    def _cannotListen(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            _log.error("{reason}", event="cannot_listen", reason=failure.getErrorMessage())
            self.stopService()

    # Watching over the connections

    def _watch(self) -> None:
        """Sweep while there are connections, and leave no timer where none can come."""
        if self.connections:
            if not self._sweeping.running:
                self._sweeping.clock = self.clock
                self._sweeping.start(self._interval, now=False)
        elif self._sweeping.running and not self._limiter.accepting:
            self._sweeping.stop()

    def connectionBegan(self) -> None:
        """Watch over the connections: one has joined them."""
        self._watch()

    def connectionEnded(self, connection: PoetryProtocol) -> None:
        """Forget one of `connections`: its `PoetryProtocol` has ended."""
        if self._stops:
            for stop in list(self._stops):
                stop.left(connection)
            self._stops = [stop for stop in self._stops if stop.connections]
        self._watch()

    def _sweep(self) -> None:
        # Sweeps are counted rather than timed, so that a clock that jumps resets nobody.
        self._now += self._interval
        stopping: set[PoetryProtocol] = set().union(*(each.connections for each in self._stops))
        linger = CROWDED_LINGER if self.full else LINGER
        sweep(stopping, self._now, self.idle_timeout, 0.0)
        sweep(self.connections - stopping, self._now, self.idle_timeout, linger)
        if not self.accept_queue:  # else those who wait take the room that this sweep has made
            self._limiter.report()
        if not self.connections and self._sweeping.running:
            self._sweeping.stop()

    # Stopping

    def stopService(self) -> Deferred[None]:
        """Close the listeners, let readers in flight finish within the grace, reset the rest.

        @return: fires with None when all is closed, and all that was in flight has ended.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self._open = {}
        closed = succeed(None) if self._listening is None else self._listening.close()
        stop = Stopping(self.connections, self.grace, self.clock)
        if stop.connections:
            self._stops.append(stop)

        async def stopped() -> None:
            await closed
            await stop.done

        return Deferred.fromCoroutine(stopped())

    def abort(self) -> None:
        """End what is in flight: gracefully where the kernel has the poem, else with a reset."""
        stop_all(self.connections)

    # Reloading

    def reload(self) -> Deferred[None]:
        """Read the poems that came from files again, where those have changed; where one cannot be
        read, is empty or is no regular file, keep the old poem and log it.

        Readers in flight keep the poem that they began.

        @return: fires with None when all are read.
        """
        return self._reloads.run(self.read_again)

    async def read_again(self) -> bool:
        """Read all that a reload reads, and return whether it could be read; override for more."""
        return await self._reloads.read_poems()

    @property
    def reloaded_at(self) -> float:
        """When the last reload ended, well or not, in seconds since the epoch; before the first,
        when the service was made.
        """
        return self._reloads.at

    @property
    def reloaded_well(self) -> bool:
        """Whether it could read all."""
        return self._reloads.well


def _check_listener(endpoint: object, factory: object) -> None:
    if not hasattr(endpoint, "listen"):
        raise TypeError(f"{endpoint!r} is no endpoint: make one with serverFromString")
    if not isinstance(factory, PoetryServerFactory):
        raise TypeError(f"{factory!r} is no PoetryServerFactory")
    if factory.service is not None:
        raise ValueError(f"{factory!r} is in another service already")


def _adopt_all(endpoints: Iterable[object]) -> None:
    """Check each socket that was passed in, and that it is listened on once.

    @raise ValueError: if it cannot be, or is twice.
    """
    passed_in = [each for each in endpoints if isinstance(each, AdoptedStreamServerEndpoint)]
    for each in passed_in:
        adopt(each)
    for descriptor, count in Counter(each.fileno for each in passed_in).items():
        if count > 1:
            raise ValueError(f"the socket {descriptor} was passed in once, for {count} listeners")


def serve_poem(
    endpoint: IStreamServerEndpoint,
    poem: bytes | None,
    *,
    max_connections: int | None = DEFAULTS.max_connections,
    idle_timeout: float = DEFAULTS.idle_timeout,
) -> Deferred[IListeningPort]:
    """Send a poem to each reader that connects, within limits.

    @param endpoint: where to listen.
    @param poem: at least one byte; None: receive poems, which a `PoetryServerFactory` can take.
    @param max_connections: most connections at once; None, or more than that: what the descriptor
        limit (RLIMIT_NOFILE, raised to its hard value) allows.
    @param idle_timeout: seconds without progress after which a peer is reset.
    @return: fires with the listening port; its `stopListening` leaves readers in flight alone.
        Fails with CannotListenError.
    @raise TypeError: where `endpoint` is no IStreamServerEndpoint, or a limit no number.
    @raise ValueError: where a limit is out of range.
    @raise EmptyPoem: for `b""`.
    @see: `PoetryService` for a graceful stop and a reload.
    """
    factory = PoetryServerFactory(poem)
    service = PoetryService(
        [(endpoint, factory)], max_connections=max_connections, idle_timeout=idle_timeout
    )

    async def listen() -> IListeningPort:
        service.startService()
        try:
            await service.whenListening()
        except BaseException:
            await service.stopService()
            raise
        return service.ports[0]

    return Deferred.fromCoroutine(listen())
