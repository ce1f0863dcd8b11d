"""The client side: `get_poem`, `send_poem`, and a download that writes each chunk as it comes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import count
from time import monotonic
from typing import Any, NoReturn, TypeVar

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IConsumer,
    IPushProducer,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import connectionDone
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure
from zope.interface import implementer

from poetry.addresses import peer_address
from poetry.errors import PoemTimedOut
from poetry.idle import sweep
from poetry.limits import check_count, check_seconds
from poetry.protocol import PoetryClientFactory, PoetryProtocol
from poetry.system.unix import check_path, path_of_endpoint
from poetry.text import text_of
from poetry.wire.layers import failed_in_tls

_T = TypeVar("_T")


def get_poem(
    endpoint: IStreamClientEndpoint,
    *,
    timeout: float = 30.0,
    max_time: float | None = None,
    max_bytes: int | None = None,
    clock: Any = None,
) -> Deferred[bytes]:
    """Fetch a poem into memory.

    @param endpoint: of the server.
    @param timeout: longest wait to connect, and between bytes, in seconds.
    @param max_time: longest time for all of it, in seconds; None: any.
    @param max_bytes: fail rather than accept more; None: any.
    @param clock: an IReactorTime; None: the global reactor.
    @raise TypeError: if `endpoint` is no IStreamClientEndpoint, or a time or `max_bytes` no number.
    @raise ValueError: if a time or `max_bytes` is out of range.
    @return: fires with the whole poem, or fails with `PoemTruncated`, `EmptyPoem`, `PoemTooLong`,
        `PoemTimedOut`, or with Twisted's own error if there was no connection. Where TLS did not
        come up it fails with `CertificateError` or `SSLError` (twisted.internet.error), or with
        that of pyOpenSSL or of service-identity. Cancelling it resets the connection.
    """
    _check_arguments(endpoint, timeout, max_time)
    if max_bytes is not None:
        check_count("max_bytes", max_bytes)
    if clock is None:
        from twisted.internet import reactor as clock
    poem, size = bytearray(), 0

    async def get() -> bytes:
        nonlocal size
        try:
            await download(
                endpoint,
                poem.extend,
                timeout=timeout,
                max_bytes=max_bytes,
                consumer=None,
                clock=clock,
            )
            return bytes(poem)
        finally:
            size = len(poem)
            poem.clear()  # Twisted's connections are in cycles, and free nothing until a collection

    return with_deadline(get(), max_time, clock, lambda: size)


def send_poem(
    endpoint: IStreamClientEndpoint,
    poem: bytes,
    *,
    timeout: float = 30.0,
    max_time: float | None = None,
    clock: Any = None,
) -> Deferred[None]:
    """Send a poem to a server that receives one.

    @param endpoint: of the server.
    @param poem: at least one byte.
    @param timeout: longest wait to connect, and without progress of the reader, in seconds.
    @param max_time: longest time for all of it, in seconds; None: any.
    @param clock: an IReactorTime; None: the global reactor.
    @raise TypeError: if `poem` is no bytes, `endpoint` no IStreamClientEndpoint, or a time no
        number.
    @raise EmptyPoem: for `b""`.
    @raise ValueError: if a time is out of range.
    @return: fires with None when the reader has ended after all of the poem, or has acknowledged
        all and not ended for `timeout` seconds. Fails with `PoemTruncated` or `PoemTimedOut`, or
        with Twisted's own error if there was no connection; where TLS did not come up, as
        `get_poem` does. Cancelling it resets the connection.
        On a Unix socket a receiver that has read everything cannot refuse it.
    """
    _check_arguments(endpoint, timeout, max_time)
    if poem is None:
        raise TypeError("a poem to send is bytes, not None")
    factory = _ClientFactory(poem)
    if clock is None:
        from twisted.internet import reactor as clock
    interval = min(1.0, timeout / 4)
    seconds = count(interval, interval)  # counted: a clock that jumps ends nothing

    async def send() -> None:
        await _connect(endpoint, factory, timeout, clock)
        watching = LoopingCall(
            lambda: sweep(factory.connections, next(seconds), timeout, linger=timeout)
        )
        watching.clock = clock
        watching.start(interval, now=False)
        try:
            await factory.received
        finally:
            watching.stop()

    def sent() -> int:
        return sum(connection.size for connection in factory.connections)

    return with_deadline(send(), max_time, clock, sent)


def _check_arguments(endpoint: object, timeout: float, max_time: float | None) -> None:
    if not hasattr(endpoint, "connect"):
        raise TypeError(f"{endpoint!r} is no endpoint: make one with clientFromString")
    check_seconds("timeout", timeout)
    if max_time is not None:
        check_seconds("max_time", max_time)


def with_deadline(
    work: Coroutine[Any, Any, _T], max_time: float | None, clock: Any, received: Callable[[], int]
) -> Deferred[_T]:
    """Run a coroutine, and cancel it after `max_time` seconds.

    @param max_time: None: any.
    @param received: returns the number of bytes so far, for the error.
    @return: fires as the coroutine ends; after `max_time` it fails with a `PoemTimedOut`.
    """
    done = Deferred.fromCoroutine(work)

    def late(_: object, seconds: float) -> NoReturn:
        raise _DeadlinePassed(seconds, received())

    return done if max_time is None else done.addTimeout(max_time, clock, late)


class _DeadlinePassed(PoemTimedOut):
    """The poem was not whole within `seconds`."""

    def __str__(self) -> str:
        return f"timed out: not whole after {self.seconds:g} s and {self.received:,} bytes"


class _Timeout:
    """Calls `give_up` after so many seconds without `restart`.

    Data that came in the last moment, or while this process was stopped, is still in the kernel. So
    the reactor runs one more iteration before the call, and may read it and `restart`.
    """

    def __init__(self, clock: Any, seconds: float, give_up: Callable[[], object]) -> None:
        self.seconds = seconds
        self._clock = clock
        self._give_up = give_up
        self.start()

    def start(self) -> None:
        """Start the timer."""
        self._call = self._clock.callLater(self.seconds, self._expired)

    def restart(self) -> None:
        """Start the timer again, from zero."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """Stop the timer."""
        if self._call.active():
            self._call.cancel()

    def _expired(self) -> None:
        self._call = self._clock.callLater(0, self._give_up)


async def download(
    endpoint: IStreamClientEndpoint,
    write: Callable[[bytes], object],
    *,
    timeout: float,
    max_bytes: int | None,
    consumer: IConsumer | None,
    clock: Any,
    report: Callable[[str], object] = lambda _: None,
) -> None:
    """Fetch a poem and `write` each chunk of it as it comes, in constant memory.

    Returns when the whole poem was written. Fails as `get_poem` does, with what `write` raises, or
    with `ConsumerGone`.

    @param consumer: what `write` writes to; the sender is held back while it is full. None: it is
        never full.
    @param report: is called with each event, in one line.
    """
    factory = _DownloadFactory(
        write,
        timeout=timeout,
        max_bytes=max_bytes,
        consumer=consumer,
        clock=clock,
        report=report,
    )
    await _connect(endpoint, factory, timeout, clock)
    await factory.received


async def _connect(
    endpoint: IStreamClientEndpoint, factory: PoetryClientFactory, timeout: float, clock: Any
) -> None:
    try:
        check_path(path_of_endpoint(endpoint) or "")
    except ValueError as no_path:
        raise error.ConnectError(string=str(no_path)) from no_path
    connected: Deferred[Any] = Deferred()  # not every endpoint can be cancelled: ours ends first

    def settle(result: object) -> None:
        if not connected.called:
            connected.callback(result)

    def expire() -> None:
        settle(Failure(error.TimeoutError(string=f"no connection within {timeout:g} s")))

    connecting = endpoint.connect(factory)
    connecting.addBoth(settle)
    waiting = _Timeout(clock, timeout, expire)
    try:
        await connected
    except Exception as failed:
        factory.abort(failed)
        with suppress(Exception):
            connecting.cancel()
        queue_full = isinstance(next(iter(failed.args), None), Failure)
        if queue_full and path_of_endpoint(endpoint) is not None:
            # connect(2) to a Unix socket does not wait for room: Twisted sees only a hang-up.
            raise error.ConnectError(string="the server's queue is full") from failed
        raise
    finally:
        waiting.stop()


class ConsumerGone(Exception):
    """The consumer accepts no more; its own error has the reason."""


class _ClientProtocol(PoetryProtocol):
    """Takes no certificate that names no host, and reports what happens."""

    factory: _ClientFactory

    def connectionMade(self) -> None:
        self.factory.report(f"connected to {peer_address(self.transport)}")
        super().connectionMade()

    def handshakeCompleted(self) -> None:
        # Twisted compares names, but only logs a certificate that has none, or malformed ones.
        from cryptography.x509 import SubjectAlternativeName
        from service_identity.cryptography import extract_patterns

        certificate = self.transport.getPeerCertificate().to_cryptography()
        try:
            if not extract_patterns(certificate):
                raise ValueError("it names no host (subjectAltName)")
        except Exception as unusable:
            self.fail(error.CertificateError(f"the server's certificate is unusable: {unusable}"))
            return
        names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
        version = self.transport.getHandle().get_protocol_version_name()
        named = ", ".join(str(name.value) for name in names)
        self.factory.report(f"{version}; the certificate is for {named}")
        super().handshakeCompleted()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if failed_in_tls(reason.value):
            reason = Failure(error.SSLError(string="the server ended TLS before it was up"))
        self.factory.report(
            f"ended after {self.size:,} bytes and {monotonic() - self.started:.3f} s:"
            f" {text_of(reason.value)}"
        )
        super().connectionLost(reason)


class _ClientFactory(PoetryClientFactory):
    """Builds one protocol: an endpoint that connects to several servers would mix their poems.

    @ivar report: is called with each event, in one line.
    """

    protocol = _ClientProtocol
    _built = False

    def __init__(
        self, poem: bytes | None = None, report: Callable[[str], object] = lambda _: None
    ) -> None:
        super().__init__(poem)
        self.report = report

    def buildProtocol(self, addr: Any) -> Any:
        """Refuse a second connection."""
        if self._built:
            return None
        self._built = True
        return super().buildProtocol(addr)


@implementer(IPushProducer)
class _DownloadProtocol(_ClientProtocol):
    """Writes each chunk at once, and resets the connection if the sender falls silent.

    It is the producer of its consumer, whose delay is not the sender's silence.
    """

    factory: _DownloadFactory
    _idle: _Timeout

    def connectionMade(self) -> None:
        factory = self.factory
        self._idle = _Timeout(factory.clock, factory.timeout, self._timedOut)
        super().connectionMade()
        if factory.consumer is not None:
            factory.consumer.registerProducer(self, True)

    def chunkReceived(self, data: bytes) -> None:
        self._idle.restart()
        if self.size == len(data):
            self.factory.report(f"first byte after {monotonic() - self.started:.3f} s")
        try:
            self.factory.write(data)
        except Exception as unwritten:
            self.fail(unwritten)

    def pauseProducing(self) -> None:
        """Read no more: the consumer is full."""
        assert self.incoming is not None
        self._idle.stop()
        self.incoming.pause(self)

    def resumeProducing(self) -> None:
        """Read on: the consumer has room."""
        assert self.incoming is not None
        self._idle.restart()
        self.incoming.resume(self)

    def stopProducing(self) -> None:
        """Reset the connection: the consumer is gone."""
        self.fail(ConsumerGone())

    def _timedOut(self) -> None:
        self.fail(PoemTimedOut(self.factory.timeout, self.size))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._idle.stop()
        if self.factory.consumer is not None:
            self.factory.consumer.unregisterProducer()
        super().connectionLost(reason)


class _DownloadFactory(_ClientFactory):
    protocol = _DownloadProtocol

    def __init__(
        self,
        write: Callable[[bytes], object],
        *,
        timeout: float,
        max_bytes: int | None,
        consumer: IConsumer | None,
        clock: Any,
        report: Callable[[str], object],
    ) -> None:
        super().__init__(report=report)
        self.write = write
        self.timeout = timeout
        self.max_bytes = max_bytes
        self.consumer = consumer
        self.clock = clock
