"""Listeners: accepting within the limit, without descriptors, and the books of each connection."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from twisted.internet.defer import succeed
from twisted.internet.endpoints import (
    AdoptedStreamServerEndpoint,
    TCP6ServerEndpoint,
    clientFromString,
    serverFromString,
)
from twisted.internet.error import CannotListenError, ConnectionLost
from twisted.internet.interfaces import IListeningPort, IReadDescriptor, IStreamServerEndpoint
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.internet.task import Clock
from twisted.internet.tcp import Port
from twisted.internet.tcp import Server as Transport
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from poetry import (
    PoemTruncated,
    PoetryProtocol,
    PoetryServerFactory,
    PoetryService,
    get_poem,
    send_poem,
)
from poetry.serving.accepting import AGAIN, AT_ONCE, Listener
from poetry.wire import kernel
from tests.calls import failing
from tests.certificates import Certificates
from tests.ends import (
    HERE,
    LONG,
    Server,
    ended_with_reset,
    port_of,
    reader,
    serving,
)
from tests.faults.readers import poem
from tests.loop import drain, reactor, turn_until_still, until, wait, wait_error
from tests.transfers import Log

POEM = poem(3_000)


def listener_of(service: PoetryService) -> Listener:
    (listener,) = service.ports
    assert isinstance(listener, Listener)
    return listener


def linger_of(handle: socket.socket) -> tuple[int, int]:
    """Whether a close resets, and after how many seconds."""
    value = handle.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
    on, seconds = struct.unpack("ii", value)
    return on, seconds


# A listener


def test_it_is_what_reactors_and_users_know() -> None:
    """It has all that a reactor asks of a descriptor, and a user of a port."""
    with serving(Server(POEM)) as service:
        listener = listener_of(service)
        verifyObject(IReadDescriptor, listener)
        verifyObject(IListeningPort, listener)
        assert listener.logPrefix() == "poetry listener"
        assert "127.0.0.1" in repr(listener)
        assert "3,000 bytes" in repr(listener)
        assert listener in reactor.getReaders()
        assert listener._port not in reactor.getReaders()


def test_it_can_be_started_again() -> None:
    """After a stop it listens on the same port, and serves."""
    service = PoetryService([(FixedPort(), PoetryServerFactory(POEM))], clock=reactor)
    service.startService()
    listener = listener_of(service)
    wait(listener.stopListening())
    assert listener.fileno() == -1
    assert listener.accept_queue == 0
    listener.startListening()
    with reader(listener.getHost().port) as connection:
        assert drain(connection) == POEM
    wait(service.stopService())


@implementer(IStreamServerEndpoint)
class FixedPort:
    """An endpoint whose port can listen again: one with a number of its own."""

    def listen(self, factory: Any) -> Any:
        with socket.create_server(("127.0.0.1", 0)) as free:
            number = free.getsockname()[1]
        return succeed(reactor.listenTCP(number, factory, interface="127.0.0.1"))


@pytest.mark.parametrize("how", ["port", "reactor", "shutdown"])
def test_whoever_closes_it(how: str) -> None:
    """Where Twisted's port or its socket is closed by others, the listener is closed as well."""
    with serving(Server(POEM)) as service:
        listener = listener_of(service)
        if how == "port":
            listener._port.connectionLost(Failure(ConnectionLost()))
        elif how == "shutdown":
            listener._port.socket.shutdown(socket.SHUT_RDWR)
        else:
            reactor.removeReader(listener)
            listener.connectionLost(Failure(ConnectionLost()))
        until(lambda: not listener.connected)
        listener.connectionLost(Failure(ConnectionLost()))
        assert listener not in reactor.getReaders()
        assert not listener._port.connected


def test_a_passed_in_port_that_is_closed_by_others() -> None:
    """Its socket is not shut down, so that nothing but the port says that it is closed."""
    with adopted(POEM) as service:
        listener = listener_of(service)
        number = port_of(service)
        listener._port.connectionLost(Failure(ConnectionLost()))
        with suppress(ConnectionRefusedError), reader(number):
            until(lambda: not listener.connected)


class adopted:
    """A service on a passed-in socket; the socket stays open here, as with systemd."""

    def __init__(self, text: bytes, family: int = socket.AF_INET) -> None:
        self.server = Server(text)
        self.family = family
        self.stack = ExitStack()

    def __enter__(self) -> PoetryService:
        host = "127.0.0.1" if self.family == socket.AF_INET else "::1"
        self.socket = self.stack.enter_context(socket.create_server((host, 0), family=self.family))
        self.socket.setblocking(False)
        endpoint = AdoptedStreamServerEndpoint(
            reactor, os.dup(self.socket.fileno()), socket.AF_INET
        )
        service = PoetryService([(endpoint, self.server)], clock=reactor)
        self.stack.callback(lambda: wait(service.stopService()))
        service.startService()
        return service

    def __exit__(self, *_: object) -> None:
        self.stack.close()


def test_a_socket_that_is_shared_is_left_as_it_is() -> None:
    """A passed-in socket is not armed, nor disarmed: each connection is, on its own socket."""
    others = adopted(POEM)
    with others as service:
        assert linger_of(others.socket) == (0, 0)
        kernel.make_close_abortive(others.socket)
        with reader(port_of(service)) as connection:
            assert drain(connection) == POEM
        wait(service.ports[0].stopListening())
        assert linger_of(others.socket) == (1, 0)


def test_readers_that_came_before_it_was_armed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is connected before the listening socket is armed is armed by itself."""
    armed: list[tuple[int, int]] = []
    first: list[socket.socket] = []
    arm = Listener._arm

    def connect_first(self: Listener) -> float:
        first.append(socket.create_connection(self._port.socket.getsockname(), 20))
        return arm(self)

    def send(handle: socket.socket, _: object) -> int:
        armed.append(linger_of(handle))
        return 0

    monkeypatch.setattr(Listener, "_arm", connect_first)
    monkeypatch.setattr("poetry.serving.accepting.send_at_once", send)
    with serving(Server(POEM)) as service, reader(port_of(service)) as second:
        until(lambda: len(armed) == 2)
        for connection in (first[0], second):
            assert drain(connection) == POEM
            connection.close()
    assert armed == [(1, 0), (1, 0)]


def test_an_ipv6_socket_that_is_called_ipv4() -> None:
    """The family is the socket's: its readers have addresses that make sense."""
    peers: list[str] = []
    others = adopted(POEM, socket.AF_INET6)
    others.server.observers = (lambda p: peers.append(p.transport.getPeer().host),)
    with others as service:
        assert service.ports[0].getHost().host == "::1"  # type: ignore[attr-defined]
        with socket.create_connection(("::1", port_of(service)), 20) as connection:
            assert drain(connection) == POEM
        until(lambda: peers)
    assert peers == ["::1"]


@pytest.mark.parametrize("gone", ["socket", "lock", "both", "directory"])
def test_a_unix_socket_that_is_gone_at_a_stop(gone: str, tmp_path: Path, log: Log) -> None:
    """The others are not to suffer: a reader in flight beside it is drained, and gets its poem."""
    directory = tmp_path / "run"
    directory.mkdir()
    path = directory / "poem"
    unix, tcp = Server(POEM), Server(LONG)
    service = PoetryService(
        [
            (serverFromString(reactor, f"unix:{path}:lockfile=1"), unix),
            (serverFromString(reactor, HERE), tcp),
        ],
        clock=reactor,
    )
    service.startService()
    with reader(port_of(service, 1)) as connection:
        until(lambda: tcp.connections)
        if gone in ("socket", "both", "directory"):
            path.unlink()
        if gone in ("lock", "both", "directory"):
            Path(f"{path}.lock").unlink()
        if gone == "directory":
            directory.rmdir()
        stopped = service.stopService()
        assert drain(connection) == LONG
        connection.close()
        wait(stopped)
    assert tcp.outcomes == ["sent"]
    assert not [port for port in service.ports if port.connected]  # type: ignore[attr-defined]
    assert set(log.names) <= {"cannot_close", "draining"}
    log.clear()


# The limit and the turn


@pytest.mark.parametrize("text", [POEM, LONG], ids=["short", "long"])
def test_no_more_than_so_many_in_a_turn(text: bytes) -> None:
    """However many come, all else has its turn in between."""
    server = Server(text)
    with serving(server, listen=f"{HERE}:backlog=200") as service, ExitStack() as readers:
        for _ in range(AT_ONCE + 20):
            readers.enter_context(reader(port_of(service)))
        counts = [0]
        while len(server.connections) < AT_ONCE + 20:
            reactor.iterate(0)
            counts.append(len(server.connections))
        assert max(after - before for before, after in pairwise(counts)) <= AT_ONCE


def test_readers_that_come_meanwhile() -> None:
    """All that are there are accepted before the reactor has its turn, up to so many."""

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
    for each in readers:  # the stop has accepted some more
        each.close()


@pytest.mark.parametrize("tells", [True, False])
def test_whether_the_kernel_tells_how_many_there_are(
    monkeypatch: pytest.MonkeyPatch, *, tells: bool
) -> None:
    """Where it does not, as of Unix sockets, accept(2) is asked until there are no more."""
    if not tells:
        monkeypatch.delattr(socket, "TCP_INFO")
    server = Server(POEM)
    with serving(server) as service, ExitStack() as readers:
        five = [readers.enter_context(reader(port_of(service))) for _ in range(5)]
        assert service.accept_queue == (5 if tells else 0)
        assert [drain(each) for each in five] == [POEM] * 5


# Without descriptors or memory


class Refusing(socket.socket):
    """A listening socket on which accept(2) fails at first."""

    errors: list[int]

    def accept(self) -> Any:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return super().accept()


def refuse(listener: Listener, *errors: int) -> None:
    """Have the next calls of accept(2) fail."""
    own = listener._socket
    listener._socket = Refusing(own.family, own.type, own.proto, own.detach())
    listener._socket.errors = list(errors)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_no_room_to_accept(error: int, log: Log) -> None:
    """It pauses, says so once, and asks again: readers wait, and are served."""
    server = Server(POEM)
    with serving(server) as service:
        refuse(listener_of(service), *[error] * 3)
        with reader(port_of(service)) as connection:
            assert drain(connection) == POEM
    assert log.names.count("cannot_accept") == 1
    log.clear()


def test_no_room_until_a_stop(log: Log) -> None:
    """A stop ends it, and leaves no timer."""
    with serving(Server(POEM)) as service:
        listener = listener_of(service)
        refuse(listener, *[errno.EMFILE] * 9)
        with reader(port_of(service)):
            until(lambda: listener._again)
            wait(service.stopService())
    assert not [each for each in reactor.getDelayedCalls() if "_try_again" in str(each)]
    log.clear()


def test_no_room_and_the_limit(log: Log) -> None:
    """A listener that may accept no more does not ask again before it may."""
    with serving(Server(POEM), max_connections=1) as service:
        listener = listener_of(service)
        refuse(listener, errno.EMFILE)
        with reader(port_of(service)) as connection:
            until(lambda: listener._again)
            service._limiter.full = True
            until(lambda: not listener._again)
            assert listener not in reactor.getReaders()
            service._limiter.full = False
            listener.resume()
            assert drain(connection) == POEM
    log.clear()


@pytest.mark.parametrize("error", [errno.ECONNABORTED, errno.EPERM, errno.EPROTO])
def test_a_connection_that_was_lost_meanwhile(error: int, log: Log) -> None:
    """The next one is accepted at once."""
    server = Server(POEM)
    with serving(server) as service:
        refuse(listener_of(service), error)
        with reader(port_of(service)) as connection:
            assert drain(connection) == POEM
    assert log.names in ([], ["draining"])
    log.clear()


def test_no_transport_to_be_had(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    """A connection that the reactor has no room for is reset: it has nothing, and knows."""
    server = Server(LONG)
    with serving(server) as service:
        add = reactor.addReader

        def full(reader: Any) -> None:
            if isinstance(reader, Transport):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            add(reader)

        monkeypatch.setattr(reactor, "addReader", full)
        with reader(port_of(service)) as connection:
            assert ended_with_reset(connection)
        assert service._limiter.count == 0
        monkeypatch.undo()
        with reader(port_of(service)) as connection:
            assert drain(connection) == LONG
    assert "connection_failed" in log.names
    log.clear()


# What a factory builds


def test_a_factory_may_refuse() -> None:
    """An overridden `buildProtocol` is given the address; None resets, and others are served."""
    asked: list[int] = []

    class Asks(Server):
        def buildProtocol(self, addr: Any) -> Any:
            asked.append(addr.port)
            return None if len(asked) == 1 else super().buildProtocol(addr)

    with serving(Asks(POEM)) as service, ExitStack() as readers:
        both = [readers.enter_context(reader(port_of(service))) for _ in range(2)]
        assert ended_with_reset(both[0])  # rather than with an empty poem
        assert drain(both[1]) == POEM
        assert asked == [each.getsockname()[1] for each in both]


def test_a_refused_reader_takes_no_other_along_at_a_stop() -> None:
    """All others in the kernel's queue get the poem."""

    class Refuses(Server):
        refused = 0

        def buildProtocol(self, addr: Any) -> Any:
            self.refused += 1
            return None if self.refused == 1 else super().buildProtocol(addr)

    with ExitStack() as readers:
        with serving(Refuses(POEM)) as service:
            five = [readers.enter_context(reader(port_of(service))) for _ in range(5)]
        assert ended_with_reset(five[0])
        assert [drain(each) for each in five[1:]] == [POEM] * 4


def test_a_receiver_ends_gracefully() -> None:
    """A client that brings a poem sees a clean end."""
    server = Server()
    with serving(server) as service, reader(port_of(service)) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        assert linger_of(protocol.transport.getHandle()) == (0, 0)
        connection.sendall(POEM)
        connection.shutdown(socket.SHUT_WR)
        assert drain(connection) == b""
        until(lambda: server.outcomes)
    assert server.told == [POEM]


def test_a_wrapped_factory_counts_too() -> None:
    """A connection counts from its accept to its close, whatever is around its protocol."""

    @implementer(IStreamServerEndpoint)
    class Wraps:
        def listen(self, factory: Any) -> Any:
            return serverFromString(reactor, HERE).listen(WrappingFactory(factory))

    server = Server(LONG)
    service = PoetryService([(Wraps(), server)], clock=reactor, max_connections=1)
    service.startService()
    for _ in range(2):
        with reader(port_of(service)) as connection:
            assert drain(connection) == LONG
    with reader(port_of(service)) as connection:
        until(lambda: service.full)
        connection.shutdown(socket.SHUT_WR)  # a wrapper hides the half-close
        assert ended_with_reset(connection)
    until(lambda: not service.connections)
    wait(service.stopService())
    assert service._limiter.count == 0


# A subclass's manners


class LeavesOut(PoetryProtocol):
    """Overrides what the test says, without calling the base class."""


def without(name: str) -> type[PoetryProtocol]:
    return type("LeavesOut", (LeavesOut,), {name: lambda *_: None})


def raising(name: str) -> type[PoetryProtocol]:
    def fail(*_: object) -> None:
        raise RuntimeError(name)

    return type("Fails", (LeavesOut,), {name: fail})


@pytest.mark.parametrize("make", [without, raising])
@pytest.mark.parametrize("text", [POEM, LONG], ids=["short", "long"])
def test_a_connectionLost_that_does_not_call_up(
    text: bytes, make: Callable[[str], type[PoetryProtocol]], log: Log
) -> None:
    """As in Twisted's own examples: its connection is counted no longer, and its end is told."""
    server = Server(text)
    server.protocol = make("connectionLost")
    with serving(server, max_connections=1) as service:
        for _ in range(4):
            with reader(port_of(service)) as connection:
                assert drain(connection) == text
        until(lambda: len(server.outcomes) == 4)
        wait(service.stopService())
    assert server.outcomes == ["sent"] * 4
    log.clear()


@pytest.mark.parametrize("make", [without, raising])
@pytest.mark.parametrize("name", ["makeConnection", "connectionMade"])
def test_a_beginning_that_does_not_call_up(
    name: str, make: Callable[[str], type[PoetryProtocol]], log: Log
) -> None:
    """Its readers are reset, at once or when idle; no place is lost, and a stop ends."""
    server = Server(POEM)
    server.protocol = make(name)
    clock = Clock()
    with serving(server, max_connections=1, clock=clock, idle_timeout=4.0) as service:
        for _ in range(3):
            with suppress(ConnectionResetError), reader(port_of(service)) as connection:
                for _ in range(3):
                    reactor.iterate(0.01)
                clock.pump([1.0] * 6)
                assert ended_with_reset(connection)
            until(lambda: not service._limiter.count)
        wait(service.stopService())
    log.clear()


@pytest.mark.parametrize("make", [without, raising])
@pytest.mark.parametrize("name", ["dataReceived", "readConnectionLost"])
def test_an_event_that_does_not_call_up(
    name: str, make: Callable[[str], type[PoetryProtocol]], log: Log
) -> None:
    """The reader is whole all the same, and its place is free as soon as it has gone."""
    server = Server(POEM)
    server.protocol = make(name)
    with serving(server, max_connections=1) as service:
        for _ in range(3):
            with reader(port_of(service)) as connection:
                connection.sendall(b"GET /")
                with suppress(ConnectionResetError):
                    assert drain(connection) == POEM
            for protocol in list(server.connections):
                protocol.transport.abortConnection()
            until(lambda: not service._limiter.count)
        wait(service.stopService())
    log.clear()


class StopsAtOnce(PoetryProtocol):
    """Lets its reader go as soon as the poem has ended."""

    def connectionMade(self) -> None:
        super().connectionMade()
        self.stop()


class StopsWhenSpokenTo(PoetryProtocol):
    """Lets its reader go as soon as it has said something."""

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.stop()


@pytest.mark.parametrize("protocol", [StopsAtOnce, StopsWhenSpokenTo])
def test_a_protocol_that_ends_while_it_is_called(protocol: type[PoetryProtocol], log: Log) -> None:
    """A connection may end inside of each call that its transport makes: nothing goes wrong."""
    server = Server(POEM)
    server.protocol = protocol
    with serving(server, max_connections=1) as service:
        for _ in range(3):
            with reader(port_of(service)) as connection:
                connection.sendall(b"GET /")
                assert drain(connection) == POEM
            until(lambda: not service._limiter.count)
    assert server.outcomes == ["sent"] * 3
    assert not [event for event in log if "log_failure" in event]


def test_a_protocol_that_is_not_ours_counts() -> None:
    """What a factory builds that is no `PoetryProtocol` is counted and closed like any other."""

    class Says(Protocol):
        def connectionMade(self) -> None:
            self.transport.write(b"hello")  # type: ignore[union-attr]
            self.transport.loseConnection()  # type: ignore[union-attr]

        def readConnectionLost(self) -> None: ...

    server = Server(POEM)
    server.protocol = Says  # type: ignore[assignment]
    with serving(server, max_connections=1) as service:
        for _ in range(3):
            with reader(port_of(service)) as connection:
                assert drain(connection) == b"hello"
        until(lambda: not service._limiter.count)


def test_a_protocol_that_is_not_ours_and_fails(log: Log) -> None:
    """What it fails with on its input is logged, and resets."""

    class Fails(Protocol):
        def dataReceived(self, data: bytes) -> None:
            raise RuntimeError(data)

    server = Server(POEM)
    server.protocol = Fails  # type: ignore[assignment]
    with serving(server, max_connections=1) as service:
        with reader(port_of(service)) as connection:
            connection.sendall(b"hello")
            assert ended_with_reset(connection)
        until(lambda: not service._limiter.count)
    log.clear()


def test_a_half_close_of_what_does_not_know_it() -> None:
    """A protocol that cannot half-close is lost, as on a transport without our books."""
    lost: list[Any] = []

    class Listens(Protocol):
        def connectionLost(self, reason: Any = None) -> None:
            lost.append(reason.value)

    server = Server(POEM)
    server.protocol = Listens  # type: ignore[assignment]
    with serving(server) as service, reader(port_of(service)) as connection:
        connection.shutdown(socket.SHUT_WR)
        until(lambda: lost)


def test_a_key_update_flood_is_not_answered_without_end(
    certificates: Certificates,
) -> None:
    """While the transport of a reader over TLS owes more than its buffer takes, its input waits."""
    server = Server(LONG)
    with serving(server, listen=certificates.listen("good")) as service:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        results: list[Any] = []

        def shake() -> None:
            raw = socket.create_connection(("127.0.0.1", port_of(service)), 20)
            tls = context.wrap_socket(raw)
            tls.sendall(b"GET / HTTP/1.1")
            results.append(tls)

        thread = Thread(target=shake)
        thread.start()
        until(lambda: results)
        with results[0]:
            (protocol,) = server.connections
            turn_until_still(protocol)
            results[0].sendall(b"more")
            below = protocol._wire.transport
            until(lambda: below not in reactor.getReaders())
            assert protocol.outcome is None
            assert drain_tls(results[0]) == LONG
        thread.join()


def drain_tls(connection: Any) -> bytes:
    """Read TLS to its end in a thread, while the reactor turns."""
    parts: list[bytes] = []
    done: list[bool] = []

    def read() -> None:
        while data := connection.recv(1 << 20):
            parts.append(data)
        done.append(True)

    thread = Thread(target=read)
    thread.start()
    until(lambda: done)
    thread.join()
    return b"".join(parts)


def test_ipv6() -> None:
    """A listener of IPv6 serves with addresses of IPv6."""
    server = Server(POEM)
    peers: list[str] = []
    server.observers = (lambda p: peers.append(p.transport.getPeer().host),)
    service = PoetryService(
        [(TCP6ServerEndpoint(reactor, 0, interface="::1"), server)], clock=reactor
    )
    service.startService()
    with socket.create_connection(("::1", port_of(service)), 20) as connection:
        assert drain(connection) == POEM
    until(lambda: peers)
    assert peers == ["::1"]
    wait(service.stopService())


def test_a_port_that_is_full_of_readers_at_a_start() -> None:
    """There is no descriptor for a listener: the service does not start, and says which."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("poetry.serving.accepting.duplicate", failing(errno.EMFILE))
        service = PoetryService([], clock=reactor)
        with pytest.raises(CannotListenError), serving(Server(POEM)):
            pass
    assert AGAIN > 0
    assert not service.ports


def test_the_port_stays_twisteds() -> None:
    """No attribute of Twisted's own port is replaced."""
    plain = reactor.listenTCP(0, ServerFactory(), interface="127.0.0.1")
    with serving(Server(POEM)) as service:
        port = listener_of(service)._port
        assert isinstance(port, Port)
        for name in ("doRead", "connectionLost", "transport", "stopListening"):
            assert name not in vars(port)
        assert set(vars(port)) == set(vars(plain))
    wait(plain.stopListening())


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No reader of the reactor stays behind."""
    before = set(reactor.getReaders())
    yield
    until(lambda: not set(reactor.getReaders()) - before)


def test_an_address_says_that_it_is_tls(certificates: Certificates) -> None:
    """What `addresses` has can be given to `poetry get`, whichever endpoint it is."""
    with serving(Server(POEM), listen=certificates.listen("good")) as service:
        assert service.addresses == [f"tls:127.0.0.1:{port_of(service)}"]
    with serving(Server(POEM)) as service:
        assert service.addresses == [f"127.0.0.1:{port_of(service)}"]


# What an attack has found


@pytest.mark.parametrize("name", ["getPoem", "buildProtocol"])
def test_what_is_set_on_the_factory_itself(name: str) -> None:
    """A method that is replaced on the instance counts as an overridden one."""
    server = Server(POEM)
    if name == "getPoem":
        server.getPoem = lambda _: b"another"  # type: ignore[method-assign,assignment]
    else:
        server.buildProtocol = lambda _: None  # type: ignore[method-assign,assignment]
    with serving(server, max_connections=1) as service:
        for _ in range(3):
            with suppress(ConnectionResetError), reader(port_of(service)) as connection:
                assert drain(connection) == b"another"
        until(lambda: not service._limiter.count)


def test_no_descriptor_to_listen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that cannot listen again leaves no port of Twisted's behind."""
    service = PoetryService([(FixedPort(), PoetryServerFactory(POEM))], clock=reactor)
    service.startService()
    listener = listener_of(service)
    wait(listener.stopListening())
    monkeypatch.setattr("poetry.serving.accepting.duplicate", failing(errno.EMFILE))
    with pytest.raises(OSError, match="open files"):
        listener.startListening()
    assert not listener._port.connected
    wait(service.stopService())


@pytest.mark.parametrize("kind", [HERE, "tls"])
def test_a_receiver_that_fails_resets(kind: str, certificates: Certificates, log: Log) -> None:
    """Where a poem cannot be taken its sender sees a reset, and no clean end."""

    class Full(PoetryProtocol):
        def chunkReceived(self, data: bytes) -> None:
            failing(errno.ENOSPC)(data)

    server = Server()
    server.protocol = Full
    listen = certificates.listen("good") if kind == "tls" else kind
    with serving(server, listen=listen) as service:
        number = port_of(service)
        address = certificates.trusting(number) if kind == "tls" else f"tcp:127.0.0.1:{number}"
        sending = send_poem(clientFromString(reactor, address), LONG)
        assert isinstance(wait_error(sending), PoemTruncated)
    assert server.outcomes == ["failed"]
    log.clear()


class Late(PoetryProtocol):
    """Begins only when it is told to, and may close before."""

    def connectionMade(self) -> None:
        waiting.append(self)


waiting: list[PoetryProtocol] = []


@pytest.mark.parametrize("how", ["loseConnection", "fails"])
def test_a_close_before_a_late_beginning(how: str, log: Log) -> None:
    """A reader that is refused before its poem has begun sees a reset, and no empty poem."""

    class Fails(Late):
        def dataReceived(self, data: bytes) -> None:
            raise RuntimeError(data)

    server = Server(POEM)
    server.protocol = Fails if how == "fails" else Late
    waiting.clear()
    with serving(server) as service, reader(port_of(service)) as connection:
        until(lambda: waiting)
        if how == "fails":
            connection.sendall(b"GET /")
        else:
            waiting[0].transport.loseConnection()
        assert ended_with_reset(connection)
        until(lambda: server.outcomes)
        PoetryProtocol.connectionMade(waiting[0])  # too late
    log.clear()


@pytest.mark.parametrize("kind", [HERE, "tls"])
def test_a_late_beginning(kind: str, certificates: Certificates) -> None:
    """The poem is sent where the base class is called, however late, over TLS too."""
    server = Server(POEM)
    server.protocol = Late
    waiting.clear()
    listen = certificates.listen("good") if kind == "tls" else kind
    with serving(server, listen=listen) as service:
        number = port_of(service)
        address = certificates.trusting(number) if kind == "tls" else f"tcp:127.0.0.1:{number}"
        getting = get_poem(clientFromString(reactor, address))
        until(lambda: waiting)
        for _ in range(30):
            reactor.iterate(0.01)
        assert waiting[0].size == 0
        PoetryProtocol.connectionMade(waiting[0])
        assert wait(getting) == POEM


@pytest.mark.parametrize("text", [POEM, LONG], ids=["short", "long"])
@pytest.mark.parametrize("kind", [HERE, "tls"])
def test_a_close_by_hand_ends_nothing(text: bytes, kind: str, certificates: Certificates) -> None:
    """`loseConnection` after the poem has begun, as QOTD has it, leaves it whole, and sent."""

    class Closes(PoetryProtocol):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.transport.loseConnection()

        def handshakeCompleted(self) -> None:
            super().handshakeCompleted()
            self.transport.loseConnection()

    server = Server(text)
    if kind == "tls":
        Closes.connectionMade = PoetryProtocol.connectionMade  # type: ignore[method-assign]
    server.protocol = Closes
    listen = certificates.listen("good") if kind == "tls" else kind
    with serving(server, listen=listen) as service:
        number = port_of(service)
        address = certificates.trusting(number) if kind == "tls" else f"tcp:127.0.0.1:{number}"
        assert wait(get_poem(clientFromString(reactor, address))) == text
        until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]


def test_a_stop_whose_callback_aborts() -> None:
    """Two stops end, though the first one's callback ends what the second waits for."""
    server = Server(LONG)
    clock = Clock()
    service = PoetryService([(serverFromString(reactor, HERE), server)], clock=clock)
    service.startService()
    with reader(port_of(service)):
        until(lambda: server.connections)
        first = service.stopService().addCallback(lambda _: service.abort())
        service.startService()
        with reader(port_of(service)):
            until(lambda: len(server.connections) == 2)
            second = service.stopService()
            clock.advance(service.grace)
            wait(first)
            wait(second)
    assert not service.connections


def test_a_server_that_half_closes_first() -> None:
    """A client that brings its poem by an endpoint goes on when the server ends its half."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        received = bytearray()

        def take() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.shutdown(socket.SHUT_WR)
                while data := connection.recv(1 << 16):
                    received.extend(data)

        thread = Thread(target=take)
        thread.start()
        address = f"tcp:127.0.0.1:{listener.getsockname()[1]}"
        wait(send_poem(clientFromString(reactor, address), LONG))
        thread.join()
    assert received == LONG
