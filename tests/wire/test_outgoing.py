"""An outgoing poem: its pace, its beginning, and interruptions."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure

from poetry import PoetryClientFactory, PoetryProtocol
from poetry.idle import sweep
from poetry.wire.buffered import Buffered
from poetry.wire.outgoing import Pace
from poetry.wire.poem import Poem
from tests.calls import failing
from tests.certificates import Certificates
from tests.ends import (
    LONG,
    Server,
    listening,
    queued,
    reader,
)
from tests.loop import drain, reactor, until, wait
from tests.transfers import Log


def slow(poem: bytes, clock: Clock) -> Server:
    server = Server(poem)
    server.pace = Pace(2, 1.5, clock)
    return server


def slowly_in_memory() -> tuple[Clock, StringTransport]:
    """A clock, and a transport in memory on which a poem of five bytes has begun, two at a time."""
    clock, transport = Clock(), StringTransport()
    protocol = slow(b"12345", clock).buildProtocol(None)
    assert protocol is not None
    protocol.makeConnection(transport)
    return clock, transport


def test_slow_poem_is_sent_in_pieces() -> None:
    """The first bytes go at once, and more after each delay."""
    clock, transport = slowly_in_memory()
    seen = [transport.value()]
    for _ in range(2):
        clock.advance(1.5)
        seen.append(transport.value())
    assert seen == [b"12", b"1234", b"12345"]
    assert (transport.disconnecting, clock.getDelayedCalls()) == (True, [])


def test_full_transport_pauses_a_slow_poem() -> None:
    """A full transport pauses the poem, and a lost one leaves no timer behind."""
    clock, transport = slowly_in_memory()
    producer: Any = transport.producer
    producer.pauseProducing()
    producer.pauseProducing()
    clock.advance(10)
    assert transport.value() == b"12"
    producer.resumeProducing()
    assert transport.value() == b"1234"
    producer.stopProducing()
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize(
    "wrap", [lambda factory: factory, WrappingFactory], ids=["plain", "wrapped"]
)
def test_slow_poem_arrives_whole_on_a_socket(wrap: Callable[[Any], Any]) -> None:
    """The slow poem arrives whole, and its reader is not blamed for the wait."""
    clock = Clock()
    server = slow(b"12345", clock)
    with listening(wrap(server)) as port, reader(port) as connection:
        until(clock.getDelayedCalls)
        (protocol,) = server.connections
        until(lambda: not queued(protocol))
        for now in (0.0, 100.0, 200.0):
            sweep([protocol], now, 1.0, 1.0)
        assert protocol.outcome is None
        clock.advance(1.5)
        clock.advance(1.5)
        assert drain(connection) == b"12345"
        connection.close()
        until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]


def test_end_of_a_slow_poem_leaves_no_timer() -> None:
    """However a slow transfer ends, its timer ends too."""
    clock = Clock()
    server = slow(b"12345", clock)
    with listening(server) as port, reader(port):
        until(lambda: server.connections)
        (protocol,) = server.connections
        protocol.stop()
        until(lambda: server.outcomes)
    assert (server.outcomes, clock.getDelayedCalls()) == (["stopped"], [])


def test_lost_connection_of_a_slow_poem_leaves_no_timer() -> None:
    """A transport that asks nobody to stop leaves no timer of its poem."""
    clock, transport = Clock(), StringTransport()
    protocol: Any = slow(b"12345", clock).buildProtocol(None)
    protocol.makeConnection(transport)
    assert clock.getDelayedCalls()
    protocol.connectionLost(Failure(ConnectionLost()))
    assert not clock.getDelayedCalls()


def test_piece_waits_for_delay_and_room(certificates: Certificates) -> None:
    """After a piece that fills its transport, the next one waits for the delay and for room."""
    clock = Clock()
    server, client = Server(LONG), PoetryClientFactory()
    server.pace = Pace(len(LONG) // 2, 2.0, clock)
    port = wait(serverFromString(reactor, certificates.listen("good")).listen(server))
    clientFromString(reactor, certificates.trusting(port.getHost().port)).connect(client)
    until(lambda: server.connections and clock.getDelayedCalls())
    (protocol,) = server.connections
    assert protocol.size == len(LONG) // 2
    clock.advance(2.0)
    assert wait(client.received) == LONG
    wait(port.stopListening())


def test_large_piece_waits_for_room() -> None:
    """Of a piece that is due a transport gets no more at a time than it has room for."""

    class Full(StringTransport):
        def write(self, data: bytes) -> None:
            super().write(data)  # type: ignore[no-untyped-call]
            producer: Any = self.producer
            producer.pauseProducing()

    clock = Clock()
    transport: Any = Full()  # type: ignore[no-untyped-call]
    Buffered(transport, Poem(LONG), Pace(len(LONG), 2.0, clock), PoetryProtocol()).start()
    assert len(transport.value()) == Buffered.turn
    producer: Any = transport.producer
    producer.resumeProducing()
    assert len(transport.value()) == 2 * Buffered.turn
    assert not clock.getDelayedCalls()


def test_room_does_not_shorten_the_delay() -> None:
    """A transport that has room again gets no bytes before their time."""
    clock, transport = slowly_in_memory()
    producer: Any = transport.producer
    producer.pauseProducing()
    producer.resumeProducing()
    assert transport.value() == b"12"
    clock.pump([1.5, 1.5])
    assert transport.value() == b"12345"


def test_push_producer_sends_until_paused() -> None:
    """A push producer sends until it is paused, and all of the poem where it is not."""

    class Pushes(Buffered):
        pushes = True

    transport = StringTransport()
    Pushes(transport, Poem(LONG), None, PoetryProtocol()).start()
    assert transport.value() == LONG


def test_second_beginning_sends_nothing() -> None:
    """A poem is sent once, however often its protocol begins."""
    transport = StringTransport()
    protocol = Server(b"poem").buildProtocol(None)
    assert protocol is not None
    protocol.makeConnection(transport)
    protocol.connectionMade()
    assert transport.value() == b"poem"


@pytest.mark.parametrize("times", [1, 2], ids=["copied", "from a file"])
def test_exception_of_a_signal_handler_sends_no_byte_twice(times: int) -> None:
    """An exception just after bytes have gone sends none of them twice: the reader sees a reset.

    The handler runs as soon as the interpreter is asked, which is as the call returns.
    """
    server = Server(LONG)
    before = signal.signal(signal.SIGUSR1, failing(errno.EAGAIN))
    try:
        with listening(server) as port:
            for _ in range(times - 1):
                with reader(port) as connection:
                    assert drain(connection) == LONG
            with reader(port) as connection:
                received = bytearray()
                until(lambda: server.connections)
                connection.setblocking(False)
                with suppress(ConnectionResetError):
                    interrupt_until(connection, received)
            assert LONG.startswith(bytes(received))
    finally:
        signal.signal(signal.SIGUSR1, before)


def interrupt_until(connection: socket.socket, received: bytearray) -> None:
    """Read to the end or a reset, while signals come at any moment of the reactor's turns."""
    while True:
        with suppress(BlockingIOError):
            signal.setitimer(signal.ITIMER_REAL, 0)
            data = connection.recv(1 << 18)
            if not data:
                return
            received += data
        with suppress(BlockingIOError):  # raised outside of any call that matters
            os.kill(os.getpid(), signal.SIGUSR1)
        with suppress(BlockingIOError):
            reactor.iterate(0)


def test_error_of_an_async_hook_is_logged(log: Log) -> None:
    """The error of a hook that is a coroutine or returns a Deferred is logged."""

    class Hooks(Server):
        async def poemSent(self, poem: bytes) -> None:  # type: ignore[override]
            del poem
            raise RuntimeError("in a coroutine")

    server = Hooks(b"poem")
    failed: Deferred[None] = Deferred()
    server.observers = (*server.observers, lambda _: failed, lambda _: "neither")
    with listening(server) as port, reader(port) as connection:
        assert drain(connection) == b"poem"
        connection.close()
        until(lambda: server.outcomes)
    failed.errback(RuntimeError("in a Deferred"))
    said = [str(event["log_failure"].value) for event in log if "log_failure" in event]
    assert said == ["in a coroutine", "in a Deferred"]
    log.clear()
