"""What the kinds of transport share: how a poem is handed over piece by piece, fast or slowly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from twisted.internet.interfaces import IHalfCloseableProtocol, IPullProducer, IPushProducer
from twisted.python.failure import Failure
from zope.interface import alsoProvides, implementer

from poetry.errors import PoemTruncated
from poetry.wire.kernel import FULL
from poetry.wire.layers import forbid_end, reset
from poetry.wire.poem import Poem

if TYPE_CHECKING:
    from poetry.protocol import PoetryProtocol

SHORT = 16 * 1024
"""Bytes that a fresh socket takes at once: Linux's default send buffer (tcp(7), tcp_wmem)."""


class Pace(NamedTuple):
    """The slow poetry server: `num_bytes` at a time, `delay` seconds apart on `clock`."""

    num_bytes: int
    delay: float
    clock: Any


class Wire(ABC):
    """One kind of transport. An instance has no state, and serves all connections of its kind.

    @ivar handshakes: whether a poem has to wait for the transport's handshake.
    @ivar turn: most bytes for one reader at a time.
    """

    handshakes = False
    turn: int

    def send(self, protocol: PoetryProtocol, poem: Poem) -> None:  # noqa: ARG002
        """Begin to send, and go on until the last byte: that takes an object of its own."""
        sender = Sender(self, protocol)
        pace = protocol.factory.pace
        protocol.sender = sender if pace is None else SlowSender(sender, pace)
        protocol.sender.start()

    def write(self, protocol: PoetryProtocol, poem: Poem, limit: int) -> bool:
        """Hand over up to `limit` bytes, and end the stream after the last one.

        @return: whether there is more to send.
        """
        try:
            protocol.size += self.handOver(protocol, poem, limit)
            if protocol.size < len(poem.data):
                return True
            self.end(protocol, poem)
        except OSError as error:
            if error.errno in FULL:
                return True
            protocol.fail(PoemTruncated(protocol.size, Failure(error)))
        return False

    @abstractmethod
    def handOver(self, protocol: PoetryProtocol, poem: Poem, limit: int) -> int:
        """Give the kernel or the transport what comes next; say how many bytes it took."""

    def askAgain(self, transport: Any) -> None:  # noqa: B027 (most need not)
        """Have the transport ask for more, where it does not by itself."""

    @abstractmethod
    def end(self, protocol: PoetryProtocol, poem: Poem) -> None:
        """All is handed over: end the stream, and tell `protocol.streamEnded`."""

    @abstractmethod
    def wasReceived(self, transport: Any, reason: Failure) -> bool:
        """Whether the peer ended its stream cleanly: not with a reset, and not because we did."""

    @abstractmethod
    def wasSent(self, reason: Failure) -> bool:
        """Whether the peer ended properly after our stream had ended."""


class Producer(Protocol):
    """What a protocol keeps of who sends for it.

    @ivar waits: whether it is we who keep the peer waiting.
    """

    @property
    def waits(self) -> bool: ...
    def start(self) -> None: ...


@implementer(IPullProducer)
class Sender:
    """Sends what is left of a poem, as its transport asks for it."""

    __slots__ = ("protocol", "wire")
    waits = False

    def __init__(self, wire: Wire, protocol: PoetryProtocol) -> None:
        self.wire = wire
        self.protocol = protocol

    def start(self) -> None:
        """Become the transport's producer."""
        self.register(self, streaming=False)

    def register(self, producer: object, *, streaming: bool) -> None:
        """Make `producer` the transport's. From here on only we can end the stream."""
        alsoProvides(self.protocol, IHalfCloseableProtocol)
        forbid_end(self.protocol.transport)
        self.protocol.transport.registerProducer(producer, streaming)

    def write(self, limit: int) -> bool:
        """Hand over up to `limit` bytes; say whether there is more to send."""
        poem = self.protocol.sending
        return poem is not None and self.wire.write(self.protocol, poem, limit)

    def resumeProducing(self) -> None:
        """The transport has room."""
        if self.write(self.wire.turn):
            self.wire.askAgain(self.protocol.transport)

    def stopProducing(self) -> None:
        """The transport is going, and the poem is not out: its reader must not see an end."""
        reset(self.protocol.transport)


@implementer(IPushProducer)
class SlowSender:
    """Sends a few bytes at a time; a reader that lags behind pauses it."""

    __slots__ = ("_pace", "_sender", "_timer")

    def __init__(self, sender: Sender, pace: Pace) -> None:
        self._sender = sender
        self._pace = pace
        self._timer: Any = None

    @property
    def waits(self) -> bool:
        """Whether the next bytes are not due yet."""
        return self._timer is not None

    def start(self) -> None:
        """Become the transport's producer, and begin at once."""
        self._sender.register(self, streaming=True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        """Send a few bytes, and some more after the delay."""
        self._timer = None
        if self._sender.write(self._pace.num_bytes):
            self._timer = self._pace.clock.callLater(self._pace.delay, self.resumeProducing)

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def stopProducing(self) -> None:
        """The transport is going."""
        self.pauseProducing()
        self._sender.stopProducing()
