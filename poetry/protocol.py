"""One protocol for both ends, and its two factories.

The side that has the poem sends its bytes and ends the stream; the other side reads until the end
(RFC 865's shape). Nothing else marks a poem as complete: `poetry.wire` keeps that end sacred.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from time import monotonic
from typing import Any

from twisted.copyright import version
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IConnector,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IProtocolNegotiationFactory,
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
from twisted.python.reflect import safe_repr
from zope.interface import alsoProvides, classImplements, implementer

from poetry.errors import EmptyPoem, PoemError, PoemStopped, PoemTooLong, PoemTruncated
from poetry.wire import Wire, wire_of
from poetry.wire.layers import discard_input, innermost, receive, reset
from poetry.wire.poem import Poem
from poetry.wire.sender import Pace, Producer

_log = Logger()


class State(Enum):
    """Where a connection is; see `PoetryProtocol`."""

    OPEN = "open"
    ENDED = "ended"
    RELEASED = "released"
    RECEIVED = "received"
    FAILED = "failed"


@implementer(IHandshakeListener)
class PoetryProtocol(Protocol):
    """Sends its factory's poem in `connectionMade` when there is one, and receives one otherwise.

    Built by a `PoetryServerFactory` or a `PoetryClientFactory`::

        sending:    OPEN -> ENDED -> RELEASED
        receiving:  OPEN -> RECEIVED
        either:     OPEN or ENDED -> FAILED

    ENDED: the kernel has the last byte and the end of the stream, and the reader is to end as well.
    RELEASED: the connection is closed plainly, and the kernel delivers. FAILED: it is reset.

    @ivar state: one of these.
    @ivar size: bytes of the poem sent (handed to the transport) or received so far.
    @ivar started: when the connection was made, in seconds of `time.monotonic`.
    @ivar outcome: None while it lasts, then "sent", "received", a `PoemError.outcome`, or
        "handshake" where TLS did not come up.
    @ivar error: why it failed, where it did.
    @ivar sending: the poem that it sends, while it lasts; None: it receives.
    @ivar wire: how it sends and receives; the kind of its transport.
    @ivar sender: what sends the rest of a poem that was not taken at once.
    """

    factory: PoetryFactory
    transport: Any  # an ITransport, and whatever else the reactor's transports provide

    state = State.OPEN
    size = 0
    started = 0.0
    outcome: str | None = None
    error: BaseException | None = None
    sending: Poem | None = None
    sender: Producer | None = None
    wire: Wire
    _collected: bytearray | None = None

    def makeConnection(self, transport: Any) -> None:
        """Begin. A subclass whose `connectionMade` raises leaves no reader waiting for ever."""
        self.started = monotonic()
        self.factory.connections.add(self)
        self.wire = wire_of(transport)
        try:
            super().makeConnection(transport)  # type: ignore[no-untyped-call]
        except BaseException as error:
            self.fail(error)
            raise

    def connectionMade(self) -> None:
        """Send if there is a poem, and receive one otherwise."""
        self.sending = self.factory.sending
        if self.sending is None:
            receive(self.transport)
        elif not self.wire.handshakes:
            self.wire.send(self, self.sending)

    def handshakeCompleted(self) -> None:
        """TLS is up: only now can a poem be sent."""
        if self.sending is not None:
            self.wire.send(self, self.sending)

    def streamEnded(self) -> None:
        """Our stream is ended, after the last byte: wait for the reader to end."""
        self.state = State.ENDED

    def dataReceived(self, data: bytes) -> None:
        """Collect the poem. A sender has nothing to hear, and discards it."""
        if self.sending is not None or self.state is not State.OPEN:
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

    def readConnectionLost(self) -> None:
        """The reader sends no more. It may go on reading, unless it has everything."""
        if self.state is State.ENDED:
            self.release()

    def writeConnectionLost(self) -> None:
        """Never called: the stream is ended on the socket itself."""

    def release(self) -> None:
        """Close plainly what the kernel has all of: it goes on delivering."""
        self.state = State.RELEASED
        discard_input(self.transport)
        innermost(self.transport).loseConnection()

    def stop(self) -> None:
        """End it now: with a plain close where the kernel has all of it, else with a reset."""
        if self.state is State.ENDED:
            self.release()
        elif self.state is State.OPEN:
            self.fail(PoemStopped())

    def fail(self, error: BaseException) -> None:
        """Give this transfer up for `error`, once: the other end sees a reset."""
        if self.outcome is None:
            self.state = State.FAILED
            self.outcome = getattr(error, "outcome", PoemError.outcome)
            self.error = error
            reset(self.transport)
            try:
                self.transport.abortConnection()
            finally:
                _tell(self.factory.poemFailed, Failure(error))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Say how it went, once, to the factory's hooks and its observers."""
        self.factory.connections.discard(self)
        if self.outcome is None:
            self._conclude(reason)
        self._collected = None
        for observer in self.factory.observers:
            _tell(observer, self)
        if self.factory.service is not None:
            self.factory.service.connectionEnded(self)
        # Connections are in cycles, which may wait long for their collection: the poem must not.
        self.sending = None

    def _conclude(self, reason: Failure) -> None:
        received = self.sending is None and self.wire.wasReceived(self.transport, reason)
        ended = self.state is State.ENDED and self.wire.wasSent(reason)
        if self.sending is not None and (ended or self.state is State.RELEASED):
            self.outcome = "sent"
            _tell(self.factory.poemSent, self.sending.data)
        elif received and self.size:
            self.state = State.RECEIVED
            self.outcome = "received"
            _tell(self.factory.poemReceived, bytes(self._collected or b""))
        elif received:
            self.fail(EmptyPoem())
        elif self.size or reason.check(ConnectionDone, ConnectionLost):
            self.fail(PoemTruncated(self.size, reason))
        else:
            self.state = State.FAILED
            self.outcome = "handshake"
            self.error = reason.value
            _tell(self.factory.poemFailed, reason)


def _tell(hook: Callable[[Any], object], what: object) -> None:
    """Call a hook or an observer; what it raises must not keep others from being told."""
    try:
        hook(what)
    except BaseException:  # SystemExit too: the reactor would go on as well
        _log.failure("{hook} raised", event="hook_failed", hook=safe_repr(hook))


class PoetryFactory(Factory):
    """What both factories share. Who connects and who has the poem are independent.

    @ivar name: what logs call the poem.
    @ivar connections: the live connections; several factories may share one set.
    @ivar observers: called with each `PoetryProtocol` when its connection is lost.
    @ivar max_bytes: the longest poem to receive, in bytes; None: any. On a connection that receives
        more, `poemFailed` gets a `PoemTooLong`.
    @ivar sending: the poem as it is sent; what `poem` was set to.
    @ivar pace: None: as fast as readers read.
    @ivar shares: whether plain TCP sockets are served, which share one file in memory.
    @ivar service: the `PoetryService` whose it is, which is told last of each end.
    """

    noisy = False
    name = "poem"
    max_bytes: int | None = None
    observers: Sequence[Callable[[PoetryProtocol], object]] = ()
    sending: Poem | None = None
    pace: Pace | None = None
    service: Any = None
    shares = False

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
        if poem != self.poem:
            self.replace(None if poem is None else Poem(poem))

    def replace(self, poem: Poem | None) -> None:
        """Send this to new connections; give up what the old one has beside its bytes."""
        if self.sending is not None:
            self.sending.retire()
        self.sending = poem

    def poemReceived(self, poem: bytes) -> None:
        """A whole poem was received. Override."""

    def poemSent(self, poem: bytes) -> None:
        """A whole poem was sent, and its reader ended after it. Override."""

    def poemFailed(self, reason: Failure) -> None:
        """A poem was not received, or not sent: `PoemError`, or what TLS failed with. Override."""


class PoetryServerFactory(PoetryFactory, ServerFactory):
    """For whoever connects: sends them `poem`, or receives theirs where it is None."""

    # Declared in both factories: mypy compares a subclass's with all above its direct base.
    protocol: Callable[..., PoetryProtocol] = PoetryProtocol  # type: ignore[assignment]

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

    protocol: Callable[..., PoetryProtocol] = PoetryProtocol  # type: ignore[assignment]

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
