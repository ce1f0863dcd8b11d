"""One listener: accepts connections for a port of Twisted's, within the limit of its service."""

from __future__ import annotations

import errno
import math
import socket
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IListeningPort, IReadDescriptor
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Port
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from poetry.addresses import BACKLOG, as_address, listening_address, named
from poetry.protocol import PoetryProtocol, PoetryServerFactory
from poetry.serving.accepted import Accepted, unwrapped
from poetry.serving.fast import Sent, end_at_once, poem_for_all, send_at_once
from poetry.serving.limiter import ConnectionLimiter
from poetry.serving.lingering import CROWD, LingeringClose
from poetry.serving.port import close_port, duplicate
from poetry.system.features import AT_ONCE, EPOLL, UNIX
from poetry.wire.kernel import (
    accept_queue,
    has_hung_up,
    make_close_abortive,
    make_close_graceful,
)
from poetry.wire.layers import log_connection_failure, serves_tls

AGAIN = 0.1
"""Seconds until a listener tries again after accept(2) or epoll_ctl(2) failed for lack of room."""

_NEXT = frozenset({errno.ECONNABORTED, errno.EPERM, errno.EPROTO})
"""Errors of accept(2) that concern one connection: the next one may be fine."""

_log = Logger()


@implementer(IListeningPort, IReadDescriptor)
class Listener:
    """Accepts connections in the place of one of Twisted's ports.

    It reads a duplicate of the port's socket: reactors know what they read by its descriptor, and
    the port would unregister its own. Twisted's transports are made as the port would make them.

    Without descriptors or memory it pauses, says so once, and asks again: readers wait in the
    kernel's queue. Whatever goes wrong with one connection resets that one.

    @ivar address: where it listens, as `poetry get` takes it.
    """

    def __init__(
        self,
        port: Port,
        factory: PoetryServerFactory,
        limiter: ConnectionLimiter,
        *,
        own: bool,
        closed: Callable[[], None],
    ) -> None:
        """@param factory: whose poem it serves; the port has it, or a wrapper around it.

        @param own: whether no other process has the socket; in doubt, it was passed in.
        @param closed: is called when it is closed.
        @raise OSError: where there is no descriptor for it.
        """
        self._port = port
        self._reactor: Any = port.reactor
        self._factory = factory
        self._limiter = limiter
        self._own = own
        self._closed = closed
        self._plain = port.factory is factory and port.addressFamily != UNIX
        self._sessions = 0
        self._starved = False
        self._again: Any = None
        self.connected = False
        self._listen()

    def _listen(self) -> None:
        port = self._port
        self._socket = duplicate(port.socket)
        port.stopReading()
        self._host = as_address(self._socket.getsockname())
        self.address = listening_address(self, secure=serves_tls(port))
        self._unarmed = self._arm()
        self._lingering = LingeringClose(self._reactor)  # that of an earlier start is closed
        if self._plain:
            self._prepare()
        self.connected = True
        self._limiter.add(self)
        self.resume()

    def _prepare(self) -> None:
        """Open the descriptors that all plain sockets share, before the first reader: the file of a
        long poem, and the epoll of the lingering close.

        Under TLS the port has another factory, and its poem is copied, as on a Unix socket.
        """
        if self._factory.sending is not None:
            self._factory.sending.share()
        if EPOLL:
            self._lingering.open()

    def _arm(self) -> float:
        """Make close abortive for every accepted connection, by inheritance (Linux).

        @return: how many of the next connections have to be armed one by one: those that were
            queued before. Of a socket that may have been passed in, all (infinity): it is left as
            the other processes that share it need it.
        """
        if not self._own or sys.platform != "linux":
            return math.inf
        make_close_abortive(self._socket)
        return accept_queue(self._socket)

    @property
    def accept_queue(self) -> int:
        """Connections that the kernel holds until they are accepted; 0 where it does not tell."""
        queue = accept_queue(self._socket) if self.connected else 0
        return 0 if queue == math.inf else int(queue)

    # IListeningPort

    def startListening(self) -> None:
        """Listen again, after a stop.

        @raise CannotListenError: where the address is taken.
        """
        self._port.startListening()
        try:
            self._listen()
        except BaseException:
            close_port(self._port, connectionDone)
            raise

    def stopListening(self) -> Deferred[None]:
        """Close, and accept first the connections that the kernel has made, which it would reset.

        As many as there are now, or fit the limit: more may come for ever. The rest is reset, and
        logged, unless another process has the socket too. Readers in flight are left alone.

        @return: has fired with None.
        """
        if self.connected:
            self._reactor.removeReader(self)
            queued = accept_queue(self._socket)
            self._accept(BACKLOG if queued == math.inf else queued)
            if self._own and (waiting := self.accept_queue):
                _log.warn(
                    "reset {count} readers that waited for a place on {address}",
                    event="queue_reset",
                    count=waiting,
                    address=self.address,
                )
            self.connectionLost(connectionDone)
        return succeed(None)

    def getHost(self) -> Any:
        """Return the address: an IPv4Address, an IPv6Address or a UNIXAddress."""
        return self._host

    # IReadDescriptor

    def fileno(self) -> int:
        """Return the descriptor; -1: it is closed."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """Return the name of this reader in the reactor's logs."""
        return "poetry listener"

    def doRead(self) -> None:
        """Accept as many connections as there is room for."""
        rests = self._lingering.rests
        taken = self._accept(AT_ONCE)
        if taken >= CROWD and rests:
            self._lingering.hurry()
        if not taken and self.connected and has_hung_up(self._socket):
            self.connectionLost(connectionDone)
            return
        self._limiter.pause_if_full()

    def connectionLost(self, reason: Failure) -> None:
        """Close, for a stop, the reactor, or a socket or a port that is closed already."""
        if not self.connected:
            return
        if has_hung_up(self._socket):
            _log.error(
                "cannot accept on {address}: its socket was shut down",
                event="cannot_accept",
                address=self.address,
                reason="its socket was shut down",
            )
        self.connected = False
        self._limiter.remove(self)
        self.pause()
        self._socket.close()
        self._lingering.close()
        try:
            close_port(self._port, reason)
        except Exception as error:
            _log.error(
                "cannot close {address} properly: {reason}",
                event="cannot_close",
                address=self.address,
                reason=str(error),
            )
        self._closed()

    # The limit

    def pause(self) -> None:
        """Leave new connections in the kernel's queue."""
        self._cancel()
        self._reactor.removeReader(self)
        self._lingering.hurry()

    def resume(self) -> None:
        """Accept connections, as soon as the reactor can wait for them (epoll_ctl(2): ENOSPC)."""
        self._cancel()
        try:
            self._reactor.addReader(self)
        except OSError as error:
            self._starve(error)

    def _starve(self, error: OSError) -> None:
        """Pause: the system has no room for more. Ask again later."""
        if not self._starved:
            self._starved = True
            _log.error(
                "cannot accept on {address}: {reason}; readers wait",
                event="cannot_accept",
                address=self.address,
                reason=error.strerror or str(error),
            )
        self.pause()
        self._again = self._reactor.callLater(AGAIN, self._try_again)

    def _try_again(self) -> None:
        self._again = None
        if not self._limiter.full:
            self.resume()

    def _cancel(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None

    # Accepting

    def _accept(self, most: float) -> int:
        """Accept up to `most` connections, as far as the limit has room; return how many."""
        if not self._port.connected:  # nothing else says so of a passed-in socket
            self.connectionLost(connectionDone)
            return 0
        most = min(self._limiter.room, most)
        taken, there = 0, accept_queue(self._socket)
        while taken < most and taken != there:
            try:
                handle, peer = self._socket.accept()
            except OSError as error:
                if error.errno not in _NEXT:
                    if self.connected and not isinstance(error, BlockingIOError):
                        self._starve(error)
                    break
            else:
                self._starved = False
                self._serve_or_reset(handle, peer)
            taken += 1
            if taken == there:
                there += accept_queue(self._socket)
        return taken

    def _serve_or_reset(self, handle: socket.socket, peer: Any) -> None:
        try:
            self._serve(handle, peer)
        except BaseException:
            make_close_abortive(handle)
            handle.close()
            log_connection_failure("made")

    def _serve(self, handle: socket.socket, peer: Any) -> None:
        """Send the fast way; what is left, or all, goes through a transport of Twisted's."""
        if self._unarmed:
            self._unarmed -= 1
            make_close_abortive(handle)
        poem = poem_for_all(self._factory) if self._plain else None
        size = 0
        if poem is not None:
            if handle.gettimeout() is not None:  # the application has set a default one
                handle.settimeout(None)
            size = send_at_once(handle, poem)
            if size == len(poem.data) and end_at_once(handle):
                protocol: Any = self._factory.buildProtocol(None)
                self._limiter.enter()
                Sent(handle, peer, poem, self._limiter, self._lingering).linger(protocol)
                return
        self._make_transport(handle, peer, size)

    def _make_transport(self, handle: socket.socket, peer: Any, size: int) -> None:
        port, factory = self._port, self._port.factory
        assert factory is not None
        protocol: Any = factory.buildProtocol(as_address(peer))
        inner = unwrapped(protocol)
        if inner is None:
            handle.close()
            return
        if size:
            protocol.taken = size
        conversation = inner if isinstance(inner, PoetryProtocol) else None
        accepted = Accepted(protocol, conversation, self._limiter)
        self._sessions += 1
        make: Any = port.transport
        peer = named(peer)
        accepted.makeConnection(make(handle, accepted, peer, port, self._sessions, self._reactor))
        if not accepted.sends:
            make_close_graceful(handle)

    def __repr__(self) -> str:
        return f"<Listener on {self.address} of {self._factory!r}>"
