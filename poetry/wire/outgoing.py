"""One outgoing poem: its bytes go piece by piece, and its stream ends after the last of them.

`Sender` has a subclass for each kind of transport (`plain`, `tls`, `buffered`). While there is more
to send it is the transport's producer, so that whatever closes the connection tells it, and a poem
that is not out ends in a reset.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPullProducer, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from poetry.wire.closing import make_close_abortive, reset_before_close
from poetry.wire.poem import Poem

_log = Logger()

SHORT = 16 * 1024
"""Bytes that a fresh socket takes at once: Linux's default send buffer (tcp(7), tcp_wmem)."""


class Pace(NamedTuple):
    """A rate limit: `num_bytes` at a time, `delay` seconds apart on `clock` (an IReactorTime)."""

    num_bytes: int
    delay: float
    clock: Any


class Owner(Protocol):
    """The conversation that sends a poem; its `outcome` is None while the transfer lasts."""

    outcome: str | None

    def streamEnded(self) -> None:
        """Handle the end of our stream: the kernel has its last byte."""

    def readConnectionLost(self) -> None:
        """Handle the end of the reader's stream."""

    def connectionLost(self, reason: Failure) -> None:
        """Handle the loss of the connection."""

    def fail(self, error: BaseException) -> None:
        """Abort the transfer: the poem cannot be sent."""

    def truncate(self, error: BaseException) -> None:
        """Abort the transfer: the connection failed before the end of the poem."""


class Outgoing:
    """A poem for one reader, and its progress: the part that a conversation knows of it.

    @cvar after_handshake: whether the poem waits for the transport's handshake.
    @ivar size: bytes handed over so far.
    @ivar begun: whether its sending has begun.
    @ivar ended: whether the kernel has the last byte and the end of the stream.
    @ivar paced: whether there is a rate limit: between two sends the reactor does not watch it.
    """

    after_handshake: ClassVar[bool] = False
    begun = False
    ended = False
    paced = False

    def __init__(self, poem: Poem, size: int) -> None:
        self.poem = poem
        self.size = size

    def start(self) -> None:
        """Begin to send, unless that is done."""

    def hold(self) -> None:
        """Make a close reset the connection, unless the poem has begun."""

    def forget(self) -> None:
        """Drop the poem, at the end of the connection: in a reference cycle it could stay in memory
        until the next collection.
        """
        del self.poem

    @property
    def unfinished(self) -> bool:
        """Whether it has begun, and the last byte is not handed over."""
        return self.begun and self.size < len(self.poem.data)

    @property
    def pacing(self) -> bool:
        """Whether the next bytes are not due yet, so that the reader cannot be blamed."""
        return False

    @property
    def backed_up(self) -> bool:
        """Whether no input may be read: the transport would buffer answers, and is full."""
        return False

    def was_delivered(self, reason: Failure) -> bool:
        """Check whether the reader ended properly after our end of the stream.

        @param reason: of the lost connection.
        """
        return self.ended and isinstance(reason.value, ConnectionDone)


@implementer(IPushProducer, IPullProducer)
class Sender(Outgoing, ABC):
    """Sends a poem: one subclass for each kind of transport.

    @cvar turn: most bytes to hand over at a time.
    @cvar pushes: whether it is an IPushProducer, which sends until its transport pauses it, rather
        than an IPullProducer. With a pace it always is.
    """

    turn: ClassVar[int]
    pushes: ClassVar[bool] = False

    _paused = False
    _left = 0  # bytes that are due, and not handed over
    _consumer: Any = None
    _timer: Any = None

    def __init__(
        self, transport: Any, poem: Poem, pace: Pace | None, owner: Owner, size: int = 0
    ) -> None:
        """@param transport: the connection's own, without a `Sealed` around it.

        @param pace: None: as fast as the reader reads.
        @param size: bytes of the poem that the kernel has already.
        """
        super().__init__(poem, size)
        self._transport = transport
        self._pace = pace
        self.paced = pace is not None
        self._owner = owner

    def start(self) -> None:
        """Begin to send, once."""
        if not self.begun:
            self.begun = True
            self.unregister()
            self._start()

    def hold(self) -> None:
        """Make a close reset the connection until the poem begins: as its producer."""
        if not self.begun and not self.after_handshake:
            self._stand_by()

    def _stand_by(self) -> None:
        make_close_abortive(self._transport)
        self._consumer = self._transport
        self._transport.registerProducer(self, True)

    def forget(self) -> None:
        """Drop the poem, and what refers back to the connection."""
        self._cancel()
        del self.poem, self._owner, self._transport

    @property
    def pacing(self) -> bool:
        """Whether the next bytes are not due yet."""
        return self._timer is not None

    @abstractmethod
    def _start(self) -> None:
        """Send what goes at once, and register for the rest."""

    @abstractmethod
    def _hand_over(self, limit: int) -> int:
        """Hand up to `limit` bytes to the kernel or the transport; return how many it took.

        @raise OSError: where the connection is broken.
        """

    @abstractmethod
    def _end(self) -> None:
        """End the stream: all is handed over."""

    def send(self, limit: int) -> bool:
        """Hand over up to `limit` bytes, and end the stream after the last one.

        @return: whether there is more to send.
        """
        owner = self._owner  # a wrapper may lose the connection in between
        try:
            self.size += self._hand_over(limit)
            if self.size < len(self.poem.data):
                return True
            self._end()
        except OSError as error:
            owner.truncate(error)
        except Exception as error:  # of a wrapper: Twisted would end the stream, or nothing would
            if owner.outcome is None:
                _log.failure("a transport failed on its poem", event="hook_failed")
            owner.fail(error)
        return False

    def finish(self) -> None:
        """Note that the stream is ended, and call the owner."""
        self.ended = True
        self._owner.streamEnded()

    def register(self) -> None:
        """Become the producer of the transport, and send what it takes."""
        self._consumer = self._transport
        streaming = self.pushes or self._pace is not None
        self._transport.registerProducer(self, streaming)
        if streaming:
            self.resumeProducing()

    def unregister(self) -> None:
        """Unregister from the transport, if registered; otherwise those for tests would raise."""
        if self._consumer is not None:
            consumer, self._consumer = self._consumer, None
            consumer.unregisterProducer()

    # IPushProducer, IPullProducer

    def resumeProducing(self) -> None:
        """Send the next bytes, if they are due: the transport has room."""
        self._paused = False
        if self._pace is None:
            while self.send(self.turn) and self.pushes and not self._paused:
                pass
        elif self._timer is None:
            self._send_paced(self._pace)

    def _send_paced(self, pace: Pace) -> None:
        """Send what is due, a turn at a time while there is room; the next is due after a delay.

        A kernel that takes less than it is offered is asked again with the next bytes.
        """
        self._left = self._left or pace.num_bytes
        while self._left and not self._paused:
            before, offered = self.size, min(self._left, self.turn)
            if not self.send(offered):
                return
            self._left = self._left - offered if self.size - before == offered else 0
        if not self._left:
            self._timer = pace.clock.callLater(pace.delay, self._due)

    def _due(self) -> None:
        self._timer = None
        if not self._paused:
            self.resumeProducing()

    def pauseProducing(self) -> None:
        """Wait: the transport's buffer is full."""
        self._paused = True

    def stopProducing(self) -> None:
        """Reset the connection: the transport is going, and the poem is not out."""
        self._cancel()
        reset_before_close(self._transport)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
