"""All listeners of one start of a service: all of them listen, or none does."""

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

    An endpoint need not listen at once: its Deferred may fire at any time, or never. Endpoints are
    never cancelled, as Twisted's would leak a port that opens later; such a port is closed.

    @ivar failure: why they do not listen, where one of them cannot.
    """

    def __init__(self, opened: Callable[[int, IListeningPort], IListeningPort]) -> None:
        """@param opened: called with the place and the port of each that listens; returns what is
        to be closed.
        """
        self.failure: Failure | None = None
        self._opened = opened
        self._ports: list[IListeningPort] = []
        self._callers: list[Deferred[None]] = []
        self._missing = 0
        self._closed = False

    def listen(self, wanted: Sequence[tuple[IStreamServerEndpoint, Factory]]) -> None:
        """Begin to listen everywhere, and give all up for the first that fails."""
        self._missing = len(wanted)
        for index, (endpoint, factory) in enumerate(wanted):
            if self.failure is not None:
                return
            listening = maybeDeferred(endpoint.listen, factory)
            listening.addCallback(self._listens, index)
            listening.addErrback(self._fails, getattr(factory, "address", ""))

    def whenListening(self) -> Deferred[None]:
        """@return: fires with None once all listen, or fails with CannotListenError."""
        caller: Deferred[None] = Deferred()
        if self.failure is not None:
            caller.errback(self.failure)
        elif self._missing:
            self._callers.append(caller)
        else:
            caller.callback(None)
        return caller

    def close(self) -> Deferred[Any]:
        """Close what listens, and later what does not yet.

        @return: fires when all that listened is closed, or could not be, which is logged.
        """
        self._closed = True
        closing = [maybeDeferred(port.stopListening) for port in self._ports]
        for each in closing:
            each.addErrback(_log_unclosed)
        self._conclude(Failure(CancelledError()))
        return gatherResults(closing)

    def _listens(self, port: IListeningPort, index: int) -> Any:
        if self._closed:  # it has come too late
            return port.stopListening()
        try:
            self._ports.append(self._opened(index, port))
        except BaseException:
            port.stopListening()
            raise
        self._missing -= 1
        if not self._missing:
            self._conclude(None)
        return None

    def _fails(self, failure: Failure, address: str) -> None:
        if self._closed:
            return
        if not failure.check(CannotListenError):
            failure = Failure(CannotListenError("", address, failure.value))
        self.failure = failure
        self._conclude(failure)
        self.close()

    def _conclude(self, failure: Failure | None) -> None:
        callers, self._callers = self._callers, []
        for each in callers:
            each.callback(None) if failure is None else each.errback(failure)


def _log_unclosed(failure: Failure) -> None:
    _log.failure("cannot close a listener", failure, event="cannot_close")
