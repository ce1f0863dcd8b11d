"""Lingering close: readers that have everything, and need only be waited for.

Each ends when it likes. For Twisted's own transports the reactor waits; to do so costs more than a
short poem. Here nobody is woken up for each reader: all are looked at every few milliseconds, and
only those that stay longer are watched, by one descriptor of the reactor's, an epoll of their own.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from poetry.wire.kernel import DISCARDED, NOW, unacknowledged
from poetry.wire.layers import log_connection_failure

INTERVAL = 0.005
"""Seconds between two looks. To wake up for each reader takes a fifth of a short poem's CPU, and to
watch each a twentieth (measured)."""

CROWD = 8
"""So many readers are a crowd: the ends of one share looks, those of fewer wake the reactor up.

To wake up for each of 100 costs 1.16 times as much, and of 1,000 1.28 times; ten that rest and go
cost 0.87 times as much as with looks alone, and one, four or 32 in a loop as much (measured)."""

ONCE = getattr(select, "EPOLLIN", 0) | getattr(select, "EPOLLONESHOT", 0)
"""One event for each socket, until it is armed again. A forked child may keep a socket open that we
have closed: its events would come for ever, under a number that another has by now."""


class Lingerer(Protocol):
    """A connection that waits for the end of its reader."""

    @property
    def socket(self) -> socket.socket: ...
    def readConnectionLost(self) -> None: ...
    def connectionLost(self, reason: Failure) -> None: ...


@implementer(IReadDescriptor)
class LingeringClose:
    """Waits for any number of readers to end, and discards what they say.

    It looks at them by a timer while they come, speak, or go in crowds. Otherwise the reactor waits
    for its epoll, and without readers it rests. Without a descriptor or memory for an epoll the
    timer goes on. A reader that stays goes through three stages::

        new -- the next look --> due -- the look after it --> registered with the epoll

    After a rest, new ones are due at the first look, and a crowd is registered at once (`hurry`).

    One that ends before it has acknowledged everything is not looked at any more: a timer of its
    protocol's waits for that (`readConnectionLost`).

    An exception out of `doRead` makes the reactor drop all of them, so none gets that far.

    @ivar reactor: an IReactorFDSet and IReactorTime.
    """

    def __init__(self, reactor: Any) -> None:
        """@param reactor: an IReactorFDSet and IReactorTime."""
        self.reactor = reactor
        self._lingering: dict[int, Lingerer] = {}
        self._new: set[int] = set()
        self._due: set[int] = set()
        self._rested = True
        self._epoll: select.epoll | None = None
        self._timer: Any = None
        self._at_shutdown: Any = None
        self._closed = False

    def open(self) -> None:
        """Make the epoll, once, and before a crowd takes the low numbers, which select(2) needs."""
        if self._at_shutdown is None:
            self._at_shutdown = self.reactor.addSystemEventTrigger(
                "during", "shutdown", self._shut_down
            )
            with suppress(OSError):
                self._epoll = select.epoll()

    def add(self, connection: Lingerer) -> None:
        """Wait for the end of a reader; then call its `connectionLost`, or its
        `readConnectionLost` if it has not acknowledged everything."""
        descriptor = connection.socket.fileno()
        self._lingering[descriptor] = connection
        self._new.add(descriptor)
        if self._timer is None:
            self._rested = True
            self._look_later()

    @property
    def rests(self) -> bool:
        """Whether there is no reader to wait for."""
        return not self._lingering

    def remove(self, connection: Lingerer) -> None:
        """Wait for a reader no longer; its next event, if any, finds no connection."""
        self._lingering.pop(connection.socket.fileno(), None)
        if not self._lingering:
            self._rest()

    def close(self) -> None:
        """Leave nothing open behind the last reader: no more will come."""
        self._closed = True
        if self._lingering:
            self.hurry()
        else:
            self._stop()

    def hurry(self) -> None:
        """Look as soon as a reader has ended: for a crowd, or as new readers or a stop wait."""
        unarmed = (self._new | self._due) & self._lingering.keys()
        self._new, self._due = set(), set()
        for descriptor in unarmed:
            self._register(descriptor)
        if self._lingering and not self._due:
            self._read()

    def _read(self) -> None:
        """Wait for the epoll in place of the timer; if the reactor cannot, look later."""
        try:
            if self._epoll is None:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            self.reactor.addReader(self)
        except OSError:
            self._look_later()
        else:
            self._cancel()

    def _look_later(self) -> None:
        """Set the timer; meanwhile the reactor does not read the epoll."""
        if self._timer is not None:
            return
        self.open()
        if self._epoll is not None:
            self.reactor.removeReader(self)
        self._timer = self.reactor.callLater(INTERVAL, self._look)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop(self) -> None:
        if self._epoll is not None:
            self.reactor.removeReader(self)
            self._epoll.close()
            self._epoll = None
        if self._at_shutdown is not None:
            self.reactor.removeSystemEventTrigger(self._at_shutdown)
            self._at_shutdown = None
        self._cancel()

    def doRead(self) -> None:
        """Look: a reader has ended or said something."""
        self._look()

    def _look(self) -> None:
        self._timer = None
        before, spoke = len(self._lingering), False
        for descriptor in self._ready():
            if descriptor in self._lingering:  # a hook may take others away
                spoke = self._discard(descriptor) or spoke
        left = len(self._lingering)
        if not left:
            self._rest()
        elif self._closed and not spoke:
            self.hurry()
        elif self._due or self._new or spoke or CROWD <= left < before:
            self._look_later()
        else:
            self._read()

    def _rest(self) -> None:
        """Stop looking and waiting until a reader comes."""
        self._cancel()
        if self._closed:
            self._stop()
        elif self._epoll is not None:
            self.reactor.removeReader(self)

    def _ready(self) -> set[int]:
        """Return the descriptors to look at: those that are due, and those with an event."""
        ready, self._due, self._new = self._due, self._new, set()
        if self._rested:
            ready, self._due, self._rested = ready | self._due, set(), False
        if self._epoll is not None:
            with suppress(OSError):
                most = max(1, len(self._lingering))  # by default 1,023
                events = self._epoll.poll(0, most)
                ready.update(descriptor for descriptor, _ in events)
        return ready

    def _discard(self, descriptor: int) -> bool:
        """Discard what a reader has said, or end it; return whether it has said something."""
        connection = self._lingering[descriptor]
        try:
            if connection.socket.recv_into(DISCARDED, 0, NOW):
                self._register(descriptor)
                return True
            if unacknowledged(connection.socket):
                connection.readConnectionLost()
            else:
                _lose(connection, connectionDone)
        except BlockingIOError:  # it stays, or its number was another's
            self._register(descriptor)
        except OSError:
            _lose(connection, Failure(ConnectionLost()))
        return False

    def _register(self, descriptor: int) -> None:
        """Register for an event of a reader; if that fails, make the reader due again."""
        try:
            if self._epoll is None:
                self._epoll = select.epoll()
            try:
                self._epoll.register(descriptor, ONCE)
            except FileExistsError:
                self._epoll.modify(descriptor, ONCE)
        except OSError:
            self._due.add(descriptor)
            self._look_later()

    def fileno(self) -> int:
        """Return the epoll's descriptor; -1: there is none."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def logPrefix(self) -> str:
        """Return the name of this reader in the reactor's logs."""
        return "lingering close"

    def connectionLost(self, reason: Failure) -> None:
        """Close all readers, as the reactor drops us; later ones get a new epoll."""
        while self._lingering:  # a hook may bring one more, or take one away
            _lose(self._lingering.popitem()[1], reason)
        self._stop()

    def _shut_down(self) -> None:
        """Close all readers: the reactor stops, and does not read the epoll while a timer runs."""
        self._at_shutdown = None
        self.connectionLost(Failure(ConnectionLost()))


def _lose(connection: Lingerer, reason: Failure) -> None:
    """End a connection, and log its errors, so that the others are looked at as well."""
    try:
        connection.connectionLost(reason)
    except Exception:
        log_connection_failure("ended")
