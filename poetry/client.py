"""The receiving side: get_poem, and the download that hands each part on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import (
    IConsumer,
    IPushProducer,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from poetry.errors import PoemTimedOut
from poetry.protocol import PoetryClientFactory, PoetryProtocol


def get_poem(
    endpoint: IStreamClientEndpoint,
    *,
    timeout: float = 30.0,
    max_bytes: int | None = None,
    clock: Any = None,
) -> Deferred[bytes]:
    """Fetch a poem into memory.

    @param timeout: longest wait to connect, and between bytes, in seconds.
    @param max_bytes: fail rather than take more.
    @param clock: an IReactorTime; None: the global reactor.
    @return: fires with the whole poem, or fails with `PoemTruncated`, `EmptyPoem`, `PoemTooLong`,
        `PoemTimedOut`, or with Twisted's own error where there was no connection. Cancelling it
        resets the connection.
    """

    if clock is None:
        from twisted.internet import reactor as clock

    async def get() -> bytes:
        poem = bytearray()
        await download(
            endpoint,
            poem.extend,
            timeout=timeout,
            max_bytes=max_bytes,
            consumer=None,
            clock=clock,
        )
        return bytes(poem)

    return Deferred.fromCoroutine(get())


async def download(
    endpoint: IStreamClientEndpoint,
    write: Callable[[bytes], object],
    *,
    timeout: float,
    max_bytes: int | None,
    consumer: IConsumer | None,
    clock: Any,
) -> None:
    """Fetch a poem and `write` each part of it as it comes; memory stays flat.

    Done when the whole poem was written. Fails as `get_poem` does, with what `write` raises, or
    with `ConsumerGone`.

    @param consumer: what `write` fills; the sender is held back while it is full.
    """
    factory = _DownloadFactory(write, timeout, consumer, clock)
    factory.max_bytes = max_bytes
    connecting = endpoint.connect(factory)
    late = clock.callLater(timeout, connecting.cancel)
    try:
        await connecting
    except Exception as failed:
        if not late.active():
            raise error.TimeoutError(string=f"no connection within {timeout:g} s") from failed
        late.cancel()
        raise
    late.cancel()
    try:
        await factory.received
    except CancelledError as cancelled:
        for connection in list(factory.connections):
            connection.fail(cancelled)
        raise


class ConsumerGone(Exception):
    """The consumer takes no more; why, it knows itself."""


class _DownloadProtocol(PoetryProtocol):
    """Hands each part on at once, and gives up on a sender that falls silent."""

    factory: _DownloadFactory
    _timer: Any

    def connectionMade(self) -> None:
        factory = self.factory
        self._timer = factory.clock.callLater(factory.timeout, self._timedOut)
        super().connectionMade()
        if factory.consumer is not None:
            factory.consumer.registerProducer(_Throttle(self), True)

    def handshakeCompleted(self) -> None:
        # Twisted compares the names, but only logs what it cannot compare: none, or nonsense.
        from service_identity.cryptography import extract_patterns

        certificate = self.transport.getPeerCertificate().to_cryptography()
        try:
            if not extract_patterns(certificate):
                raise ValueError("it names no host (subjectAltName)")
        except Exception as unusable:
            self.fail(error.CertificateError(f"the server's certificate is unusable: {unusable}"))

    def chunkReceived(self, data: bytes) -> None:
        self._timer.reset(self.factory.timeout)
        try:
            self.factory.write(data)
        except Exception as unwritten:
            self.fail(unwritten)

    def pause(self) -> None:
        """The consumer is full: let the kernel hold the sender back, and do not blame it."""
        self._timer.reset(_NEVER)
        self.transport.pauseProducing()

    def resume(self) -> None:
        """The consumer has room."""
        self._timer.reset(self.factory.timeout)
        self.transport.resumeProducing()

    def _timedOut(self) -> None:
        self.fail(PoemTimedOut(self.factory.timeout, self.size))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._timer.active():
            self._timer.cancel()
        if self.factory.consumer is not None:
            self.factory.consumer.unregisterProducer()
        super().connectionLost(reason)


_NEVER = 10.0**9


class _DownloadFactory(PoetryClientFactory):
    protocol = _DownloadProtocol

    def __init__(
        self,
        write: Callable[[bytes], object],
        timeout: float,
        consumer: IConsumer | None,
        clock: Any,
    ) -> None:
        super().__init__()
        self.write = write
        self.timeout = timeout
        self.consumer = consumer
        self.clock = clock


@implementer(IPushProducer)
class _Throttle:
    """A download as the producer of its consumer."""

    def __init__(self, download: _DownloadProtocol) -> None:
        self._download = download

    def pauseProducing(self) -> None:
        self._download.pause()

    def resumeProducing(self) -> None:
        self._download.resume()

    def stopProducing(self) -> None:
        self._download.fail(ConsumerGone())
