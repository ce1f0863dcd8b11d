"""Readers that have everything, and need only be waited for.

Each ends when it likes. For Twisted's own transports the reactor waits; to do so costs more than a
short poem. Here all of them are one descriptor of the reactor's, an epoll of their own, and nobody
is woken up for each: once one has ended the others are looked at every few milliseconds.
"""

from __future__ import annotations

import select
import socket
from typing import Any, Protocol

from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from poetry.wire.kernel import NOW

PAUSE = 0.005
"""Seconds between two looks. To wake up for each reader takes a fifth of a short poem's CPU
(measured)."""

ONCE = getattr(select, "EPOLLIN", 0) | getattr(select, "EPOLLONESHOT", 0)
"""One event for each socket, until it is armed again. A forked child may keep a socket open that we
have closed: its events would come for ever, under a number that another has by now."""

_DISCARDED = bytearray(64 * 1024)


class Waiting(Protocol):
    """A connection that waits for its reader's end."""

    @property
    def socket(self) -> socket.socket | None: ...
    def lose(self, reason: Failure) -> None: ...


@implementer(IReadDescriptor)
class Drain:
    """Waits for any number of readers, and throws away what they say.

    It is open while they come and go: an epoll, and a reader of the reactor's except in a pause.
    An exception out of `doRead` makes the reactor drop all of them, so `lose` raises none.
    """

    def __init__(self, reactor: Any) -> None:
        """@param reactor: an IReactorFDSet and IReactorTime."""
        self._reactor = reactor
        self._waiting: dict[int, Waiting] = {}
        self._epoll: select.epoll | None = None
        self._pause: Any = None
        self._at_shutdown: Any = None
        self._closed = False

    def __contains__(self, handle: socket.socket) -> bool:
        waiting = self._waiting.get(handle.fileno())
        return waiting is not None and waiting.socket is handle

    def add(self, connection: Waiting) -> bool:
        """Let it go when its reader ends.

        @return: False: there is no descriptor or memory to wait with.
        """
        assert connection.socket is not None
        descriptor = connection.socket.fileno()
        try:
            if self._epoll is None:
                self._open()
            assert self._epoll is not None
            self._epoll.register(descriptor, ONCE)
        except OSError:
            if not self._waiting:
                self._stop()
            return False
        self._waiting[descriptor] = connection
        return True

    def _open(self) -> None:
        self._epoll = select.epoll()
        self._watch()
        self._at_shutdown = self._reactor.addSystemEventTrigger(
            "during", "shutdown", self._shut_down
        )

    def _watch(self) -> None:
        """Have the reactor tell of the next one; where it cannot, look again in a while."""
        try:
            self._reactor.addReader(self)
        except OSError:
            self._pause = self._reactor.callLater(PAUSE, self._look)

    def remove(self, handle: socket.socket) -> None:
        """Wait for it no longer. Its next event, if any, is nobody's."""
        if self._waiting.pop(handle.fileno(), None) is not None:
            self._rest()

    def hurry(self) -> None:
        """Somebody waits for a place: let no time pass before the next look."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
            self._watch()

    def close(self) -> None:
        """Nobody more comes: leave nothing open behind the last one."""
        self._closed = True
        self._rest()

    def _rest(self) -> None:
        if self._closed and not self._waiting:
            self._stop()

    def _stop(self) -> None:
        if self._epoll is not None:
            self._reactor.removeReader(self)
            self._epoll.close()
            self._epoll = None
        if self._at_shutdown is not None:
            self._reactor.removeSystemEventTrigger(self._at_shutdown)
            self._at_shutdown = None
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def doRead(self) -> None:
        """Somebody has ended, after a while in which nobody had."""
        self._reactor.removeReader(self)
        self._look()

    def _look(self) -> None:
        assert self._epoll is not None
        self._pause = None
        events = self._epoll.poll(0, max(1, len(self._waiting)))  # Python's own limit is 1,023
        if events:
            self._pause = self._reactor.callLater(PAUSE, self._look)
        elif self._waiting:
            self._watch()
        else:
            self._stop()
        for descriptor, _ in events:
            if descriptor in self._waiting:
                self._discard(descriptor)

    def _discard(self, descriptor: int) -> None:
        connection = self._waiting[descriptor]
        assert connection.socket is not None
        assert self._epoll is not None
        try:
            if not connection.socket.recv_into(_DISCARDED, 0, NOW):
                connection.lose(connectionDone)
                return
        except BlockingIOError:  # the event was another's, which had this number
            pass
        except OSError:
            connection.lose(Failure(ConnectionLost()))
            return
        self._epoll.modify(descriptor, ONCE)

    def fileno(self) -> int:
        """For the reactor."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def logPrefix(self) -> str:
        """For the reactor."""
        return "drain"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor drops us. Who comes later is waited for with a new epoll."""
        while self._waiting:  # a hook may bring one more, or take one away
            next(iter(self._waiting.values())).lose(reason)
        self._stop()

    def _shut_down(self) -> None:
        """The reactor stops, and knows nothing of us during a pause."""
        self._at_shutdown = None
        self.connectionLost(Failure(ConnectionLost()))
