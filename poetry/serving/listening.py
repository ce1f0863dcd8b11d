"""The listeners of one start of a service: all of them listen, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

_log = Logger()


class Listening:
    """The listeners of one start.

    The Deferred of an endpoint may fire at any time, or never. It is never cancelled, as Twisted's
    endpoints would leak a port that opens later; such a port is closed.

    @ivar failure: the CannotListenError of the first that cannot; None: there is none so far.
    @ivar closed: whether none listens any more, or will.
    """

    def __init__(self, opened: Callable[[int, IListeningPort], IListeningPort]) -> None:
        """@param opened: is called with the index and the port of each endpoint that listens, and
        returns the port to close in the end.
        """
        self.failure: Failure | None = None
        self._opened = opened
        self._ports: list[IListeningPort] = []
        self._callers: list[Deferred[None]] = []
        self._missing = 0
        self.closed = False
        self._closing: Deferred[Any] = Deferred()

    def listen(self, endpoints: Sequence[tuple[IStreamServerEndpoint, Factory]]) -> None:
        """Begin to listen on all endpoints; if one fails, close all.

        @param endpoints: each with its factory.
        """
        self._missing = len(endpoints)
        for index, (endpoint, factory) in enumerate(endpoints):
            if self.failure is not None:
                return
            listening = maybeDeferred(endpoint.listen, factory)
            listening.addCallback(self._port_opened, index)
            listening.addErrback(self._port_failed, getattr(factory, "address", ""))

    def whenListening(self) -> Deferred[None]:
        """Wait until all listen.

        @return: fires with None once all listen; fails with CannotListenError, or with
            CancelledError at `close`.
        """
        caller: Deferred[None] = Deferred()
        if self.failure is not None:
            caller.errback(self.failure)
        elif self.closed:
            caller.errback(CancelledError())
        elif self._missing:
            self._callers.append(caller)
        else:
            caller.callback(None)
        return caller

    def close(self) -> Deferred[None]:
        """Close the ports that are open, and those that open later, once.

        @return: fires when those that were open are closed; one that cannot be is logged.
        """
        if not self.closed:
            self.closed = True
            closing = [maybeDeferred(port.stopListening) for port in self._ports]
            for each in closing:
                each.addErrback(_log_unclosed)
            gatherResults(closing).chainDeferred(self._closing)
            self._fire(Failure(CancelledError()))
        closed: Deferred[None] = Deferred()
        self._closing.addCallback(lambda _: closed.callback(None))
        return closed

    def _port_opened(self, port: IListeningPort, index: int) -> Any:
        if self.closed:  # it opened after `close`
            return port.stopListening()
        try:
            self._ports.append(self._opened(index, port))
        except BaseException:
            port.stopListening()
            raise
        self._missing -= 1
        if not self._missing:
            self._fire(None)
        return None

    def _port_failed(self, failure: Failure, address: str) -> None:
        if self.closed:
            return
        if not failure.check(CannotListenError):
            failure = Failure(CannotListenError("", address, failure.value))
        self.failure = failure
        self._fire(failure)
        self.close()

    def _fire(self, failure: Failure | None) -> None:
        callers, self._callers = self._callers, []
        for each in callers:
            each.callback(None) if failure is None else each.errback(failure)


def _log_unclosed(failure: Failure) -> None:
    _log.failure("cannot close a listener", failure, event="cannot_close")
