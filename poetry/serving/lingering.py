"""Readers that have everything, and need only be waited for.

Each ends when it likes. For Twisted's own transports the reactor waits; to do so costs more than a
short poem. Here nobody is woken up for each: all are looked at every few milliseconds, and only
those that stay longer are watched, by one descriptor of the reactor's, an epoll of their own.
"""

from __future__ import annotations

import select
import socket
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from poetry.wire.kernel import DISCARDED, NOW

PAUSE = 0.005
"""Seconds between two looks. To wake up for each reader takes a fifth of a short poem's CPU, and to
watch each a twentieth (measured)."""

ONCE = getattr(select, "EPOLLIN", 0) | getattr(select, "EPOLLONESHOT", 0)
"""One event for each socket, until it is armed again. A forked child may keep a socket open that we
have closed: its events would come for ever, under a number that another has by now."""


class Waiting(Protocol):
    """A connection that waits for its reader's end."""

    @property
    def socket(self) -> socket.socket | None: ...
    def lose(self, reason: Failure) -> None: ...


@implementer(IReadDescriptor)
class Drain:
    """Waits for any number of readers, and throws away what they say.

    While they come and go it takes a timer, and while none does an epoll, which the reactor reads.
    Where there is no descriptor or memory for that, the timer goes on.
    An exception out of `doRead` makes the reactor drop all of them, so `lose` raises none.
    """

    def __init__(self, reactor: Any) -> None:
        """@param reactor: an IReactorFDSet and IReactorTime."""
        self._reactor = reactor
        self._waiting: dict[int, Waiting] = {}
        # Of these no event tells, and a timer goes while there are any. A look makes the new ones
        # due, and arms those that have not ended when they are due: few.
        self._new: set[int] = set()
        self._due: set[int] = set()
        self._epoll: select.epoll | None = None
        self._pause: Any = None
        self._at_shutdown: Any = None
        self._closed = False

    def add(self, connection: Waiting) -> None:
        """Let it go when its reader ends."""
        assert connection.socket is not None
        descriptor = connection.socket.fileno()
        self._waiting[descriptor] = connection
        self._new.add(descriptor)
        if self._pause is None:
            self._look_later()

    def remove(self, handle: socket.socket) -> None:
        """Wait for it no longer. Its next event, if any, is nobody's."""
        self._waiting.pop(handle.fileno(), None)
        if not self._waiting and (self._closed or self._pause is None):
            self._stop()

    def close(self) -> None:
        """Nobody more comes: leave nothing open behind the last one."""
        self._closed = True
        if self._waiting:
            self.hurry()
        else:
            self._stop()

    def hurry(self) -> None:
        """Somebody waits for a place, or for all to be gone: look as soon as one has ended."""
        unarmed = (self._new | self._due) & self._waiting.keys()
        self._new, self._due = set(), set()
        for descriptor in unarmed:
            self._arm(descriptor)
        if self._pause is None or self._due or self._epoll is None or not self._waiting:
            return  # it is so already, or cannot be, or need not
        try:
            self._reactor.addReader(self)
        except OSError:
            return
        self._pause.cancel()
        self._pause = None

    def _look_later(self) -> None:
        """Set the timer; meanwhile the reactor tells of nobody."""
        if self._at_shutdown is None:
            self._open()
        if self._epoll is not None:
            self._reactor.removeReader(self)
        self._pause = self._reactor.callLater(PAUSE, self._look)

    def _open(self) -> None:
        self._at_shutdown = self._reactor.addSystemEventTrigger(
            "during", "shutdown", self._shut_down
        )
        with suppress(OSError):  # before a crowd takes the low numbers, which select(2) needs
            self._epoll = select.epoll()

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
        self._look()

    def _look(self) -> None:
        self._look_later()
        ready, self._due, self._new = self._due, self._new, set()
        if self._epoll is not None:
            events = self._epoll.poll(0, max(1, len(self._waiting)))  # Python's own limit is 1,023
            ready.update(descriptor for descriptor, _ in events)
        for descriptor in ready:
            if descriptor in self._waiting:  # a hook may take others away
                self._discard(descriptor)
        quiet = not (ready or self._due or self._new)
        if quiet and not self._waiting:
            self._stop()
        elif quiet or self._closed:
            self.hurry()

    def _discard(self, descriptor: int) -> None:
        connection = self._waiting[descriptor]
        assert connection.socket is not None
        try:
            if connection.socket.recv_into(DISCARDED, 0, NOW):
                self._arm(descriptor)
            else:
                connection.lose(connectionDone)
        except BlockingIOError:  # it stays, or the event was another's, which had this number
            self._arm(descriptor)
        except OSError:
            connection.lose(Failure(ConnectionLost()))

    def _arm(self, descriptor: int) -> None:
        """Have an event tell of its end; where none can, it is due again."""
        try:
            if self._epoll is None:
                self._epoll = select.epoll()
            try:
                self._epoll.register(descriptor, ONCE)
            except FileExistsError:
                self._epoll.modify(descriptor, ONCE)
        except OSError:
            self._due.add(descriptor)
            if self._pause is None:
                self._look_later()

    def fileno(self) -> int:
        """For the reactor."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def logPrefix(self) -> str:
        """For the reactor."""
        return "drain"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor drops us. Who comes later is waited for with a new epoll."""
        while self._waiting:  # a hook may bring one more, or take one away
            self._waiting.popitem()[1].lose(reason)
        self._stop()

    def _shut_down(self) -> None:
        """The reactor stops, and knows nothing of us during a pause."""
        self._at_shutdown = None
        self.connectionLost(Failure(ConnectionLost()))
