"""The wire: one protocol for both ends, its two factories and its errors.

The side that has the poem sends its bytes and ends the stream; the other side reads until the end
(RFC 865's shape). Nothing else marks a poem as complete, so the end of the stream is sacred: it is
sent after the last byte of a poem and at no other time; whatever else ends a transfer resets it.

How a poem is sent, so that this holds and costs little:

- On a plain socket each reader is a pull producer that holds one number, its offset in the one
  `Poem` that all share. The kernel is given what it has room for, once a reactor turn.
- The socket is armed (`SO_LINGER` 1, 0) before the first byte of a poem that the kernel may not
  take at once: from there on even a SIGKILL ends in a reset. It is disarmed when all is given.
- Then only the sending half is shut down and input is discarded until the reader ends, because
  closing a socket with unread input resets it and destroys what is still on its way.
- TLS cannot half-close in Twisted. There the poem is written in chunks once the handshake is done,
  and `loseConnection` ends it with a close_notify.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

from twisted.copyright import version
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IConnector,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IProtocolNegotiationFactory,
    IPullProducer,
    ISSLTransport,
)
from twisted.internet.protocol import (
    ClientFactory,
    Factory,
    Protocol,
    ServerFactory,
    connectionDone,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import alsoProvides, classImplements, implementer

from poetry.errors import (
    EmptyPoem,
    PoemError,
    PoemMismatch,
    PoemStopped,
    PoemTimedOut,
    PoemTooLong,
    PoemTruncated,
)
from poetry.poem import Poem

__all__ = [
    "EmptyPoem",
    "PoemError",
    "PoemMismatch",
    "PoemStopped",
    "PoemTimedOut",
    "PoemTooLong",
    "PoemTruncated",
    "PoetryClientFactory",
    "PoetryFactory",
    "PoetryProtocol",
    "PoetryServerFactory",
]

SHORT = 16 * 1024
"""Bytes that a fresh socket takes at once: Linux's default send buffer (tcp(7), tcp_wmem)."""

TURN = 2 * 1024 * 1024
"""Most bytes for one reader in a reactor turn, so that a fast one starves nobody: nginx's
sendfile_max_chunk. A 10 MB poem costs as much CPU with 4 MiB, or without a limit; with 512 KiB 1.1
to 1.6 times as much (measured)."""

CHUNK = 64 * 1024
"""Bytes a write where there is no socket to send on. A stalled TLS reader costs 117 kB with 64 KiB,
183 kB with 128 KiB, 316 kB with 256 KiB (measured)."""

RECEIVE_BUFFER = 1024 * 1024
"""Bytes a read: 100 MB took 0.15 s with 1 MiB and 0.23 s with Twisted's 64 KiB (measured)."""

_log = Logger()
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_SEND_ON_CLOSE = struct.pack("ii", 0, 0)
_TLS_SENT_SHUTDOWN, _TLS_RECEIVED_SHUTDOWN = 1, 2  # openssl/ssl.h
_MORE = getattr(socket, "MSG_MORE", 0)  # the end of the stream follows: one packet for both
_KERNEL_IS_FULL = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ENOBUFS})


@implementer(IPullProducer, IHandshakeListener)
class PoetryProtocol(Protocol):
    """Sends its factory's poem in `connectionMade` when there is one, and receives one otherwise.

    Built by a `PoetryServerFactory` or a `PoetryClientFactory`.

    @ivar size: bytes of the poem sent (handed to the transport) or received so far.
    @ivar started: when the connection was made, in seconds of `time.monotonic`.
    @ivar finished: whether all of the poem is handed over and the stream is ended.
    @ivar outcome: None while it lasts, then "sent", "received", a `PoemError.outcome`, or
        "handshake" where TLS did not come up.
    @ivar error: why it failed, where it did.
    """

    factory: PoetryFactory
    transport: Any  # an ITransport, and whatever else the reactor's transports provide

    size = 0
    started = 0.0
    finished = False
    outcome: str | None = None
    error: BaseException | None = None
    _poem: Poem | None = None
    _collected: bytearray | None = None
    _socket: socket.socket | None = None
    _tls: Any = None
    _wrapped = False
    _producing = False
    _armed = False
    _readerEnded = False
    _delivered = False
    _mark: tuple[int, int] | None = None
    _markedAt = 0.0

    def connectionMade(self) -> None:
        """Start: send if there is a poem, else get ready to receive."""
        self.started = monotonic()
        self._poem = self.factory.sending
        self.factory.connections.add(self)
        transport: Any = self.transport
        if isinstance(transport, FileDescriptor):
            self._socket = transport.getHandle()  # type: ignore[attr-defined]
        elif _is_tls(transport):
            self._tls = transport.getHandle()
        else:
            self._wrapped = hasattr(_innermost(transport), "socket")
        if self._poem is None:
            _innermost(self.transport).bufferSize = RECEIVE_BUFFER
        elif self._tls is None:
            self.startSending()

    def handshakeCompleted(self) -> None:
        """TLS is up: only now can a poem be sent, or an early end be kept from looking clean."""
        if self._poem is not None:
            self.startSending()

    # Sending

    def startSending(self) -> None:
        """Hand over at once what the kernel takes; let the transport pull the rest."""
        assert self._poem is not None
        if self._socket is not None:
            if len(self._poem.data) > SHORT:
                self._resetOnClose()
            self.handOver(TURN)
        elif len(self._poem.data) <= SHORT and not self._wrapped:
            self.handOver(SHORT)
        if not self.finished and self.outcome is None:
            self.produce(streaming=False)

    def produce(self, *, streaming: bool) -> None:
        """Become the transport's producer, with a reset as the only end but our own."""
        alsoProvides(self, IHalfCloseableProtocol)
        if self._tls is None:
            self._resetOnClose()
        else:
            self._tls.set_shutdown(_TLS_SENT_SHUTDOWN)
        self._producing = True
        self.transport.registerProducer(self, streaming)

    def resumeProducing(self) -> None:
        """The transport has room: give it more."""
        if self._socket is None:
            self.handOver(CHUNK)
            return
        self.handOver(TURN)
        if not self.finished and self.outcome is None:
            self.transport.startWriting()

    def stopProducing(self) -> None:
        """The transport is going, and the poem is not out: the reader must not see a clean end."""
        self._resetOnClose()

    def handOver(self, limit: int) -> None:
        """Give the kernel or the transport up to `limit` bytes."""
        assert self._poem is not None
        try:
            if self._socket is not None:
                flags = 0 if self._producing else _MORE
                self.size += self._poem.send(self._socket, self.size, limit, flags)
            else:
                self._write(bytes(self._poem.view[self.size : self.size + limit]))
            if self.size == len(self._poem.data):
                self._end()
        except OSError as error:
            if error.errno not in _KERNEL_IS_FULL:
                self.fail(PoemTruncated(self.size, Failure(error)))

    def _write(self, data: bytes) -> None:
        if self._tls is None:
            self.transport.write(data)
        elif _innermost(self.transport).disconnecting:
            # Twisted drops what is written after the peer's close_notify, or its nonsense.
            raise ConnectionResetError(errno.ECONNRESET, "the reader ended TLS before the poem")
        else:
            # Twisted answers a peer's close_notify with one of ours, which must not leave early:
            # between writes OpenSSL is told that it has been sent.
            from twisted.protocols.tls import TLSMemoryBIOProtocol

            self._tls.set_shutdown(0)
            # Not `transport.write`, which may keep small writes for later.
            TLSMemoryBIOProtocol.write(self.transport, data)
            self._tls.set_shutdown(_TLS_SENT_SHUTDOWN)
        self.size += len(data)

    def _end(self) -> None:
        """The last byte is handed over: end the stream, and wait for the reader to end."""
        if self._wrapped:
            self._wrapped = False  # it is in Twisted's buffer: wait until the kernel has it
            return
        self.finished = True
        if self._producing:
            self.transport.unregisterProducer()
        if self._armed:
            handle = _innermost(self.transport).socket
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _SEND_ON_CLOSE)
        if self._tls is not None:
            self._tls.set_shutdown(0)
        if self._socket is None:
            self.transport.loseConnection()
            return
        self._socket.shutdown(socket.SHUT_WR)
        self.transport._shouldShutdown = False  # it is done: saves a system call
        if self._readerEnded:
            self._letGo()

    def readConnectionLost(self) -> None:
        """The reader sends no more; it may go on reading."""
        self._readerEnded = True
        if self.finished:
            self._letGo()

    def writeConnectionLost(self) -> None:
        """Never called: the stream is ended on the socket itself."""

    def _letGo(self) -> None:
        """Close plainly what the kernel has all of: it goes on delivering."""
        self._delivered = True
        _innermost(self.transport).loseConnection()

    def _resetOnClose(self) -> None:
        transport = _innermost(self.transport)
        handle = getattr(transport, "socket", None)
        if handle is not None and not self._armed:
            self._armed = True
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            # Else Twisted shuts the socket down before it closes it, which is a clean end.
            transport._shouldShutdown = False

    # Receiving

    def dataReceived(self, data: bytes) -> None:
        """Collect the poem. A sender has nothing to hear, and discards it."""
        if self._poem is not None or self.outcome is not None:
            return
        self.size += len(data)
        limit = self.factory.max_bytes
        if limit is not None and self.size > limit:
            self.fail(PoemTooLong(limit))
        else:
            self.chunkReceived(data)

    def chunkReceived(self, data: bytes) -> None:
        """Some of the poem came. Override to do without one large `bytes`."""
        if self._collected is None:
            self._collected = bytearray()
        self._collected += data

    # The end

    def fail(self, error: Exception) -> None:
        """Give this transfer up for `error`, once: the other end sees a reset."""
        if self.outcome is None:
            self.outcome = getattr(error, "outcome", PoemError.outcome)
            self.error = error
            self.transport.abortConnection()
            _tell(self.factory.poemFailed, Failure(error))

    def stop(self) -> None:
        """End it now: with a plain close where the kernel has all of it, else with a reset."""
        if self.finished and (self._socket is not None or not self._queued()):
            self._letGo()
        else:
            self.fail(PoemStopped())

    def sweep(self, now: float, idle: float, linger: float) -> None:
        """Give up on a peer that takes nothing for `idle` seconds, and let one go that has had it
        all for `linger` seconds and does not end. `now` is in seconds.

        Progress is what the peer has acknowledged: the kernel buffers megabytes, so what the
        process can hand over says little about the reader.
        """
        queued = self._queued()
        mark = (self.size, queued)
        if mark != self._mark:
            self._mark, self._markedAt = mark, now
        elif self.finished and not queued:
            if self._tls is not None:
                # A reader may wait for the FIN as well (ncat), before it ends.
                with suppress(OSError):
                    _innermost(self.transport).socket.shutdown(socket.SHUT_WR)
            if now - self._markedAt >= linger:
                self._letGo()
        elif now - self._markedAt >= idle:
            self.fail(PoemTimedOut(idle, self.size))

    def _queued(self) -> int:
        """Bytes in the kernel that the peer has not acknowledged (tcp(7), SIOCOUTQ)."""
        handle = getattr(_innermost(self.transport), "socket", None)
        if handle is None:
            return 0
        with suppress(OSError):
            answer = fcntl.ioctl(handle.fileno(), termios.TIOCOUTQ, bytes(4))
            return int.from_bytes(answer, sys.byteorder)
        return 0

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Say how it went, once, to the factory's hooks and its observers."""
        self.factory.connections.discard(self)
        if self.outcome is None:
            self._conclude(reason)
        self._socket = self._tls = self._collected = None
        for observer in self.factory.observers:
            _tell(observer, self)

    def _conclude(self, reason: Failure) -> None:
        done = self._endedByPeer(reason)
        if self._poem is not None and self.finished and (done or self._delivered):
            self.outcome = "sent"
            _tell(self.factory.poemSent, self._poem.data)
        elif self._poem is None and done and self.size:
            self.outcome = "received"
            _tell(self.factory.poemReceived, bytes(self._collected or b""))
        elif self._poem is None and done:
            self.fail(EmptyPoem())
        elif self.size or reason.check(ConnectionDone, ConnectionLost):
            self.fail(PoemTruncated(self.size, reason))
        else:
            self.outcome = "handshake"
            self.error = reason.value
            _tell(self.factory.poemFailed, reason)

    def _endedByPeer(self, reason: Failure) -> bool:
        """Whether the other end ended its stream cleanly: not a reset, and not a close of ours."""
        if self._tls is None:
            ended = isinstance(reason.value, ConnectionDone)
        elif not isinstance(reason.value, ConnectionDone | ConnectionLost):
            ended = False  # a fatal alert sets OpenSSL's RECEIVED_SHUTDOWN as well
        elif self.finished:
            # Many readers close without a close_notify: all that is known is what has left.
            ended = not _innermost(self.transport).dataBuffer
        else:
            ended = bool(self._tls.get_shutdown() & _TLS_RECEIVED_SHUTDOWN)
        return ended and (self.finished or not getattr(self.transport, "disconnecting", False))


def _tell(hook: Callable[[Any], object], what: object) -> None:
    """Call a hook or an observer; what it raises must not keep others from being told."""
    try:
        hook(what)
    except Exception:
        _log.failure("{hook} raised", event="hook_failed", hook=repr(hook))


def _innermost(transport: Any) -> Any:
    """The reactor's own transport, under TLS and other wrappers."""
    while (inner := getattr(transport, "transport", None)) is not None:
        transport = inner
    return transport


def _is_tls(transport: Any) -> bool:
    """Whether this is Twisted's TLS itself, which alone tells of its handshake."""
    if not ISSLTransport.providedBy(transport):
        return False
    from twisted.protocols.tls import TLSMemoryBIOProtocol

    return isinstance(transport, TLSMemoryBIOProtocol)


class PoetryFactory(Factory):
    """What both factories share. Who connects and who has the poem are independent.

    @ivar name: what logs call the poem.
    @ivar connections: the live connections; several factories may share one set.
    @ivar observers: called with each `PoetryProtocol` when its connection is lost.
    @ivar max_bytes: the longest poem to receive, in bytes; None: any. On a connection that receives
        more, `poemFailed` gets a `PoemTooLong`.
    """

    protocol: Callable[..., PoetryProtocol] = PoetryProtocol  # type: ignore[assignment]
    noisy = False
    name = "poem"
    max_bytes: int | None = None
    observers: Sequence[Callable[[PoetryProtocol], object]] = ()
    sending: Poem | None = None

    def __init__(self, poem: bytes | None = None) -> None:
        """@param poem: what to send; None: receive.

        @raise EmptyPoem: for `b""`.
        @raise TypeError: for what is not bytes.
        """
        self.connections: set[PoetryProtocol] = set()
        self.poem = poem

    @property
    def poem(self) -> bytes | None:
        """The poem that new connections get. Those in flight keep the one that they began."""
        return None if self.sending is None else self.sending.data

    @poem.setter
    def poem(self, poem: bytes | None) -> None:
        if poem is not None and not isinstance(poem, bytes):
            raise TypeError(f"a poem is bytes or None, not {type(poem).__name__}")
        if poem == b"":
            raise EmptyPoem
        if poem == self.poem:
            return
        if self.sending is not None:
            self.sending.retire()
        self.sending = None if poem is None else Poem(poem)

    def poemReceived(self, poem: bytes) -> None:
        """A whole poem was received. Override."""

    def poemSent(self, poem: bytes) -> None:
        """A whole poem was sent, and its reader ended after it. Override."""

    def poemFailed(self, reason: Failure) -> None:
        """A poem was not received, or not sent: `PoemError`, or what TLS failed with. Override."""


class PoetryServerFactory(PoetryFactory, ServerFactory):
    """For whoever connects: sends them `poem`, or receives theirs where it is None."""

    def acceptableProtocols(self) -> list[bytes]:
        """For ALPN (IProtocolNegotiationFactory), which curl and browsers offer."""
        return [b"http/0.9", b"http/1.0", b"http/1.1"]


if tuple(map(int, version.split(".")[:2])) >= (26, 4):  # pragma: no branch (of one Twisted)
    # From then on Twisted refuses TLS to who offers ALPN and gets none; before, it ignores it.
    classImplements(PoetryServerFactory, IProtocolNegotiationFactory)


class PoetryClientFactory(PoetryFactory, ClientFactory):
    """For one connection to a server: receives its poem, or brings it `poem`.

    @ivar received: a Deferred that fires once, with the poem (bytes; a poem of our own once its
        reader has it), or a Failure: a `PoemError`, or what kept `connectTCP` from connecting.
        An endpoint tells that to its `connect` Deferred alone, as it does for every factory.
    """

    def __init__(self, poem: bytes | None = None) -> None:
        super().__init__(poem)
        self.received: Deferred[bytes] = Deferred()

    def buildProtocol(  # type: ignore[override]
        self, addr: IAddress | None
    ) -> PoetryProtocol:
        """Declare the half-close before an endpoint wraps the protocol: it looks no second time."""
        protocol = super().buildProtocol(addr)
        assert isinstance(protocol, PoetryProtocol)
        if self.sending is not None:
            alsoProvides(protocol, IHalfCloseableProtocol)
        return protocol

    def poemReceived(self, poem: bytes) -> None:
        """Fire `received`."""
        self._fire(poem)

    def poemSent(self, poem: bytes) -> None:
        """Fire `received`."""
        self._fire(poem)

    def poemFailed(self, reason: Failure) -> None:
        """Fire `received`."""
        self._fire(reason)

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:  # noqa: ARG002
        """Fire `received`: there was no connection."""
        self._fire(reason)

    def _fire(self, result: bytes | Failure) -> None:
        if not self.received.called:
            self.received.callback(result)
