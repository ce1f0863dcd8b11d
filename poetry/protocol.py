"""One protocol for both ends, and its two factories.

The side that has the poem sends its bytes and ends the stream; the other side reads until the end
(RFC 865's shape). Nothing else marks a poem as complete, so `poetry.wire` ends a stream
after the last byte and at no other time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import iscoroutine
from time import monotonic
from typing import Any

from twisted.copyright import version
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionClosed, ConnectionLost
from twisted.internet.interfaces import (
    IConnector,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IProtocolNegotiationFactory,
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
from twisted.python.reflect import safe_repr
from zope.interface import classImplements, implementer

from poetry.errors import EmptyPoem, PoemError, PoemStopped, PoemTooLong, PoemTruncated
from poetry.wire import kind_of
from poetry.wire.acknowledging import Acknowledging
from poetry.wire.closing import abort, close, discard_input
from poetry.wire.kernel import is_acknowledged
from poetry.wire.layers import handle_of, hear_half_close, innermost, is_tls
from poetry.wire.outgoing import Outgoing, Pace
from poetry.wire.poem import Poem
from poetry.wire.receiving import Incoming
from poetry.wire.sealed import Sealed, WriteRefused

_log = Logger()


@implementer(IHalfCloseableProtocol, IHandshakeListener)
class PoetryProtocol(Protocol):
    """Sends its factory's poem in `connectionMade` when there is one, and receives one otherwise.

    Built by a `PoetryServerFactory` or a `PoetryClientFactory`. While it sends, the write side of
    its connection is the poem's: its `transport` refuses to write anything else (`WriteRefused`).

    How a transfer stands::

        sending:    `size` grows -> `outgoing.ended` -> `outcome` is "sent"
        receiving:  `size` grows -> `outcome` is "received"
        either:     `outcome` is a `PoemError.outcome`; the connection is reset, if it still stands

    @ivar outgoing: the poem that it sends, and how far it is; None: it receives one.
    @ivar incoming: the poem that it receives; None: it sends one.
    @ivar taken: bytes of its poem that were sent before it had a transport (`serving.fast`).
    @ivar started: when the connection was made, in seconds of `time.monotonic`.
    @ivar outcome: None while it lasts, then "sent", "received", a `PoemError.outcome`, or
        "handshake" where TLS did not come up.
    @ivar error: why it failed, where it did.
    """

    factory: PoetryFactory
    transport: Any  # an ITransport, and whatever else the reactor's transports provide

    outgoing: Outgoing | None = None
    incoming: Incoming | None = None
    taken = 0
    started = 0.0
    outcome: str | None = None
    error: BaseException | None = None
    _wire: Any = None  # the transport, without a seal around it
    _reader_ended = False
    _acknowledging: Acknowledging | None = None
    _made = False
    _secured = False

    @property
    def size(self) -> int:
        """Bytes of the poem sent (handed to the transport) or received so far."""
        transfer = self.outgoing or self.incoming
        return 0 if transfer is None else transfer.size

    def makeConnection(self, transport: Any) -> None:
        """Choose the poem, seal the transport of a protocol that sends, and call `connectionMade`.

        The connection is reset if `connectionMade` raises, unless the poem `survives`.

        @raise TypeError: if no factory has built it.
        """
        if self.factory is None:
            abort(transport)
            raise TypeError("a PoetryProtocol is made by a factory: PoetryClientFactory, say")
        try:
            self.attach(transport, Sealed(transport, self))
            hear_half_close(transport)
            poem = _poem_for(self)
            if poem is None:
                self.transport = transport
                self.incoming = Incoming(transport, self.fail)
            else:
                kind = kind_of(transport)
                self.outgoing = kind(transport, poem, self.factory.pace, self, self.taken)
            super().makeConnection(self.transport)  # type: ignore[no-untyped-call]
            if self.outgoing is not None:
                self.outgoing.hold()
        except BaseException as error:
            if not self.survives(error):
                self.fail(error)
                raise
            _log_override(self, "{protocol} failed beside its poem")
            PoetryProtocol.connectionMade(self)

    def survives(self, error: BaseException) -> bool:
        """Check whether the poem goes on although a subclass failed with `error`: its stream has
        ended already, or the error is a refused write.
        """
        outgoing = self.outgoing
        return outgoing is not None and (outgoing.ended or isinstance(error, WriteRefused))

    def attach(self, transport: Any, sealed: Any) -> None:
        """Attach to a transport, and join the live connections of the factory."""
        self.started = monotonic()
        self._wire, self.transport = transport, sealed
        self.factory.connections.add(self)
        if self.factory.service is not None:
            self.factory.service.connectionBegan()

    def connectionMade(self) -> None:
        """Start to send the poem, or to receive one if there is none."""
        self._made = True
        if self.incoming is not None:
            self.incoming.start()
        if self.outgoing is not None:
            self._start(self.outgoing)

    def handshakeCompleted(self) -> None:
        """Start to send, if there is a poem: TLS is up."""
        self._secured = True
        if self.outgoing is not None:
            self._start(self.outgoing)

    def _start(self, outgoing: Outgoing) -> None:
        """Send once `connectionMade` was called and TLS, if any, is up."""
        ready = self._made and (self._secured or not outgoing.after_handshake)
        if ready and self.outcome is None:
            outgoing.start()

    def dataReceived(self, data: bytes) -> None:
        """Collect the poem. A protocol that sends discards its input."""
        if self.incoming is None or self.outcome is not None:
            return
        self.incoming.size += len(data)
        limit = self.factory.max_bytes
        if limit is not None and self.size > limit:
            self.fail(PoemTooLong(limit))
            return
        try:
            self.chunkReceived(data)
        except BaseException as error:  # left to the reactor, it would end the stream cleanly
            _log_override(self, "{protocol} cannot take its poem")
            self.fail(error)

    def chunkReceived(self, data: bytes) -> None:
        """Collect a chunk of the poem, of at least one byte.

        Override to do without one large `bytes`; `poemReceived` gets `b""` then.
        """
        assert self.incoming is not None
        self.incoming.collected += data

    def readConnectionLost(self) -> None:
        """Close, unless the peer, which has half-closed, still reads our poem."""
        self._reader_ended = True
        if self.incoming is not None:
            self.incoming.close_at_end()
        elif self.outgoing is not None and (self.outgoing.ended or self.outgoing.paced):
            self._close_or_watch()

    def streamEnded(self) -> None:
        """Close once the reader has ended, and has acknowledged everything.

        Its end may come before: it has half-closed, or was closed while bytes are under way to it,
        and then a reset follows.
        """
        if self._reader_ended:
            self._close_or_watch()

    def _close_or_watch(self) -> None:
        if self._look() or self._acknowledging is not None:
            return
        if handle_of(self._wire) is not None:  # else nothing can be asked
            self._acknowledging = Acknowledging(innermost(self._wire), self._look)

    def _look(self) -> bool:
        """Close if the reader has all of the poem; return whether the transfer is over."""
        acknowledged = self._is_acknowledged()
        if acknowledged and self.stream_ended:
            self._finish()
            return True
        return acknowledged is None

    def _is_acknowledged(self) -> bool | None:
        """Check whether the reader has acknowledged everything; None: it has reset the connection,
        and the transfer has failed.
        """
        handle = handle_of(self._wire)
        try:
            return handle is None or is_acknowledged(handle)
        except OSError as error:
            self.truncate(error)
            return None

    @property
    def stream_ended(self) -> bool:
        """Whether our stream is ended: the kernel has all of it."""
        return self.outgoing is not None and self.outgoing.ended

    def writeConnectionLost(self) -> None:
        """Fail, if there is more to send: of a broken pipe (StandardIO) nothing else tells.

        A poem ends its stream on the socket itself, and a receiver may half-close.
        """
        if self.outgoing is not None and not self.outgoing.ended:
            self.truncate(ConnectionLost())

    def release(self) -> None:
        """Close gracefully: the kernel has the whole stream, and delivers what is left of it.

        With bytes unacknowledged it ends as `stopped`, as its reader may still reset it.
        """
        acknowledged = self._is_acknowledged()
        if acknowledged is None:
            return
        discard_input(self._wire)
        has_it = acknowledged and handle_of(self._wire) is not None  # else nobody can tell
        if not has_it and self.outcome is None:
            self._failed(Failure(PoemStopped("a stop left the end of it to the kernel")))
        self._finish()

    def _finish(self) -> None:
        if self.outcome is None:
            self._sent()
        close(self._wire)

    def stop(self) -> None:
        """End the transfer now: gracefully where the kernel has all of it, else with a reset."""
        if self.stream_ended:
            self.release()
        else:
            self.fail(PoemStopped())

    def fail(self, error: BaseException) -> None:
        """Abort the transfer because of `error`, once: the other end sees a reset."""
        if self.outcome is not None:
            return
        try:
            self._failed(Failure(error))
        finally:
            abort(self._wire)

    def truncate(self, error: BaseException) -> None:
        """Abort the transfer: the connection failed with `error` before the end of the poem."""
        self.fail(PoemTruncated(self.size, Failure(error)))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Report the outcome to the factory's hooks and observers, once."""
        if self.factory is None:  # it was never made
            return
        try:
            self.factory.connections.remove(self)
        except KeyError:  # it was told already
            return
        if self._acknowledging is not None:
            self._acknowledging.cancel()
        try:
            self._report(reason)
        finally:
            if self.factory.service is not None:
                self.factory.service.connectionEnded(self)
            transfer = self.outgoing or self.incoming
            if transfer is not None:
                transfer.forget()

    def _report(self, reason: Failure) -> None:
        if self.outcome is None:
            try:
                self._conclude(reason)
            except Exception as error:  # no memory for the poem, say
                self._failed(Failure(error))
        for observer in tuple(self.factory.observers):  # one may change them
            _tell(observer, self)

    def _conclude(self, reason: Failure) -> None:
        """Derive the outcome from the reason of the loss, and call the factory's hook."""
        if self.outgoing is not None and self.outgoing.was_delivered(reason):
            self._sent()
        elif self.incoming is not None and self.incoming.was_whole(reason):
            if self.size:
                poem = bytes(self.incoming.collected)
                self.outcome = "received"
                self._tell_end(self.factory.poemReceived, poem)
            else:
                self._failed(Failure(EmptyPoem()))
        elif self.size or reason.check(ConnectionClosed):
            self._failed(Failure(PoemTruncated(self.size, reason)))
        elif ISSLTransport.providedBy(self._wire) and not self._secured:
            self._failed(reason, "handshake")
        else:
            self._failed(reason)

    def _sent(self) -> None:
        assert self.outgoing is not None
        self.outcome = "sent"
        self._tell_end(self.factory.poemSent, self.outgoing.poem.data)

    def _failed(self, reason: Failure, outcome: str = PoemError.outcome) -> None:
        """@param outcome: of an error that has none of its own."""
        self.error = reason.value
        self.outcome = getattr(self.error, "outcome", outcome)
        self._tell_end(self.factory.poemFailed, reason)

    def _tell_end(self, hook: Callable[[Any], object], result: bytes | Failure) -> None:
        _tell(hook, result)
        self.factory.settle(result)

    def __repr__(self) -> str:
        if not self.started:
            return f"<{type(self).__name__} not connected>"
        doing = "receives" if self.outgoing is None else "sends"
        return f"<{type(self).__name__} {doing}: {self.size:,} bytes, {self.outcome or 'going on'}>"


def _poem_for(protocol: PoetryProtocol) -> Poem | None:
    """Return what `getPoem` chose, as a `Poem`: the shared one if it is the factory's `poem`."""
    poem, sending = protocol.factory.getPoem(protocol), protocol.factory.sending
    if sending is not None and poem is sending.data:
        return sending
    return None if poem is None else Poem(poem)


def _tell(hook: Callable[[Any], object], what: object) -> None:
    """Call a hook or an observer, and log its errors, so that the others are called as well."""
    try:
        result = hook(what)
        if result is not None:
            if iscoroutine(result):
                result = Deferred.fromCoroutine(result)
            if isinstance(result, Deferred):
                result.addErrback(_log_failed, hook)
    except BaseException:  # SystemExit too: the reactor would go on as well
        _log_failed(Failure(), hook)


def _log_failed(failure: Failure, hook: object) -> None:
    _log.failure("{hook} failed", failure, event="hook_failed", hook=safe_repr(hook))


def _log_override(protocol: PoetryProtocol, message: str) -> None:
    """Log the exception that is being handled: a subclass of `PoetryProtocol` raised it."""
    _log.failure(message, event="hook_failed", protocol=safe_repr(protocol))


class PoetryFactory(Factory):
    """Base of both factories: either side of a connection may have the poem.

    @ivar name: the name of the poem in logs.
    @ivar connections: the live connections; several factories may share one set.
    @ivar observers: called with each `PoetryProtocol` when its connection is lost.
    @ivar max_bytes: the longest poem to receive, in bytes; None: any. On a connection that receives
        more, `poemFailed` gets a `PoemTooLong`.
    @ivar sending: `poem` as it is sent, with what its readers share.
    @ivar pace: a rate limit; None: as fast as readers read.
    @ivar service: the `PoetryService` that has the factory, which is told of each connection, first
        of its beginning and last of its end.
    """

    noisy = False
    name = "poem"
    max_bytes: int | None = None
    observers: Sequence[Callable[[PoetryProtocol], object]] = ()
    sending: Poem | None = None
    pace: Pace | None = None
    service: Any = None

    def __init__(self, poem: bytes | None = None) -> None:
        """@param poem: the bytes to send; None: receive.

        @raise EmptyPoem: for `b""`.
        @raise TypeError: for anything but bytes.
        """
        self.connections: set[PoetryProtocol] = set()
        self.poem = poem

    @property
    def poem(self) -> bytes | None:
        """The poem that new connections get. Those in flight keep the one that they began.

        To set it raises what `__init__` does.
        """
        return None if self.sending is None else self.sending.data

    @poem.setter
    def poem(self, poem: bytes | None) -> None:
        if poem is None or poem != self.poem:
            self.replace(None if poem is None else Poem(poem))

    def replace(self, poem: Poem | None) -> None:
        """Send this poem to new connections, and close the file in memory of the old one."""
        if self.sending is not None:
            self.sending.retire()
        self.sending = poem

    def getPoem(self, protocol: PoetryProtocol) -> bytes | None:  # noqa: ARG002 (for subclasses)
        """Choose the poem for a new connection. Override to send each reader another one.

        It is called once a connection, before `connectionMade`; the peer is
        `protocol.transport.getPeer()`.

        @return: the poem, of at least one byte; None: receive one.
        """
        return self.poem

    def poemReceived(self, poem: bytes) -> object:
        """Handle a whole poem that was received. Override.

        As with the other hooks, a Deferred or a coroutine may be returned: what it fails with is
        logged.
        """

    def poemSent(self, poem: bytes) -> object:
        """Handle a poem that was sent: its reader's kernel has acknowledged all of it. Override."""

    def poemFailed(self, reason: Failure) -> object:
        """Handle the failure of a transfer in either direction. Override.

        @param reason: of a `PoemError`, of what TLS failed with, or of what an override raised.
        """

    def settle(self, result: bytes | Failure) -> None:
        """Note the end of a transfer, after its hook: for the other factory's `received`."""

    def __repr__(self) -> str:
        poem = "receives" if self.poem is None else f"sends {self.name}, {len(self.poem):,} bytes"
        return f"<{type(self).__name__} {poem}>"


class PoetryServerFactory(PoetryFactory, ServerFactory):
    """Builds the server's protocols: they send `poem`, or receive one if it is None."""

    # In both factories: in their base mypy would compare it with Twisted's `Factory.protocol`.
    protocol: Callable[..., PoetryProtocol] = PoetryProtocol  # type: ignore[assignment]

    def acceptableProtocols(self) -> list[bytes]:
        """For ALPN (IProtocolNegotiationFactory), which curl and browsers offer."""
        return [b"http/0.9", b"http/1.0", b"http/1.1"]


if tuple(map(int, version.split(".")[:2])) >= (26, 4):  # pragma: no branch (of one Twisted)
    # Since 26.4 Twisted refuses a client whose offer of ALPN is not answered.
    classImplements(PoetryServerFactory, IProtocolNegotiationFactory)


class PoetryClientFactory(PoetryFactory, ClientFactory):
    """For one connection to a server: receives its poem, or brings it `poem`."""

    protocol: Callable[..., PoetryProtocol] = PoetryProtocol  # type: ignore[assignment]

    def __init__(self, poem: bytes | None = None) -> None:
        super().__init__(poem)
        self._received: Deferred[bytes] | None = None
        self._result: Any = None  # while nobody has asked for it
        self._settled = False

    @property
    def received(self) -> Deferred[bytes]:
        """A Deferred that fires once, with the poem (bytes; a poem of our own once its reader has
        it), or a Failure: a `PoemError`, or what kept `connectTCP` from connecting.

        With an endpoint it is the Deferred of `connect` that fails if there is no connection.
        Cancelling it resets the connection. It is made when it is first asked for: a failure that
        only the hooks handle is no unhandled error.
        """
        if self._received is None:
            self._received = Deferred(lambda _: self.abort(CancelledError()))
            if self._settled:
                result, self._result = self._result, None
                self._received.callback(result)
        return self._received

    def settle(self, result: bytes | Failure) -> None:
        """Fire `received` with the first result, whatever an override of the hooks does."""
        if self._settled:
            return
        self._settled = True
        if self._received is None:
            self._result = result
        elif not self._received.called:  # a hook may have fired it
            self._received.callback(result)

    def abort(self, reason: BaseException) -> None:
        """Reset the connection, if there is one, and refuse one that is made yet: not every
        endpoint can be cancelled.
        """
        self.buildProtocol = lambda _: None  # type: ignore[method-assign,assignment]
        for connection in list(self.connections):
            if connection.factory is self:
                connection.fail(reason)
        self.settle(Failure(reason))

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        """Fire `received`: there was no connection."""
        self.settle(reason)
        super().clientConnectionFailed(connector, reason)

    def clientConnectionLost(self, connector: IConnector, reason: Failure) -> None:
        """Fire `received`: as its protocol would, if that does not call up, or for want of one."""
        for connection in list(self.connections):
            wire = connection._wire
            below = wire.transport if is_tls(wire) else wire
            if below is getattr(connector, "transport", None):
                PoetryProtocol.connectionLost(connection, reason)
        if not any(each.factory is self for each in self.connections):
            self.settle(reason)  # else a wrapper has some of the poem yet, and tells its end
        super().clientConnectionLost(connector, reason)
