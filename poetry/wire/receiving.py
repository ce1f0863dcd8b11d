"""The receiving side of a connection: how much is read at a time, and when nothing is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IPushProducer, ISSLTransport
from zope.interface import implementer

from poetry.wire.layers import innermost, is_closing, read_at_most

RECEIVE_BUFFER = 1024 * 1024
"""Bytes a read: 100 MB took 0.15 s with 1 MiB and 0.23 s with Twisted's 64 KiB (measured)."""

TLS_RECEIVE_BUFFER = 32 * 1024
"""Bytes a read under TLS. Twisted takes at most 32 KiB of OpenSSL's answers to a read."""


class Throttle:
    """Pauses reading while at least one holder wants it: the kernel holds the sender back."""

    def __init__(self, transport: Any, fail: Callable[[BaseException], object]) -> None:
        """@param fail: is called with the error if the reactor refuses to pause or to resume."""
        self._transport = transport
        self._fail = fail
        self._holders: set[object] = set()

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


@implementer(IPushProducer)
class _Answers:
    """The producer of what TLS answers by itself, as to each KeyUpdate (RFC 8446, 4.6.3).

    From a sender that takes no answers no more is read: they would fill the memory.
    """

    def __init__(self, throttle: Throttle, below: Any) -> None:
        """@param below: the transport below TLS, whose producer this is."""
        self._throttle = throttle
        self._below = below

    def pauseProducing(self) -> None:
        """Read no more: the transport's buffer is full."""
        self._throttle.pause(self)

    def resumeProducing(self) -> None:
        """Read on: the transport's buffer is empty. One that is closing may close now."""
        if is_closing(self._below):
            self._below.unregisterProducer()
        else:
            self._throttle.resume(self)

    def stopProducing(self) -> None:
        """Do nothing: the connection is lost, and its protocol is told."""


def start_receiving(transport: Any, fail: Callable[[BaseException], object]) -> Throttle:
    """Choose how much is read at a time, and how a sender is held back.

    @param fail: as of `Throttle`.
    """
    throttle = Throttle(transport, fail)
    if ISSLTransport.providedBy(transport):
        read_at_most(TLS_RECEIVE_BUFFER, transport)
        below = innermost(transport)
        # Register below TLS, which would not close while it had a producer.
        with suppress(RuntimeError):  # a wrapper has registered another
            below.registerProducer(_Answers(throttle, below), True)
    else:
        read_at_most(RECEIVE_BUFFER, transport)
    return throttle
