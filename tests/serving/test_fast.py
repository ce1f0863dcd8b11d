"""Short poems of a service: sent as their readers are accepted, and no transport of Twisted's."""

from __future__ import annotations

import errno
import gc
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ServerEndpoint, serverFromString
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Server as Transport
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from poetry import PoemTruncated, PoetryProtocol, PoetryService
from poetry.protocol import State
from poetry.serving.fast import AT_ONCE, Lean, LeanPort
from poetry.wire.plain import Plain
from poetry.wire.poem import SHARED, Poem
from poetry.wire.sender import SHORT, Pace
from tests.certificates import Certificates
from tests.ends import LONG, Server, ended_with_reset, reader, reset
from tests.faults.readers import poem, read_all
from tests.loop import drain, reactor, until, wait
from tests.processes import PATIENCE
from tests.transfers import Log

POEM = poem(3_000)


@contextmanager
def serving(
    factory: Any, listen: str = "tcp:0:interface=127.0.0.1", **limits: Any
) -> Iterator[Any]:
    """A service with one listener; give it, and stop it at once in the end."""
    service = PoetryService([(serverFromString(reactor, listen), factory)], **limits)
    service.startService()
    try:
        yield service
    finally:
        stopped = service.stopService()
        service.abort()
        wait(stopped)


def port_of(service: PoetryService) -> int:
    port: int = service.ports[0].getHost().port  # type: ignore[attr-defined]
    return port


@contextmanager
def connected(server: Server, **limits: Any) -> Iterator[tuple[PoetryProtocol, socket.socket]]:
    """One reader of a service, and the protocol that serves it."""
    with serving(server, **limits) as service, reader(port_of(service)) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        yield protocol, connection


def no_room(*_: object) -> Any:
    """As a reactor that can wait for nobody more."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def kind(protocol: PoetryProtocol) -> type:
    return type(protocol.transport)


# What it is for


@pytest.mark.parametrize("size", [1, 3_000, SHORT, SHARED - 1])
def test_a_short_poem_is_sent_without_a_transport(size: int) -> None:
    """It is with the kernel as soon as its reader is accepted, and so is the end of the stream."""
    server = Server(poem(size))
    with connected(server) as (protocol, connection):
        assert (kind(protocol), protocol.state, protocol.size) == (Lean, State.ENDED, size)
        assert protocol.transport.getPeer().port == connection.getsockname()[1]
        connection.sendall(b"GET / HTTP/1.1")
        assert drain(connection) == poem(size)
        connection.sendall(b"more")
        connection.close()
        until(lambda: server.outcomes)
    assert (server.outcomes, server.told) == (["sent"], ["sent"])
    assert (kind(protocol), protocol.transport.getHandle()) == (Lean, None)
    protocol.transport.loseConnection()
    protocol.transport.abortConnection()
    protocol.transport.write(b"more")
    with pytest.raises(AttributeError):
        protocol.transport.startWriting()


def test_others_have_a_transport_of_twisteds(certificates: Certificates) -> None:
    """A long poem, a slow one, a receiver, and TLS."""
    long, slow, receives = Server(poem(SHARED)), Server(POEM), Server()
    slow.pace = Pace(10, 60.0, reactor)
    for server in long, slow, receives:
        with connected(server) as (protocol, _):
            assert kind(protocol) is Transport
    server = Server(POEM)
    with serving(server, certificates.listen("good")) as service, reader(port_of(service)):
        until(lambda: server.connections)
        (protocol,) = server.connections
        assert kind(protocol) is not Lean


def test_a_poem_that_is_replaced() -> None:
    """Each reader gets what is the poem as it comes: a long one, and then a short one."""
    server = Server(LONG)
    with serving(server) as service:
        for text in (LONG, POEM, LONG):
            server.poem = text
            with reader(port_of(service)) as connection:
                assert drain(connection) == text


def test_what_it_lacks_comes_from_twisteds() -> None:
    """Asked for what it does not have it makes way for Twisted's, which goes on."""
    server = Server(POEM)
    with connected(server) as (protocol, connection):
        before = protocol.transport
        assert verifyObject(ITCPTransport, before)
        assert before.getHost().port == connection.getpeername()[1]
        assert (kind(protocol), before.getPeer()) == (Transport, protocol.transport.getPeer())
        assert before.getHandle() is protocol.transport.getHandle()
        assert drain(connection) == POEM
        connection.close()
        until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]
    before.loseConnection()
    before.abortConnection()


def test_a_reader_that_half_closes_and_takes_its_time() -> None:
    """What the kernel has is delivered, though the connection is closed by then."""
    server = Server(poem(SHORT))
    with serving(server) as service, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        connection.connect(("127.0.0.1", port_of(service)))
        connection.shutdown(socket.SHUT_WR)
        until(lambda: server.outcomes)
        assert (server.outcomes, drain(connection)) == (["sent"], poem(SHORT))


def linger_of(protocol: PoetryProtocol) -> tuple[int, int]:
    """Whether a close resets, and after how many seconds."""
    return linger_of_socket(protocol.transport.socket)


def linger_of_socket(handle: socket.socket) -> tuple[int, int]:
    value = handle.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
    on, seconds = struct.unpack("ii", value)
    return on, seconds


def test_a_receiver_ends_plainly() -> None:
    """Who brings a poem sees a clean end: the promise is its own."""
    server = Server()
    with connected(server) as (protocol, connection):
        assert linger_of(protocol) == (0, 0)
        connection.sendall(POEM)
        connection.shutdown(socket.SHUT_WR)
        assert drain(connection) == b""
        until(lambda: server.outcomes)
    assert server.told == [POEM]


# Subclasses


@pytest.mark.parametrize("text", [POEM, LONG, None], ids=["short", "long", "none"])
def test_a_protocol_with_words_of_its_own(text: bytes | None, log: Log) -> None:
    """What it writes in place of the poem ends as on any transport of Twisted's, and is counted."""

    class Busy(PoetryProtocol):
        def connectionMade(self) -> None:
            self.transport.write(bytes(300_000))
            self.transport.loseConnection()

    server = Server(text)
    server.protocol = Busy
    with serving(server) as service, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        connection.connect(("127.0.0.1", port_of(service)))
        until(lambda: server.connections)
        assert len(drain(connection)) == 300_000
        connection.close()
        until(lambda: server.outcomes)
    assert not [each for each in log if "log_failure" in each]


def test_a_transport_that_was_kept() -> None:
    """Who keeps the transport that it was made with can close it, before and after the end."""

    class Keeps(PoetryProtocol):
        kept: Any

        def connectionMade(self) -> None:
            self.kept = self.transport
            super().connectionMade()

    server = Server(POEM)
    server.protocol = Keeps
    with connected(server) as (protocol, connection):
        assert isinstance(protocol, Keeps)
        assert drain(connection) == POEM
        protocol.kept.loseConnection()
        until(lambda: server.outcomes)
        protocol.kept.abortConnection()


class Waits(PoetryProtocol):
    """Sends nothing at once."""

    def connectionMade(self) -> None:
        reactor.callLater(0, super().connectionMade)


class Touches(PoetryProtocol):
    """Wants something else of its transport first."""

    def connectionMade(self) -> None:
        self.transport.setTcpKeepAlive(1)
        super().connectionMade()


class TouchesFirst(PoetryProtocol):
    """Wants it even before it is made."""

    def makeConnection(self, transport: Any) -> None:
        transport.setTcpKeepAlive(1)
        super().makeConnection(transport)


@pytest.mark.parametrize("protocol", [Waits, Touches, TouchesFirst])
@pytest.mark.parametrize("size", [3_000, SHARED - 1])
def test_a_protocol_that_makes_way_before_its_poem(
    protocol: type[PoetryProtocol], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends on Twisted's transport, and from the first byte on a close is a reset."""
    lingers: list[tuple[int, int]] = []
    hand_over = Plain.handOver

    def handOver(self: Plain, protocol: PoetryProtocol, *rest: Any) -> int:
        lingers.append(linger_of(protocol))
        return hand_over(self, protocol, *rest)

    monkeypatch.setattr(Plain, "handOver", handOver)
    server = Server(poem(size))
    server.protocol = protocol
    with serving(server) as service, socket.socket() as connection:
        service.ports[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        connection.connect(("127.0.0.1", port_of(service)))
        until(lambda: lingers)
        assert drain(connection) == poem(size)
    assert set(lingers) == {(1, 0)}


@pytest.mark.parametrize("on_instance", [False, True])
def test_a_factory_that_asks_who_connects(*, on_instance: bool) -> None:
    """An overridden `buildProtocol` is given the address, and may refuse."""
    asked: list[int] = []
    server = Server(POEM)
    build: Any = server.buildProtocol

    def ask(addr: Any) -> Any:
        asked.append(addr.port)
        return None if len(asked) == 1 else build(addr)

    class Asks(Server):
        def buildProtocol(self, addr: Any) -> Any:
            return ask(addr)

    if on_instance:
        server.buildProtocol = ask  # type: ignore[method-assign]
    with serving(server if on_instance else Asks(POEM)) as service, ExitStack() as readers:
        both = [readers.enter_context(reader(port_of(service))) for _ in range(2)]
        assert ended_with_reset(both[0])  # rather than with an empty poem
        assert drain(both[1]) == POEM
        assert asked == [each.getsockname()[1] for each in both]


def test_whom_a_factory_refuses_takes_nobody_along_at_a_stop() -> None:
    """All others in the kernel's queue get the poem."""

    class Refuses(Server):
        refused = 0

        def buildProtocol(self, addr: Any) -> PoetryProtocol | None:  # type: ignore[override]
            self.refused += 1
            return None if self.refused == 1 else super().buildProtocol(addr)  # type: ignore[return-value]

    with ExitStack() as readers:
        with serving(Refuses(POEM)) as service:
            five = [readers.enter_context(reader(port_of(service))) for _ in range(5)]
        assert ended_with_reset(five[0])
        assert [drain(each) for each in five[1:]] == [POEM] * 4


def test_a_hook_that_asks_for_more() -> None:
    """Who makes way for Twisted's transport as the stream ends is waited for by that alone."""

    class Curious(PoetryProtocol):
        def streamEnded(self) -> None:
            super().streamEnded()
            hosts.append(self.transport.getHost())

    hosts: list[Any] = []
    server = Server(POEM)
    server.protocol = Curious
    with connected(server) as (protocol, connection):
        assert (len(hosts), kind(protocol)) == (1, Transport)
        assert protocol.transport in reactor.getReaders()
        assert drain(connection) == POEM
        connection.close()
        until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]


def test_a_protocol_that_is_never_made(log: Log) -> None:
    """Where `makeConnection` raises the reader is told by a reset, and others are served."""

    class Never(PoetryProtocol):
        def makeConnection(self, transport: Any) -> None:
            if made:
                return super().makeConnection(transport)
            made.append(transport)
            raise RuntimeError

    made: list[Lean] = []
    server = Server(POEM)
    server.protocol = Never
    with serving(server) as service:
        with reader(port_of(service)) as connection:
            assert ended_with_reset(connection)
        with reader(port_of(service)) as connection:
            assert drain(connection) == POEM
    assert made[0].getHandle() is None
    log.clear()


def test_what_python_itself_asks_for() -> None:
    """Its special methods are nothing that a transport of Twisted's would have."""
    server = Server(POEM)
    with connected(server) as (protocol, _):
        assert not hasattr(protocol.transport, "__fspath__")
        assert kind(protocol) is Lean


def test_a_hook_that_changes_the_poem() -> None:
    """Those who are accepted after it, in the same turn, are served as is right for the new one."""

    class Changes(PoetryProtocol):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.factory.poem = None

    server = Server(POEM)
    server.protocol = Changes
    with serving(server) as service, ExitStack() as readers:
        first, second = (readers.enter_context(reader(port_of(service))) for _ in range(2))
        assert drain(first) == POEM
        second.sendall(b"theirs")
        second.shutdown(socket.SHUT_WR)
        assert drain(second) == b""
        until(lambda: server.told)
    assert b"theirs" in server.told


def test_no_transport_to_be_had(log: Log) -> None:
    """Where the kernel can wait for nobody more, that is told, and a stop ends."""

    server = Server(poem(SHORT))
    with serving(server) as service, socket.socket() as connection:
        service.ports[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LeanPort, "make_transport", no_room)
            connection.connect(("127.0.0.1", port_of(service)))
            until(lambda: server.outcomes)
        assert (len(server.told), len(server.outcomes)) == (1, 1)
        assert server.outcomes != ["sent"]
        assert ended_with_reset(connection)
        assert not service.connections
    log.clear()


@pytest.mark.parametrize("mistake", [RuntimeError, OSError, SystemExit])
def test_a_mistake_is_its_own_readers(mistake: type[BaseException], log: Log) -> None:
    """What a subclass raises, as a connection is made or lost, is logged; others are served."""

    class Mistaken(PoetryProtocol):
        def connectionMade(self) -> None:
            if self.factory.poem == b"first":
                raise mistake
            super().connectionMade()

        def connectionLost(self, reason: Failure = connectionDone) -> None:
            super().connectionLost(reason)
            raise mistake

    server = Server(b"first")
    server.protocol = Mistaken
    with serving(server) as service:
        with reader(port_of(service)) as connection:
            assert ended_with_reset(connection)
        server.poem = POEM
        readers = [socket.create_connection(("127.0.0.1", port_of(service))) for _ in range(9)]
        for each in readers:
            with each:
                assert drain(each) == POEM
        until(lambda: len(server.outcomes) == 10)
    assert server.outcomes.count("sent") == 9
    failures = [each["log_failure"].type for each in log if "log_failure" in each]
    assert failures == [mistake] * 11
    log.clear()


def test_a_hook_that_stops_the_service(log: Log) -> None:
    """Whoever is accepted then is served, and nothing is wrong."""

    class Stops(PoetryProtocol):
        def connectionMade(self) -> None:
            if server.connections - {self}:
                stopped.append(service.stopService())
            super().connectionMade()

    stopped: list[Deferred[None]] = []
    server = Server(POEM)
    server.protocol = Stops
    service = PoetryService([(TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"), server)])
    service.startService()
    readers = [socket.create_connection(("127.0.0.1", port_of(service))) for _ in range(5)]
    for each in readers:
        with each:
            assert drain(each) == POEM
    until(lambda: len(server.outcomes) == 5)
    wait(gatherResults(stopped))
    assert not [each for each in log if "log_failure" in each]


# Faults


@pytest.mark.parametrize("closes", [False, True])
def test_a_poem_that_is_not_taken_whole(monkeypatch: pytest.MonkeyPatch, *, closes: bool) -> None:
    """The rest goes through Twisted's transport, and who closes that resets the reader."""
    lingers: list[tuple[int, int]] = []
    send = Plain.send

    def noted(self: Plain, protocol: PoetryProtocol, poem: Poem) -> None:
        lingers.append(linger_of(protocol))
        assert not protocol.transport._shouldShutdown
        send(self, protocol, poem)

    monkeypatch.setattr(Plain, "send", noted)
    server = Server(poem(SHORT))
    with serving(server) as service, socket.socket() as connection:
        service.ports[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        connection.connect(("127.0.0.1", port_of(service)))
        until(lambda: server.connections)
        (protocol,) = server.connections
        assert (kind(protocol), protocol.size < SHORT) == (Transport, True)
        assert (linger_of(protocol), lingers) == ((1, 0), [(1, 0)])
        if closes:
            taken = 0
            while taken < protocol.size:  # so that nothing is on its way
                taken += len(connection.recv(SHORT))
            protocol.transport.connectionLost(Failure(ConnectionLost()))
            assert ended_with_reset(connection)
        else:
            assert drain(connection) == poem(SHORT)


def test_a_reader_that_is_gone_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first error is what the hooks are told, whatever the next one would be."""

    def refuse(*_: object) -> int:
        raise ConnectionResetError(errno.ECONNRESET, "the first")

    monkeypatch.setattr("poetry.wire.plain.LeanWire.handOver", refuse)
    server = Server(POEM)
    with serving(server) as service, reader(port_of(service)):
        until(lambda: server.told)
    assert isinstance(server.told[0], PoemTruncated)
    assert "the first" in str(server.told[0])
    assert server.outcomes == ["truncated"]


def test_a_reader_that_resets() -> None:
    """Who resets instead of ending has perhaps not got it, and others are served on."""
    server = Server(POEM)
    with serving(server) as service:
        with reader(port_of(service)) as connection:
            until(lambda: server.connections)
            reset(connection)
            until(lambda: server.outcomes)
        assert server.outcomes == ["truncated"]
        assert read_in_a_thread(service.addresses[0], 5) == {"whole": 5}


def read_in_a_thread(address: str, count: int) -> Any:
    """Read a service of the global reactor."""
    results: list[Any] = []
    thread = Thread(
        target=lambda: results.append(read_all(address, POEM, count=count, at_once=count))
    )
    thread.start()
    until(lambda: not thread.is_alive())
    return results[0]


@pytest.mark.parametrize("error", [errno.ENOBUFS, errno.ECONNABORTED])
def test_accepting_that_fails(error: int) -> None:
    """Twisted knows what to do about it, and does it."""
    server = Server(POEM)
    with serving(server) as service:
        port = service.ports[0]
        listening = port.socket
        asked: list[int] = []

        class Fails(socket.socket):
            def accept(self) -> Any:
                asked.append(error)
                if len(asked) < 3:
                    raise OSError(error, os.strerror(error))
                return super().accept()

        with Fails(fileno=os.dup(listening.fileno())) as failing:
            failing.setblocking(False)
            port.socket = failing
            with reader(port_of(service)) as connection:
                assert drain(connection) == POEM
            port.socket = listening
    assert len(asked) >= 3


def test_accepting_that_fails_half_way() -> None:
    """Twisted then takes no more than there is room for either."""

    class Counts(PoetryProtocol):
        def connectionMade(self) -> None:
            super().connectionMade()
            counts.append(len(self.factory.connections))

    counts: list[int] = []
    server = Server(POEM)
    server.protocol = Counts
    with serving(server, max_connections=3) as service:
        port = service.ports[0]
        listening = port.socket

        class Fails(socket.socket):
            def accept(self) -> Any:
                if counts == [1, 2] and not failed:
                    failed.append(True)
                    raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
                return super().accept()

        failed: list[bool] = []
        with Fails(fileno=os.dup(listening.fileno())) as failing, ExitStack() as readers:
            failing.setblocking(False)
            for _ in range(6):
                readers.enter_context(reader(port_of(service)))
            port.socket = failing
            until(lambda: len(counts) > 2)
            reactor.iterate(0)
            port.socket = listening
    assert (counts[:3], max(counts), failed) == ([1, 2, 3], 3, [True])


def test_who_comes_meanwhile() -> None:
    """All who are there are taken in before the reactor has its turn, up to so many."""

    class Comes(PoetryProtocol):
        def connectionMade(self) -> None:
            super().connectionMade()
            if len(readers) < AT_ONCE + 20:
                readers.append(socket.create_connection(("127.0.0.1", port_of(service))))

    readers: list[socket.socket] = []
    server = Server(POEM)
    server.protocol = Comes
    with serving(server) as service, reader(port_of(service)):
        until(lambda: server.connections)
        assert len(server.connections) == AT_ONCE
    for each in readers:
        each.close()


def test_a_kernel_that_does_not_say_who_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is asked for one at a time."""
    monkeypatch.setattr("poetry.wire.kernel.queued", lambda _: 0)
    with serving(Server(POEM)) as service:
        assert read_in_a_thread(service.addresses[0], 20) == {"whole": 20}


@pytest.mark.parametrize("text", [POEM, LONG], ids=["short", "long"])
def test_no_more_than_so_many_in_a_turn(text: bytes) -> None:
    """However many come, all else has its turn in between."""
    server = Server(text)
    listen = "tcp:0:interface=127.0.0.1:backlog=200"
    with serving(server, listen) as service, ExitStack() as readers:
        for _ in range(AT_ONCE + 20):
            readers.enter_context(reader(port_of(service)))
        service.ports[0].numberAccepts = 1_000
        counts = [0]
        while len(server.connections) < AT_ONCE + 20:
            reactor.iterate(0)
            counts.append(len(server.connections))
        assert max(after - before for before, after in pairwise(counts)) <= AT_ONCE


class Ends(PoetryProtocol):
    """Lets its reader go when it has sent the poem."""

    def streamEnded(self) -> None:
        super().streamEnded()
        self.release()


@pytest.mark.parametrize(
    ("protocol", "outcome"), [(Waits, "truncated"), (Touches, "truncated"), (Ends, "sent")]
)
def test_no_transport_for_a_protocol_of_its_own(
    protocol: type[PoetryProtocol], outcome: str, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """A reader that has nothing is reset, and never told an end after nothing."""

    monkeypatch.setattr(LeanPort, "make_transport", no_room)
    server = Server(POEM)
    server.protocol = protocol
    with serving(server) as service, reader(port_of(service)) as connection:
        until(lambda: server.outcomes)
        assert server.outcomes == [outcome]
        if outcome == "sent":
            assert drain(connection) == POEM
        else:
            assert ended_with_reset(connection)
    assert not [each for each in log if "log_failure" in each and protocol is Ends]
    log.clear()


@pytest.mark.parametrize("how", ["sweep", "last sweep", "stop"])
def test_no_transport_at_the_end(how: str, monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    """Who has everything is let go though the reactor can wait for nobody more."""

    monkeypatch.setattr("poetry.server.LINGER", 0.0)
    server = Server(POEM)
    with serving(server, idle_timeout=0.4) as service, reader(port_of(service)) as connection:
        until(lambda: server.connections)
        monkeypatch.setattr(LeanPort, "make_transport", no_room)
        if how != "sweep":
            stopped = service.stopService()
            if how == "stop":
                service.abort()
            wait(stopped)
        until(lambda: server.outcomes)
        gc.collect()  # a Deferred tells of its error only then
        assert {each["event"] for each in log if "event" in each} <= {"draining"}
        assert not [each for each in log if "log_failure" in each]
        assert not service.connections
        assert (server.outcomes, drain(connection)) == (["sent"], POEM)


@pytest.mark.parametrize("size", [3_000, SHORT, SHARED - 1, SHARED])
def test_a_stop_beside_a_reader_that_has_spoken(size: int) -> None:
    """What it has said unheard does not make a reset of the end."""
    server = Server(poem(size))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        with serving(server, grace=0) as service:
            connection.connect(("127.0.0.1", port_of(service)))
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            until(lambda: server.connections)
            (protocol,) = server.connections
            until(lambda: protocol.state is State.ENDED)
        assert (server.outcomes, drain(connection)) == (["sent"], poem(size))


def test_an_application_with_a_default_timeout() -> None:
    """Nobody waits on a socket but the reactor."""
    socket.setdefaulttimeout(0.1)
    try:
        server = Server(POEM)
        with connected(server) as (protocol, connection):
            assert protocol.transport.socket.gettimeout() is None
            waiting = protocol.transport._port.drain
            until(lambda: waiting._pause is None)  # it has been heard, and is watched
            assert drain(connection) == POEM
            connection.close()
            until(lambda: server.outcomes)
    finally:
        socket.setdefaulttimeout(None)
    assert server.outcomes == ["sent"]


def test_no_descriptor_to_wait_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none for an epoll readers are let go all the same."""

    def refuse(*_: object) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("select.epoll", refuse)
    server = Server(POEM)
    with connected(server) as (protocol, connection):
        assert (kind(protocol), protocol.state) == (Lean, State.ENDED)
        assert drain(connection) == POEM
        connection.close()
        until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]


# Limits and stops


@pytest.mark.parametrize("listen", ["tcp:0:interface=127.0.0.1", "unix:poem"])
def test_at_the_limit(listen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who wait for a place get one as soon as somebody has gone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("poetry.serving.lingering.PAUSE", 3_600.0)
    server = Server(POEM)
    with serving(server, listen, max_connections=2) as service:
        assert read_in_a_thread(service.addresses[0], 50) == {"whole": 50}
    assert server.outcomes == ["sent"] * 50


def test_a_stop_leaves_nothing() -> None:
    """Who stays after its poem is let go at a stop; then all is as it was before."""
    readers, timers = len(reactor.getReaders()), len(reactor.getDelayedCalls())
    server = Server(POEM)
    with ExitStack() as stack:
        with serving(server) as service:
            connection = stack.enter_context(reader(port_of(service)))
            until(lambda: server.connections)
        assert (server.outcomes, drain(connection)) == (["sent"], POEM)
    until(lambda: len(reactor.getReaders()) == readers)
    assert len(reactor.getDelayedCalls()) == timers


def test_a_socket_that_somebody_else_has_too() -> None:
    """As systemd may: what is accepted from it next has not asked for resets."""
    with serving(Server(POEM)) as service:
        kept = service.ports[0].socket.dup()
        assert linger_of_socket(kept) == (1, 0)
    with kept:
        assert linger_of_socket(kept) == (0, 0)


def test_a_port_that_is_closed_twice() -> None:
    """Its own `stopListening` and a stop of the service, in one turn, both end."""
    with serving(Server(POEM)) as service:
        closed = service.ports[0].stopListening()
        wait(service.stopService())
        wait(closed)


# Platforms


def test_on_each_reactor(any_reactor: Any) -> None:
    """Select, poll, epoll and asyncio's wait for one descriptor of ours as for any other."""
    server = Server(POEM)
    endpoint = TCP4ServerEndpoint(any_reactor, 0, interface="127.0.0.1")
    service = PoetryService([(endpoint, server)], clock=any_reactor)
    results: list[Any] = []
    kinds: list[type] = []
    server.observers = (*server.observers, lambda protocol: kinds.append(kind(protocol)))

    def read() -> None:
        results.append(read_all(service.addresses[0], POEM, count=50, at_once=10))
        any_reactor.callFromThread(stop)

    def stop() -> None:
        service.stopService().addCallback(lambda _: any_reactor.stop())

    thread = Thread(target=read)
    any_reactor.callWhenRunning(service.startService)
    any_reactor.callWhenRunning(thread.start)
    any_reactor.run(installSignalHandlers=False)
    thread.join(PATIENCE)
    assert (results, server.outcomes) == ([{"whole": 50}], ["sent"] * 50)
    assert kinds == [Lean] * 50


WITHOUT_EPOLL = """
import select
for name in [name for name in dir(select) if "epoll" in name.lower()]:
    delattr(select, name)
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString, serverFromString
from poetry import get_poem, serve_poem
from poetry.protocol import PoetryProtocol

async def main():
    port = await serve_poem(serverFromString(reactor, "tcp:0:interface=127.0.0.1"), b"poem")
    made = PoetryProtocol.connectionMade
    def connectionMade(self):
        print(type(self.transport).__name__)
        made(self)
    PoetryProtocol.connectionMade = connectionMade
    address = f"tcp:127.0.0.1:{port.getHost().port}"
    print(await get_poem(clientFromString(reactor, address)))

from twisted.internet.task import react
from twisted.internet.defer import Deferred
react(lambda _: Deferred.fromCoroutine(main()))
"""


def test_without_epoll() -> None:
    """Where there is none all goes through Twisted's transports."""
    command = [sys.executable, "-c", WITHOUT_EPOLL]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    assert done.stderr == b""
    assert done.stdout.split() == [b"Server", b"Client", b"b'poem'"]


def test_an_address_with_its_interface() -> None:
    """A peer of one link is told with the name of its interface, as Twisted does."""
    name = socket.if_indextoname(1)
    with socket.socket() as handle:
        connection = Lean(handle, ("fe80::1", 5, 0, 1), None, SimpleNamespace())  # type: ignore[arg-type]
        assert (connection.getPeer().host, connection.getPeer().port) == (f"fe80::1%{name}", 5)
