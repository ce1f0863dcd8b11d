"""TLS: close_notify after the last byte, and at no other time."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.endpoints import clientFromString, serverFromString, wrapClientTLS
from twisted.internet.protocol import connectionDone
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.task import Clock
from twisted.protocols.policies import WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from poetry import PoetryClientFactory, PoetryProtocol
from poetry.errors import EmptyPoem, PoemTruncated
from poetry.idle import sweep
from poetry.system.certificates import authorities
from poetry.wire.layers import innermost
from poetry.wire.outgoing import Pace
from poetry.wire.tls import _Lingering
from tests.certificates import Certificates
from tests.ends import (
    EACH_POEM,
    LONG,
    Server,
    port_of,
    queued,
    reader,
    reset,
    serving,
)
from tests.faults.key_updates import key_updates, shake
from tests.loop import reactor, until, wait, wait_error
from tests.processes import PATIENCE


@contextmanager
def listening_tls(
    factory: Any, certificates: Certificates, *, service: bool = False
) -> Iterator[int]:
    """A TLS listener on a free port, of a service or bare."""
    listen = certificates.listen("good")
    if service:
        with serving(factory, listen=listen) as started:
            yield port_of(started)
        return
    port = wait(serverFromString(reactor, listen).listen(factory))
    try:
        yield port.getHost().port
    finally:
        wait(port.stopListening())


@EACH_POEM
def test_poem_arrives_over_tls(poem: bytes, certificates: Certificates) -> None:
    """Over TLS each poem arrives whole, and its outcome is "sent"."""
    server, client = Server(poem), PoetryClientFactory()
    with listening_tls(server, certificates) as port:
        clientFromString(reactor, certificates.trusting(port)).connect(client)
        assert wait(client.received) == poem
        until(lambda: server.results)
    assert (server.results, server.outcomes) == (["sent"], ["sent"])


def test_sender_that_takes_no_answers_is_not_read(certificates: Certificates) -> None:
    """While a sender takes none of the answers to its KeyUpdates, its input waits."""
    server, stopped = Server(), Event()

    def flood(port: int) -> None:
        with reader(port) as connection, suppress(ConnectionError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(key_updates(shake(connection, certificates.context()), 20_000))
            stopped.wait(PATIENCE)

    with listening_tls(server, certificates) as port:
        thread = Thread(target=flood, args=[port])
        thread.start()
        until(lambda: server.connections)
        (protocol,) = server.connections
        below = innermost(protocol.transport)
        below.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        until(lambda: below not in reactor.getReaders())
        protocol.stop()
        stopped.set()
        until(lambda: server.results)
        thread.join()
    assert server.outcomes == ["stopped"]


def test_close_waits_for_a_long_reply_and_no_longer(certificates: Certificates) -> None:
    """A receiver may reply at length: the connection ends when the sender has taken the reply."""

    class Replies(PoetryProtocol):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            self.transport.write(LONG)

    def bring(port: int) -> None:
        with reader(port) as connection:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            context = certificates.context(ssl.TLSVersion.TLSv1_2)
            tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
            while tls.version() is None:
                with suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
                connection.sendall(outgoing.read())
                incoming.write(connection.recv(65536) if tls.version() is None else b"")
            tls.write(b"a poem")
            with suppress(ssl.SSLWantReadError):
                tls.unwrap()
            connection.sendall(outgoing.read())  # the poem and close_notify, in one read
            while connection.recv(1 << 20):
                pass

    server = Server()
    server.protocol = Replies
    with listening_tls(server, certificates) as port:
        thread = Thread(target=bring, args=[port])
        thread.start()
        until(lambda: server.outcomes)
        thread.join()
    assert server.results == [b"a poem"]


@pytest.mark.parametrize("service", [True, False], ids=["service", "bare"])
@pytest.mark.parametrize(
    ("most", "end", "outcome"),
    [
        (None, "close_notify", "sent"),
        (None, "close", "sent"),
        (None, "reset", "truncated"),
        (10_000, "reset", "truncated"),
        (None, "no TLS", "sent"),
    ],
)
def test_only_an_end_of_the_reader_is_a_delivery(
    most: int | None, end: str, outcome: str, service: bool, certificates: Certificates
) -> None:
    """Many readers close without a close_notify; one that resets has refused the poem.

    What a reader says after our end is discarded, as without TLS.
    """

    def read(port: int) -> None:
        context = certificates.context()
        with reader(port) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as tls:
            size = 0
            while (most is None or size < most) and (data := tls.recv(1000)):
                size += len(data)
            if end == "close_notify":
                tls.unwrap().close()
            elif end == "no TLS":
                with socket.socket(fileno=os.dup(tls.fileno())) as below:
                    below.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    while below.recv(1000):
                        pass
            elif end == "reset":
                until_ended.wait(PATIENCE)
                reset(tls)

    until_ended = Event()
    server = Server(bytes(200_000))
    with listening_tls(server, certificates, service=service) as port:
        thread = Thread(target=read, args=[port])
        thread.start()
        until(
            lambda: (
                server.outcomes
                or any(each.outgoing and each.outgoing.ended for each in server.connections)
            )
        )
        until_ended.set()
        until(lambda: server.outcomes)
        thread.join()
    assert server.outcomes == [outcome]


@pytest.mark.parametrize("service", [True, False], ids=["service", "bare"])
def test_answers_after_the_end_spoil_no_delivery(service: bool, certificates: Certificates) -> None:
    """OpenSSL would answer a KeyUpdate after our end of the stream, where nothing can be sent."""
    asked, answered = Event(), Event()

    def read(port: int) -> None:
        with reader(port) as connection:
            secret = shake(connection, certificates.context())
            while connection.recv(1 << 16):
                pass
            connection.sendall(key_updates(secret, 3))
            asked.set()
            answered.wait(PATIENCE)

    server = Server(bytes(200_000))
    with listening_tls(server, certificates, service=service) as port:
        thread = Thread(target=read, args=[port])
        thread.start()
        until(asked.is_set)
        for _ in range(5):
            reactor.iterate(0.02)
        assert server.outcomes == []
        answered.set()
        until(lambda: server.outcomes)
        thread.join()
    assert server.outcomes == ["sent"]


@pytest.mark.parametrize("closes", ["outer wrapper", "TLS"])
def test_part_is_not_received_after_a_close_of_ours(
    closes: str, certificates: Certificates
) -> None:
    """A sender answers our close_notify with its own, in the middle of a poem."""

    def bring(port: int) -> None:
        with (
            socket.create_connection(("127.0.0.1", port), 20) as plain,
            certificates.context().wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            connection.sendall(b"half a po")
            assert connection.recv(1) == b""
            connection.unwrap()

    server = Server()
    with listening_tls(WrappingFactory(WrappingFactory(server)), certificates) as port:
        thread = Thread(target=bring, args=[port])
        thread.start()
        until(lambda: any(protocol.size for protocol in server.connections))
        (protocol,) = server.connections
        outer = protocol.transport.transport
        (outer if closes == "outer wrapper" else outer.transport).loseConnection()
        until(lambda: server.outcomes)
        thread.join()
    assert server.outcomes == ["truncated"]


def test_wrapper_below_tls_does_not_spoil_a_clean_end(certificates: Certificates) -> None:
    """After a clean end Twisted closes all that is below TLS; the poem is received."""
    server, client = Server(b"poem"), PoetryClientFactory()

    class Wrapped:
        def __init__(self, endpoint: Any) -> None:
            self._endpoint = endpoint

        def connect(self, factory: Any) -> Any:
            return self._endpoint.connect(WrappingFactory(factory))

    with listening_tls(server, certificates) as port:
        options = optionsForClientTLS("127.0.0.1", authorities(str(certificates.authority)))
        endpoint: Any = Wrapped(clientFromString(reactor, f"tcp:127.0.0.1:{port}"))
        wrapClientTLS(options, endpoint).connect(client)
        assert wait(client.received) == b"poem"


def test_early_close_notify_is_truncated(certificates: Certificates) -> None:
    """A reader's close_notify in the middle of a poem means that the poem was not sent."""

    class Leaves(PoetryProtocol):
        def dataReceived(self, data: bytes) -> None:
            del data
            self.transport.loseConnection()

    server, client = Server(LONG), PoetryClientFactory()
    client.protocol = Leaves
    with listening_tls(server, certificates) as port:
        clientFromString(reactor, certificates.trusting(port)).connect(client)
        assert isinstance(wait_error(client.received), PoemTruncated | EmptyPoem)
        until(lambda: server.results)
    assert server.outcomes == ["truncated"]


CLOSE_WAIT = 8  # linux/tcp_states.h


def test_reader_that_does_not_answer_close_notify_is_closed(certificates: Certificates) -> None:
    """A reader that does not answer a close_notify sees the FIN too, and is closed in the end."""
    server = Server(b"short")
    with listening_tls(server, certificates) as port, reader(port) as connection:
        context = certificates.context()
        connection.setblocking(False)
        tls = context.wrap_socket(
            connection, server_hostname="localhost", do_handshake_on_connect=False
        )
        with tls:
            assert until_tls(tls.do_handshake) is None
            assert until_tls(lambda: tls.recv(100)) == b"short"
            until(lambda: tls.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == CLOSE_WAIT)
            (protocol,) = server.connections
            until(lambda: not queued(protocol))
            for now in (0, 29):
                sweep([protocol], now, 5.0, 30.0)
            assert not server.outcomes
            sweep([protocol], 30, 5.0, 30.0)
            until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]


def test_stop_resets_bytes_still_in_the_process(certificates: Certificates) -> None:
    """Bytes that are still in the process's buffer were not sent: a stop resets."""
    server = Server(b"short")
    ends: list[Callable[[], None]] = []

    class Stops(PoetryProtocol):
        def handshakeCompleted(self) -> None:
            super().handshakeCompleted()
            ends.append(self.stop)
            self.stop()

    server.protocol = Stops
    client = PoetryClientFactory()
    with listening_tls(server, certificates) as port:
        clientFromString(reactor, certificates.trusting(port)).connect(client)
        assert isinstance(wait_error(client.received), PoemTruncated | EmptyPoem)
        until(lambda: server.outcomes)
    assert (server.outcomes, len(ends)) == (["stopped"], 1)


@pytest.mark.parametrize("poem", [b"short", LONG], ids=["short", "long"])
def test_slow_poem_arrives_whole_over_tls(poem: bytes, certificates: Certificates) -> None:
    """The slow server over TLS sends a piece at a time, and the poem arrives whole."""
    clock = Clock()
    server, client = Server(poem), PoetryClientFactory()
    server.pace = Pace(len(poem) // 3 + 1, 2.0, clock)
    with listening_tls(server, certificates) as port:
        clientFromString(reactor, certificates.trusting(port)).connect(client)
        for _ in range(2):
            until(clock.getDelayedCalls)
            clock.advance(2.0)
        assert wait(client.received) == poem
        until(lambda: server.outcomes)
    assert (server.outcomes, clock.getDelayedCalls()) == (["sent"], [])


def test_write_goes_to_openssl_at_once(certificates: Certificates) -> None:
    """Bytes go to OpenSSL at once, whatever Twisted's `write` keeps for later."""
    transports: list[Any] = []

    class Peeks(PoetryProtocol):
        def handshakeCompleted(self) -> None:
            written = innermost(self.transport)._tempDataLen
            TLSMemoryBIOProtocol.write(self.transport, b"at once")
            transports.append(innermost(self.transport)._tempDataLen - written)
            self.stop()

    server, client = Server(b"poem"), PoetryClientFactory()
    server.protocol = Peeks
    with listening_tls(server, certificates) as port:
        clientFromString(reactor, certificates.trusting(port)).connect(client)
        assert isinstance(wait_error(client.received), PoemTruncated | EmptyPoem)
    assert transports[0] > len(b"at once")


def until_tls(step: Callable[[], Any]) -> Any:
    """Turn the reactor until a step of non-blocking TLS is done; give its result."""
    results: list[Any] = []

    def done() -> bool:
        with suppress(ssl.SSLWantReadError):
            results.append(step())
        return bool(results)

    until(done)
    return results[0]


def test_loss_is_told_where_twisted_fails_on_it() -> None:
    """Twisted 25.5 raises an IndexError where OpenSSL has failed before, as on rubbish."""
    lost: list[Any] = []

    def fail(_: Failure) -> None:
        raise IndexError

    lingering = _Lingering(
        SimpleNamespace(connectionLost=fail),
        SimpleNamespace(set_shutdown=lambda _: None),
        SimpleNamespace(connectionLost=lost.append),
    )
    lingering.connectionLost(connectionDone)
    assert lost == [connectionDone]
