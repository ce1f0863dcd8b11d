"""Ports that are held to a limit, open together, and close without losing anybody."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.tcp import Port
from twisted.logger import Logger
from twisted.python.failure import Failure

from poetry.serving.fast import AT_ONCE, LeanPort

_log = Logger()

AGAIN = 0.1
"""Seconds until a port asks the reactor again, which had no room to wait for its readers."""


class Gate:
    """Holds all listeners of a service to one limit: at the limit the kernel's queue holds readers.

    Refusing would be lying: a connection that is accepted and closed reads as an empty poem.

    @ivar limit: most connections at once.
    @ivar waiting: whether it is reached.
    """

    def __init__(self, connections: Set[object], limit: int) -> None:
        """@param connections: the live ones, of all listeners."""
        self.limit = limit
        self.waiting = False
        self._connections = connections
        self._listeners: set[Listener] = set()
        self._told = False

    def add(self, listener: Listener) -> None:
        """Hold a listener from now on."""
        self._listeners.add(listener)

    def remove(self, listener: Listener) -> None:
        """It is closed."""
        self._listeners.discard(listener)

    @property
    def room(self) -> int:
        """How many connections may still be accepted."""
        return self.limit - len(self._connections)

    @property
    def isOpen(self) -> bool:
        """Whether anybody can still come in."""
        return bool(self._listeners)

    def close_if_full(self) -> None:
        """Where no more may come in, have all listeners pause."""
        if self.room > 0:
            return
        self.waiting = True
        for listener in self._listeners:
            listener.pause()
        if not self._told:
            self._told = True
            _log.warn(
                "{limit} connections are open, the most there may be: new readers wait",
                event="limit_reached",
                limit=self.limit,
            )

    def left(self) -> None:
        """Somebody left: there is room again."""
        if self.waiting and self.room > 0:
            self.waiting = False
            for listener in self._listeners:
                listener.resume()

    def report(self) -> None:
        """Say that the limit is behind us, if it is: a busy server leaves it for a moment only."""
        if self._told and not self.waiting and self.room > 0:
            self._told = False
            _log.warn("below {limit} connections again", event="limit_left", limit=self.limit)


class Listener:
    """A port of the reactor's, held to the limit by its `Gate`.

    It takes the place of two methods of the port, which has no hook for either: `doRead`, which
    accepts up to `numberAccepts` connections at once and raises that number afterwards, so that
    `pauseProducing` alone comes too late; and `connectionLost`, which is how a port ends, whoever
    closes it.
    """

    def __init__(
        self,
        port: Port,
        gate: Gate,
        afterwards: Callable[[], None],
        closed: Callable[[], None],
        lean: LeanPort | None,
    ) -> None:
        """@param afterwards: called after each accepting.

        @param closed: called when the port is closed.
        @param lean: what accepts in the port's place where it suits.
        """
        self._port: Any = port
        self._gate = gate
        self._afterwards = afterwards
        self._closed = closed
        self._doRead = port.doRead
        self._connectionLost = port.connectionLost
        self._lean = lean
        self._again: Any = None
        port.doRead = self.doRead  # type: ignore[method-assign]
        port.connectionLost = self.connectionLost  # type: ignore[method-assign]
        gate.add(self)

    def doRead(self) -> None:
        """Accept as many as there is room for."""
        self._accept()
        self._gate.close_if_full()
        self._afterwards()

    def _accept(self) -> bool:
        """Take some in; whether anybody was there."""
        if self._lean is not None and self._lean.suits:
            try:
                return self._lean.accept(min(self._gate.room, AT_ONCE)) > 0
            except OSError:  # Twisted knows what to do about each
                pass
        if not self._port.connected:  # a hook has closed it
            return False
        room = self._gate.room
        self._port.numberAccepts = min(self._port.numberAccepts, room, AT_ONCE)
        self._doRead()
        return self._gate.room < room

    def connectionLost(self, reason: Failure) -> None:
        """The port is closed, by whom and as often as it may be."""
        if self._port.connected:
            self._gate.remove(self)
            self._forget()
            if self._lean is not None:
                self._lean.close()
            self._connectionLost(reason)
            self._closed()

    def pause(self) -> None:
        """Leave new readers in the kernel's queue."""
        self._forget()
        self._port.pauseProducing()
        if self._lean is not None:
            self._lean.drain.hurry()

    def resume(self) -> None:
        """Accept again, as soon as the reactor can (epoll_ctl(2): ENOSPC, ENOMEM)."""
        self._again = None
        try:
            self._port.resumeProducing()
        except OSError:
            self._again = self._port.reactor.callLater(AGAIN, self.resume)

    def _forget(self) -> None:
        """Be about to accept again no longer."""
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def close(self) -> None:
        """Close the port, and take in first whom the kernel has connected: it would reset them.

        All in one reactor turn: `stopListening` would leave the next one for more to connect.
        """
        if not self._port.connected:
            return
        self._port.stopReading()
        while self._gate.room > 0 and self._accept():
            pass
        self._afterwards()
        self.connectionLost(connectionDone)


class Listeners:
    """The ports of one start of a service: all of them listen, or none does.

    An endpoint need not listen at once: its Deferred may fire when it likes, or never.

    @ivar failure: why they do not listen, where one of them cannot.
    """

    def __init__(self, opened: Callable[[int, IListeningPort], Callable[[], Any]]) -> None:
        """@param opened: called with the place and the port of each that listens; gives what
        closes it.
        """
        self.failure: Failure | None = None
        self._opened = opened
        self._pending: list[Deferred[Any]] = []
        self._closers: list[Callable[[], Any]] = []
        self._waiting: list[Deferred[None]] = []
        self._missing = 0
        self._isClosed = False

    def listen(self, wanted: Sequence[tuple[IStreamServerEndpoint, Factory]]) -> None:
        """Begin to listen everywhere, and give all up for the first that fails."""
        self._missing = len(wanted)
        for index, (endpoint, factory) in enumerate(wanted):
            if self.failure is not None:
                return
            listening = maybeDeferred(endpoint.listen, factory)
            self._pending.append(listening)
            listening.addCallback(self._listens, index)
            listening.addErrback(self._fails, getattr(factory, "address", ""))

    def whenListening(self) -> Deferred[None]:
        """@return: fires with None once all listen, or fails with CannotListenError."""
        waiting: Deferred[None] = Deferred()
        if self.failure is not None:
            waiting.errback(self.failure)
        elif self._missing:
            self._waiting.append(waiting)
        else:
            waiting.callback(None)
        return waiting

    def close(self) -> Deferred[Any]:
        """Close what listens, and cancel what does not yet.

        @return: fires when all that listened is closed.
        """
        self._isClosed = True
        for listening in self._pending:
            if is_cancellable(listening):
                listening.cancel()
        closing = [maybeDeferred(close) for close in self._closers]
        self._conclude(Failure(CancelledError()))
        return gatherResults(closing)

    def _listens(self, port: IListeningPort, index: int) -> Any:
        if self._isClosed:  # it has come too late
            return port.stopListening()
        self._closers.append(self._opened(index, port))
        self._missing -= 1
        if not self._missing:
            self._conclude(None)
        return None

    def _fails(self, failure: Failure, address: str) -> None:
        if self._isClosed:
            return
        if not failure.check(CannotListenError):
            failure = Failure(CannotListenError("", address, failure.value))
        self.failure = failure
        self._conclude(failure)
        self.close()

    def _conclude(self, failure: Failure | None) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None) if failure is None else each.errback(failure)


def is_cancellable(deferred: Deferred[Any]) -> bool:
    """Whether `cancel` stops something. Without a canceller it only loses the result: a port."""
    return deferred._canceller is not None
