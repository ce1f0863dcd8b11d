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
from OpenSSL import SSL
from twisted.internet.defer import Deferred, fail, succeed
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
from poetry.serving.accepting import AGAIN, Listener
from poetry.system.adopted import adopt
from poetry.system.features import AT_ONCE
from poetry.wire import kernel
from tests.calls import failing
from tests.certificates import Certificates
from tests.ends import (
    HERE,
    LONG,
    Server,
    Wraps,
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
    """The value of SO_LINGER: whether a close resets, and after how many seconds."""
    value = handle.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
    on, seconds = struct.unpack("ii", value)
    return on, seconds


# A listener


def test_listener_is_a_descriptor_and_a_port() -> None:
    """A listener has all that a reactor asks of a descriptor, and a user of a port."""
    with serving(Server(POEM)) as service:
        listener = listener_of(service)
        verifyObject(IReadDescriptor, listener)
        verifyObject(IListeningPort, listener)
        assert listener.logPrefix() == "poetry listener"
        assert "127.0.0.1" in repr(listener)
        assert "3,000 bytes" in repr(listener)
        assert listener in reactor.getReaders()
        assert listener._port not in reactor.getReaders()


def test_stopped_listener_starts_again() -> None:
    """After a stop a listener listens on the same port again, and serves."""
    service = PoetryService([(FixedPort(), PoetryServerFactory(POEM))], clock=reactor)
    service.startService()
    listener = listener_of(service)
    wait(listener.stopListening())
    assert listener.fileno() == -1
    assert listener.accept_queue == 0
    listener.startListening()
    with reader(listener.getHost().port) as connection:
        assert drain(connection) == POEM
    until(lambda: not service.connections)
    assert listener._lingering.fileno() != -1, "readers of this start have no epoll ready"
    wait(service.stopService())


@implementer(IStreamServerEndpoint)
class FixedPort:
    """An endpoint whose port has a number of its own, so that it can listen again."""

    def listen(self, factory: Any) -> Any:
        with socket.create_server(("127.0.0.1", 0)) as free:
            number = free.getsockname()[1]
        return succeed(reactor.listenTCP(number, factory, interface="127.0.0.1"))


@pytest.mark.parametrize("how", ["port", "reactor", "shutdown"])
def test_listener_closes_with_twisteds_port(how: str) -> None:
    """When Twisted's port or its socket is closed from outside, the listener closes as well."""
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


def test_listener_closes_with_a_passed_in_port() -> None:
    """A passed-in socket is not shut down: the port alone tells that it has closed."""
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


def test_passed_in_socket_keeps_its_options() -> None:
    """A passed-in socket keeps its SO_LINGER; each connection sets its own."""
    others = adopted(POEM)
    with others as service:
        assert linger_of(others.socket) == (0, 0)
        kernel.make_close_abortive(others.socket)
        with reader(port_of(service)) as connection:
            assert drain(connection) == POEM
        wait(service.ports[0].stopListening())
        assert linger_of(others.socket) == (1, 0)


@implementer(IStreamServerEndpoint)
class Wrapped:
    """An endpoint around another, whose socket may be anybody's; it may listen later."""

    def __init__(self, inner: IStreamServerEndpoint, when: Deferred[None] | None = None) -> None:
        self._inner = inner
        self._when = succeed(None) if when is None else when

    def listen(self, factory: Any) -> Any:
        return self._when.addCallback(lambda _: self._inner.listen(factory))


def test_socket_of_an_unknown_endpoint_keeps_its_options() -> None:
    """A socket that may have been passed in keeps its SO_LINGER, and its readers are reset."""
    with socket.create_server(("127.0.0.1", 0)) as shared:
        passed_in = AdoptedStreamServerEndpoint(reactor, os.dup(shared.fileno()), socket.AF_INET)
        service = PoetryService([(Wrapped(passed_in), Server(LONG))], clock=reactor)
        service.startService()
        with reader(port_of(service)) as connection:
            until(lambda: service.connections)
            assert linger_of(shared) == (0, 0)
            service.abort()
            with pytest.raises(ConnectionResetError):
                drain(connection)
        wait(service.stopService())


@pytest.mark.parametrize("end", ["stop", "failed start", "stop before it listens"])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_passed_in_socket_outlives_a_server(tmp_path: Path, family: int, end: str) -> None:
    """A passed-in socket is neither changed nor shut down nor removed: others have it too."""
    path = tmp_path / "socket"
    with socket.socket(family) as shared:
        shared.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(path))
        shared.listen()
        for file in tmp_path.iterdir():
            file.chmod(0o600)
        modes = [file.stat().st_mode for file in tmp_path.iterdir()]

        def served() -> None:
            with socket.socket(family) as connection:
                connection.connect(shared.getsockname())
                assert drain(connection) == POEM

        when: Deferred[None] = Deferred()
        endpoint: Any = AdoptedStreamServerEndpoint(reactor, os.dup(shared.fileno()), family)
        if end == "stop before it listens":
            adopt(endpoint)
            endpoint = Wrapped(endpoint, when)
        listeners = [(endpoint, Server(POEM))]
        if end == "failed start":
            failed: Deferred[None] = fail(CannotListenError("", 0, OSError("none")))
            listeners.append((Wrapped(endpoint, failed), Server(POEM)))
        service = PoetryService(listeners, clock=reactor)
        with suppress(CannotListenError):
            service.startService()
        if end == "stop":
            served()
        ports = service.ports
        stopped = service.stopService()
        when.callback(None)
        wait(stopped)
        if end == "stop" and family == socket.AF_UNIX:
            with pytest.raises(CannotListenError, match="is closed"):
                ports[0].startListening()
        with socket.socket(family) as connection:
            connection.connect(shared.getsockname())
            shared.accept()[0].close()
        assert [file.stat().st_mode for file in tmp_path.iterdir()] == modes


def test_early_readers_get_the_abortive_close_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections made before the listening socket has SO_LINGER set it themselves."""
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


def test_passed_in_ipv6_socket_has_ipv6_addresses() -> None:
    """The address family is the socket's, whatever the endpoint says."""
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
def test_missing_unix_socket_does_not_hinder_a_stop(gone: str, tmp_path: Path, log: Log) -> None:
    """A reader in flight on another listener gets its poem although a socket's file is gone."""
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


@pytest.mark.parametrize("name", ["", "\0abc", "abcd", "\0\n\udcff\x1b"])
def test_name_of_a_unix_reader_is_any(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader's socket may have any name, also one that is as long as an address of IPv6."""
    monkeypatch.chdir(tmp_path)
    with serving(Server(POEM), listen="unix:poem") as service, socket.socket(socket.AF_UNIX) as own:
        assert service.ports
        own.settimeout(20)
        if name:
            own.bind(os.fsencode(name))
        own.connect("poem")
        assert drain(own) == POEM


# The limit and the turn


@pytest.mark.parametrize("text", [POEM, LONG], ids=["short", "long"])
def test_one_turn_accepts_a_bounded_number(text: bytes) -> None:
    """However many readers connect, the reactor has its turn after `AT_ONCE` of them."""
    server = Server(text)
    with serving(server, listen=f"{HERE}:backlog=200") as service, ExitStack() as readers:
        for _ in range(AT_ONCE + 20):
            readers.enter_context(reader(port_of(service)))
        counts = [0]
        while len(server.connections) < AT_ONCE + 20:
            reactor.iterate(0)
            counts.append(len(server.connections))
        assert max(after - before for before, after in pairwise(counts)) <= AT_ONCE


def test_one_turn_accepts_readers_that_connect_during_it() -> None:
    """Readers that connect while others are accepted have the same turn, up to `AT_ONCE`."""

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
def test_readers_are_accepted_without_tcp_info_too(
    monkeypatch: pytest.MonkeyPatch, *, tells: bool
) -> None:
    """Without TCP_INFO, as for Unix sockets, accept(2) is called until the queue is empty."""
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
    """Let the next calls of accept(2) fail."""
    own = listener._socket
    listener._socket = Refusing(own.family, own.type, own.proto, own.detach())
    listener._socket.errors = list(errors)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_accepting_pauses_without_resources(error: int, log: Log) -> None:
    """A listener pauses, logs that once, and tries again: readers wait, and are served."""
    server = Server(POEM)
    with serving(server) as service:
        refuse(listener_of(service), *[error] * 3)
        with reader(port_of(service)) as connection:
            assert drain(connection) == POEM
    assert log.names.count("cannot_accept") == 1
    log.clear()


def test_stop_ends_a_pause_of_accepting(log: Log) -> None:
    """A stop ends the pause, and leaves no timer."""
    with serving(Server(POEM)) as service:
        listener = listener_of(service)
        refuse(listener, *[errno.EMFILE] * 9)
        with reader(port_of(service)):
            until(lambda: listener._again)
            wait(service.stopService())
    assert not [each for each in reactor.getDelayedCalls() if "_try_again" in str(each)]
    log.clear()


def test_pause_of_accepting_respects_the_limit(log: Log) -> None:
    """A listener that the limit holds back does not try again before it may accept."""
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
def test_aborted_connection_does_not_pause_accepting(error: int, log: Log) -> None:
    """After a connection was lost in the queue the next one is accepted at once."""
    server = Server(POEM)
    with serving(server) as service:
        refuse(listener_of(service), error)
        with reader(port_of(service)) as connection:
            assert drain(connection) == POEM
    assert log.names in ([], ["draining"])
    log.clear()


def test_connection_the_reactor_refuses_is_reset(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    """A connection that the reactor cannot watch is reset before its first byte."""
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


def test_buildProtocol_may_refuse_a_connection() -> None:
    """An overridden `buildProtocol` gets the address; None resets, and other readers are served."""
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


def test_buildProtocol_may_refuse_a_connection_over_tls(
    certificates: Certificates, log: Log
) -> None:
    """A connection that is refused below TLS is reset, and no defect."""
    server = Server(POEM)
    server.buildProtocol = lambda _: None  # type: ignore[method-assign,assignment]
    listen = certificates.listen("good")
    with serving(server, listen=listen) as service, reader(port_of(service)) as connection:
        assert ended_with_reset(connection)
    assert not [event for event in log if "log_failure" in event]


def test_stop_serves_the_queue_despite_a_refused_reader() -> None:
    """All other readers in the kernel's queue get the poem."""

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


def test_receiver_ends_cleanly() -> None:
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
    assert server.results == [POEM]


def test_connections_of_a_wrapped_factory_are_counted() -> None:
    """A connection counts from its accept to its close, whatever wraps its protocol."""
    server = Server(LONG)
    service = PoetryService([(Wraps(HERE), server)], clock=reactor, max_connections=1)
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


def test_early_close_notify_under_a_wrapper_resets(certificates: Certificates) -> None:
    """A wrapper over TLS hides the reader's close_notify; no answer of ours may end a part."""
    ends: list[Exception] = []

    def end_first(port: int) -> None:
        with reader(port) as plain:
            plain.settimeout(None)
            connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD), plain)
            connection.set_connect_state()
            connection.do_handshake()
            connection.shutdown()
            try:
                while True:
                    connection.recv(1 << 16)
            except SSL.Error as error:
                ends.append(error)

    server = Server(LONG)
    service = PoetryService([(Wraps(certificates.listen("good")), server)])
    service.startService()
    thread = Thread(target=end_first, args=[port_of(service)])
    thread.start()
    until(lambda: server.outcomes and ends)
    thread.join()
    wait(service.stopService())
    assert [type(error) for error in ends] == [SSL.SysCallError]
    assert server.outcomes == ["truncated"]


# A subclass's manners


class LeavesOut(PoetryProtocol):
    """The base of subclasses that do not call the methods which they override."""


def without(name: str) -> type[PoetryProtocol]:
    return type("LeavesOut", (LeavesOut,), {name: lambda *_: None})


def raising(name: str) -> type[PoetryProtocol]:
    def fail(*_: object) -> None:
        raise RuntimeError(name)

    return type("Fails", (LeavesOut,), {name: fail})


@pytest.mark.parametrize("make", [without, raising])
@pytest.mark.parametrize("text", [POEM, LONG], ids=["short", "long"])
def test_connectionLost_without_super_frees_the_place(
    text: bytes, make: Callable[[str], type[PoetryProtocol]], log: Log
) -> None:
    """The connection no longer counts, and its outcome is reported, as in Twisted's examples."""
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
@pytest.mark.parametrize("text", [POEM, LONG], ids=["short", "long"])
@pytest.mark.parametrize("over", ["tcp", "tls"])
def test_connectionLost_without_super_loses_no_poem_that_came(
    over: str,
    text: bytes,
    make: Callable[[str], type[PoetryProtocol]],
    certificates: Certificates,
    log: Log,
) -> None:
    """A poem that was received is handed on, and its outcome is reported."""
    server = Server()
    server.protocol = make("connectionLost")
    listen = HERE if over == "tcp" else certificates.listen("good")
    with serving(server, listen=listen) as service:
        port = port_of(service)
        to = f"tcp:127.0.0.1:{port}" if over == "tcp" else certificates.trusting(port)
        wait(send_poem(clientFromString(reactor, to), text))
        until(lambda: server.outcomes)
    assert (server.outcomes, server.results) == (["received"], [text])
    log.clear()


@pytest.mark.parametrize("make", [without, raising])
@pytest.mark.parametrize("name", ["makeConnection", "connectionMade"])
def test_connectionMade_without_super_resets(
    name: str, make: Callable[[str], type[PoetryProtocol]], log: Log
) -> None:
    """The readers are reset, at once or when idle; no place is lost, and a stop ends."""
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
def test_event_without_super_keeps_the_poem_whole(
    name: str, make: Callable[[str], type[PoetryProtocol]], log: Log
) -> None:
    """The reader is whole all the same, and its place is free as soon as it has closed."""
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
    """Stops as soon as the poem has ended."""

    def connectionMade(self) -> None:
        super().connectionMade()
        self.stop()


class StopsWhenSpokenTo(PoetryProtocol):
    """Stops at the first input."""

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.stop()


@pytest.mark.parametrize("protocol", [StopsAtOnce, StopsWhenSpokenTo])
def test_protocol_may_stop_inside_each_event(protocol: type[PoetryProtocol], log: Log) -> None:
    """A connection may end inside each call that its transport makes."""
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


def test_foreign_protocol_is_counted() -> None:
    """A protocol that is no `PoetryProtocol` is counted and closed like any other."""

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


def test_foreign_protocol_that_raises_is_reset(log: Log) -> None:
    """An error on input is logged, and resets the connection."""

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


def test_foreign_protocol_without_half_close_is_lost() -> None:
    """A half-close ends a protocol that cannot half-close, as on Twisted's own transport."""
    lost: list[Any] = []

    class Listens(Protocol):
        def connectionLost(self, reason: Any = None) -> None:
            lost.append(reason.value)

    server = Server(POEM)
    server.protocol = Listens  # type: ignore[assignment]
    with serving(server) as service, reader(port_of(service)) as connection:
        connection.shutdown(socket.SHUT_WR)
        until(lambda: lost)


def test_key_update_flood_pauses_input(
    certificates: Certificates,
) -> None:
    """While the transport of a TLS reader owes more than its buffer takes, its input waits."""
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


def test_close_notify_during_the_handshake_is_no_defect(
    certificates: Certificates, log: Log
) -> None:
    """A peer that ends TLS during the handshake is a failed handshake, and no traceback."""
    server = Server(POEM)
    hello = ssl.MemoryBIO()
    tls = certificates.context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="a.test")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    listen = certificates.listen("good")
    with serving(server, listen=listen) as service, reader(port_of(service)) as connection:
        connection.sendall(hello.read() + b"\x15\x03\x03\x00\x02\x01\x00")
        until(lambda: server.results)
    assert server.outcomes == ["handshake"]
    assert "hook_failed" not in log.names


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


def test_ipv6_listener_has_ipv6_addresses() -> None:
    """A listener on IPv6 serves, with addresses of IPv6."""
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


def test_start_without_a_descriptor_fails() -> None:
    """Without a descriptor for a listener the service does not start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("poetry.serving.accepting.duplicate", failing(errno.EMFILE))
        service = PoetryService([], clock=reactor)
        with pytest.raises(CannotListenError), serving(Server(POEM)):
            pass
    assert AGAIN > 0
    assert not service.ports


def test_no_attribute_of_twisteds_port_is_replaced() -> None:
    """Twisted's port has the attributes of any other port, and no more."""
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
    """Check that no descriptor stays with the reactor."""
    before = set(reactor.getReaders())
    yield
    until(lambda: not set(reactor.getReaders()) - before)


def test_addresses_name_tls(certificates: Certificates) -> None:
    """`addresses` has what `poetry get` takes, for TLS too."""
    with serving(Server(POEM), listen=certificates.listen("good")) as service:
        assert service.addresses == [f"tls:127.0.0.1:{port_of(service)}"]
    with serving(Server(POEM)) as service:
        assert service.addresses == [f"127.0.0.1:{port_of(service)}"]


# What an attack has found


@pytest.mark.parametrize("name", ["getPoem", "buildProtocol"])
def test_method_set_on_the_factory_counts_as_overridden(name: str) -> None:
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


def test_restart_without_a_descriptor_leaves_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_listener_that_is_shut_down_is_closed_and_logged(
    kind: str, reads: bool, tmp_path: Path, log: Log
) -> None:
    """A socket that another process has shut down is readable for ever: one line, and no spin."""
    listen = HERE if kind == "tcp" else f"unix:{tmp_path / 'socket'}"
    with serving(Server(POEM), listen=listen) as service:
        (listener,) = service.ports
        assert isinstance(listener, Listener)
        listener._socket.shutdown(socket.SHUT_RDWR)
        if reads:  # some reactors report this as something to read
            listener.doRead()
        until(lambda: listener not in reactor.getReaders())
        assert not listener.connected
    assert log.names == ["cannot_accept"]


def test_listener_without_poll_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no poll(2), as on Windows, nothing accepted means nothing."""
    monkeypatch.delattr("select.poll")
    with serving(Server(POEM)) as service:
        (listener,) = service.ports
        assert isinstance(listener, Listener)
        listener.doRead()
        with reader(port_of(service)) as connection:
            assert drain(connection) == POEM


class Refills:
    """A queue that has one more reader each time that one is accepted."""

    def __init__(self, service: PoetryService) -> None:
        self.port = port_of(service)
        self.readers: list[socket.socket] = []

    def buildProtocol(self, _: object) -> None:
        self.connect()

    def connect(self) -> None:
        self.readers.append(socket.create_connection(("127.0.0.1", self.port), 20))


def test_stop_accepts_as_many_as_there_are() -> None:
    """Readers that come while the listener closes do not keep it open."""
    server = Server(POEM)
    with serving(server) as service:
        refills = Refills(service)
        server.buildProtocol = refills.buildProtocol  # type: ignore[method-assign,assignment]
        for _ in range(3):
            refills.connect()
        wait(service.stopService())
        assert len(refills.readers) == 6
    for connection in refills.readers:
        connection.close()


def test_stop_at_the_limit_says_whom_it_resets(log: Log) -> None:
    """Those for whom there is no place are reset with the listener, and counted."""
    with serving(Server(LONG), max_connections=1) as service, ExitStack() as all_:
        for _ in range(4):
            all_.enter_context(reader(port_of(service)))
        until(lambda: service.accept_queue == 3)
        service.stopService()
    [event] = [event for event in log if event.get("event") == "queue_reset"]
    assert event["count"] == 3


def leave(_: object) -> None:
    raise SystemExit


@pytest.mark.parametrize("name", ["chunkReceived", "dataReceived"])
@pytest.mark.parametrize("fail", [failing(errno.ENOSPC), leave], ids=["full", "exit"])
@pytest.mark.parametrize("kind", [HERE, "tls"])
def test_failed_receiver_resets_its_sender(
    kind: str,
    fail: Callable[[object], object],
    name: str,
    certificates: Certificates,
    log: Log,
) -> None:
    """The sender of a poem that cannot be taken sees a reset, and no clean end."""
    Full = type("Full", (PoetryProtocol,), {name: lambda _, data: fail(data)})

    server = Server()
    server.protocol = Full
    listen = certificates.listen("good") if kind == "tls" else kind
    with serving(server, listen=listen) as service:
        number = port_of(service)
        address = certificates.trusting(number) if kind == "tls" else f"tcp:127.0.0.1:{number}"
        sending = send_poem(clientFromString(reactor, address), LONG)
        assert isinstance(wait_error(sending), PoemTruncated)
    assert server.outcomes == ["failed"]
    assert "hook_failed" in log.names
    log.clear()


class HalfCloses(PoetryProtocol):
    """Half-closes before it receives."""

    def connectionMade(self) -> None:
        super().connectionMade()
        self.transport.loseWriteConnection()

    def writeConnectionLost(self) -> None:
        half_closed.append(self)


half_closed: list[PoetryProtocol] = []


@pytest.mark.parametrize("wrapped", [False, True])
def test_receiver_that_half_closes_is_told(wrapped: bool) -> None:
    """A service passes `writeConnectionLost` on, to a protocol that knows of half-closes."""
    server = Server()
    server.protocol = HalfCloses
    half_closed.clear()
    endpoint = Wraps(HERE) if wrapped else serverFromString(reactor, HERE)
    service = PoetryService([(endpoint, server)])
    service.startService()
    with reader(port_of(service)) as connection:
        assert drain(connection) == b""
        connection.sendall(POEM)
    until(lambda: server.outcomes)
    wait(service.stopService())
    assert server.outcomes == ["received"]
    assert len(half_closed) == (not wrapped)


class Late(PoetryProtocol):
    """Begins only when the test says so, and may close before."""

    def connectionMade(self) -> None:
        waiting.append(self)


waiting: list[PoetryProtocol] = []


@pytest.mark.parametrize("how", ["loseConnection", "fails"])
def test_close_before_a_late_beginning_resets(how: str, log: Log) -> None:
    """A reader refused before its poem has begun sees a reset, and no empty poem."""

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
def test_late_beginning_sends_the_poem(kind: str, certificates: Certificates) -> None:
    """The poem is sent when the base class is called, however late, over TLS too."""
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
def test_loseConnection_leaves_the_poem_whole(
    text: bytes, kind: str, certificates: Certificates
) -> None:
    """`loseConnection` after the poem has begun, as QOTD servers do, leaves the poem whole."""

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


def test_abort_in_the_callback_of_a_stop_ends_the_next_stop() -> None:
    """Both stops end, though the first one's callback aborts what the second waits for."""
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


def test_sender_goes_on_after_the_servers_half_close() -> None:
    """A client that brings a poem by an endpoint goes on when the server ends its half."""
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
