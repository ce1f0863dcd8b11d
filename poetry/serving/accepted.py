"""One accepted connection in the books of a service, whatever its protocol does."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from poetry.protocol import PoetryProtocol
from poetry.serving.limiter import ConnectionLimiter
from poetry.wire.closing import abort, close_at_end
from poetry.wire.layers import EndedEarly, HandshakeError, failed_in_tls, is_closing

_log = Logger()


@implementer(IHalfCloseableProtocol)
class Accepted:
    """Counts an accepted connection until its transport is lost, whatever its protocol does.

    It stands between Twisted's transport and what the factory built. A subclass of `PoetryProtocol`
    may leave out or fail in whatever it overrides, and TLS or a wrapper may be around it.
    """

    transport: Any

    def __init__(
        self, protocol: Any, conversation: PoetryProtocol | None, limiter: ConnectionLimiter
    ) -> None:
        """@param protocol: what the port's factory built.

        @param conversation: our protocol, which it is or wraps; None: there is none.
        """
        self._protocol = protocol
        self._conversation = conversation
        self._limiter = limiter

    @property
    def sends(self) -> bool:
        """Whether a poem is sent, so that a close resets the connection until that is out."""
        return self._conversation is not None and self._conversation.outgoing is not None

    def makeConnection(self, transport: Any) -> None:
        """Connect the protocol to its transport, or abort the connection."""
        self.transport = transport
        self._limiter.enter()
        try:
            self._protocol.makeConnection(transport)
            if self._conversation is not None and self._conversation.transport is None:
                raise RuntimeError("a makeConnection did not call that of its base class")
        except BaseException as error:
            if self._conversation is None or not self._conversation.survives(error):
                transport.abortConnection()
                raise
            _log.failure("a protocol failed beside its poem", event="hook_failed")

    def dataReceived(self, data: bytes) -> None:
        """Pass data on; reset the connection if the protocol fails, unless its poem survives."""
        try:
            self._protocol.dataReceived(data)
        except BaseException as failed:  # left to the reactor, a receiver would end cleanly
            error = failed
            if failed_in_tls(failed):
                error = HandshakeError("the peer ended TLS before it was up")
            else:
                _log.failure("a protocol failed on what its peer said", event="hook_failed")
            if self._conversation is None:
                abort(self.transport)
            elif not self._conversation.survives(error):
                self._conversation.fail(error)
        if self._conversation is not None and self._conversation.outcome is None:
            self._spare_the_end(self._conversation)

    def _spare_the_end(self, conversation: PoetryProtocol) -> None:
        """Keep TLS from answering a reader of an unfinished poem in ways that harm others or it.

        Stop reading while our own output is backed up: TLS would queue a reply to each KeyUpdate.
        Reset what TLS is closing before the last byte: the reader has sent close_notify, and under
        a wrapper Twisted has queued ours, which would be a clean end.
        """
        outgoing = conversation.outgoing
        if outgoing is None:
            return
        if outgoing.backed_up:
            self.transport.pauseProducing()
        if outgoing.unfinished and is_closing(self.transport):
            conversation.truncate(EndedEarly())

    def readConnectionLost(self) -> None:
        """Pass a half-close on; to a protocol that does not know of them, as the end."""
        conversation = self._conversation
        if IHalfCloseableProtocol.providedBy(self._protocol):
            self._protocol.readConnectionLost()
        elif conversation is not None and conversation.stream_ended:
            conversation.readConnectionLost()
        else:
            close_at_end(self.transport)

    def writeConnectionLost(self) -> None:
        """Pass on that a protocol that receives has half-closed."""
        if IHalfCloseableProtocol.providedBy(self._protocol):
            self._protocol.writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Report the loss to protocol and limiter, whatever a subclass leaves out."""
        try:
            try:
                self._protocol.connectionLost(reason)
            finally:
                if self._conversation is not None:
                    PoetryProtocol.connectionLost(self._conversation, reason)
        except BaseException:
            _log.failure("connectionLost failed", event="hook_failed")
        finally:
            self._limiter.leave()


def unwrapped(protocol: Any) -> Any:
    """Return the protocol below TLS and other wrappers; None: the factory has built none."""
    while not isinstance(protocol, PoetryProtocol) and hasattr(protocol, "wrappedProtocol"):
        protocol = protocol.wrappedProtocol
    return protocol
