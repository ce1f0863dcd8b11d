"""One incoming poem: how much is read at a time, when nothing is, and whether it came whole."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IPushProducer, ISSLTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from poetry.wire.closing import close_at_end
from poetry.wire.layers import RECEIVED_SHUTDOWN, innermost, is_closing, is_tls, read_at_most

RECEIVE_BUFFER = 1024 * 1024
"""Bytes a read: 100 MB took 0.15 s with 1 MiB and 0.23 s with Twisted's 64 KiB (measured)."""

TLS_RECEIVE_BUFFER = 32 * 1024
"""Bytes a read under TLS. Twisted takes at most 32 KiB of OpenSSL's answers to a read."""


class Incoming:
    """A poem from one sender: how it is held back, and whether its stream ended whole.

    Reading is paused while at least one holder wants it: then the kernel holds the sender back.

    @ivar size: bytes received so far.
    @ivar collected: those of them that are kept.
    """

    def __init__(self, transport: Any, fail: Callable[[BaseException], object]) -> None:
        """@param fail: is called with the error if the reactor refuses to pause or to resume."""
        self.size = 0
        self.collected = bytearray()
        self._transport = transport
        self._fail = fail
        self._holders: set[object] = set()
        self._ended = False
        # OpenSSL's connection, which Twisted forgets before it is asked how the stream ended.
        self._tls = transport.getHandle() if is_tls(transport) else None

    def start(self) -> None:
        """Choose how much is read at a time."""
        if ISSLTransport.providedBy(self._transport):
            read_at_most(TLS_RECEIVE_BUFFER, self._transport)
            below = innermost(self._transport)
            # Register below TLS, which would not close while it had a producer.
            with suppress(RuntimeError):  # a wrapper has registered another
                below.registerProducer(_Answers(self, below), True)
        else:
            read_at_most(RECEIVE_BUFFER, self._transport)

    def forget(self) -> None:
        """Drop what was collected, at the end of the connection."""
        self.collected = bytearray()

    def pause(self, holder: object) -> None:
        """Read no more."""
        self._holders.add(holder)
        self._call(self._transport.pauseProducing)

    def resume(self, holder: object) -> None:
        """Read on, unless there is another holder."""
        self._holders.discard(holder)
        if not self._holders:
            self._call(self._transport.resumeProducing)

    def _call(self, method: Callable[[], object]) -> None:
        try:
            method()
        except Exception as refused:
            self._fail(refused)

    def close_at_end(self) -> None:
        """Close the connection: the sender has ended, or has reset it."""
        self._ended = not is_closing(self._transport)
        close_at_end(self._transport)

    def was_whole(self, reason: Failure) -> bool:
        """Check whether the sender ended its stream cleanly, rather than by a reset, and before us.

        Under TLS that takes a close_notify, whatever ends TCP. A fatal alert sets OpenSSL's flag as
        well, but has another reason.

        @param reason: of the lost connection.
        """
        if is_closing(self._transport) and not self._ended:
            return False
        if self._tls is None:
            return isinstance(reason.value, ConnectionDone)
        ended = isinstance(reason.value, (ConnectionDone, ConnectionLost))
        return ended and bool(self._tls.get_shutdown() & RECEIVED_SHUTDOWN)


@implementer(IPushProducer)
class _Answers:
    """The producer of what TLS answers by itself, as to each KeyUpdate (RFC 8446, 4.6.3).

    From a sender that takes no answers no more is read: they would fill the memory.
    """

    def __init__(self, incoming: Incoming, below: Any) -> None:
        """@param below: the transport below TLS, whose producer this is."""
        self._incoming = incoming
        self._below = below

    def pauseProducing(self) -> None:
        """Read no more: the transport's buffer is full."""
        self._incoming.pause(self)

    def resumeProducing(self) -> None:
        """Read on: the transport's buffer is empty. One that is closing may close now."""
        if is_closing(self._below):
            self._below.unregisterProducer()
        else:
            self._incoming.resume(self)

    def stopProducing(self) -> None:
        """Do nothing: the connection is lost, and its protocol is told."""
