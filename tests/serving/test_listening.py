"""Listeners that open together, sooner or later, and the life of a service."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from zope.interface import implementer

from poetry import PoetryServerFactory, PoetryService, serve_poem
from poetry.serving.accepting import Listener
from poetry.serving.listening import Listening
from tests.calls import failing
from tests.ends import LONG, reader
from tests.loop import drain, reactor, until, wait, wait_error
from tests.transfers import Log


@implementer(IStreamServerEndpoint)
class Later:
    """An endpoint that listens when the test says so, as Tor's does after a while."""

    def __init__(self) -> None:
        self.listening: Deferred[IListeningPort] = Deferred()
        self.port: Any = None

    def listen(self, factory: Factory) -> Deferred[IListeningPort]:  # type: ignore[override]
        self.factory = factory
        return self.listening

    def open(self) -> None:
        """Listen now."""
        self.port = reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        self.listening.callback(self.port)


def here() -> TCP4ServerEndpoint:
    return TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")


def test_late_endpoint_serves() -> None:
    """`serve_poem` fires when the endpoint listens at last, and the poem is served."""
    later = Later()
    serving = serve_poem(later, b"poem")
    assert not serving.called
    later.open()
    port: Any = wait(serving)
    assert isinstance(port, Listener)
    with reader(port.getHost().port) as connection:
        assert drain(connection) == b"poem"
    wait(port.stopListening())


class Full:
    """A reactor that for a while has no room for another listener."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refused = 0
        self.is_full = True
        self._add = reactor.addReader
        monkeypatch.setattr(reactor, "addReader", self.add)

    def add(self, reader: Any) -> None:
        if self.is_full and isinstance(reader, Listener):
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._add(reader)


def test_accepting_resumes_when_the_reactor_has_room(
    monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """Readers that wait at the limit are served as soon as the reactor can watch the listeners."""
    served = [(here(), PoetryServerFactory(poem)) for poem in (b"one", b"two")]
    service = PoetryService(served, max_connections=1, clock=reactor)
    service.startService()
    ports = [port.getHost().port for port in service.ports]  # type: ignore[attr-defined]
    with reader(ports[0]) as first:
        until(lambda: service.full)
        full = Full(monkeypatch)
        assert drain(first) == b"one"
    until(lambda: full.refused > 3)
    with reader(ports[0]) as second, reader(ports[1]) as third:
        full.is_full = False
        assert drain(second) == b"one"
        second.close()
        assert drain(third) == b"two"
    wait(service.stopService())
    assert "hook_failed" not in log.names
    log.clear()


@pytest.mark.parametrize("how", ["stop", "limit"])
def test_resuming_is_given_up_when_not_needed(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reactor is not asked again once the listener is closed, or the limit is reached again."""
    served = [(here(), PoetryServerFactory(b"poem")) for _ in range(2)]
    service = PoetryService(served, max_connections=1, clock=reactor)
    service.startService()
    timers = len(reactor.getDelayedCalls())
    port: int = service.ports[0].getHost().port  # type: ignore[attr-defined]
    with reader(port) as connection:
        until(lambda: service.full)
        full = Full(monkeypatch)
        drain(connection)
    until(lambda: full.refused > 1)
    if how == "limit":
        service._limiter.enter()
        service._limiter.pause_if_full()
        assert not [each for each in reactor.getDelayedCalls() if "_try_again" in str(each)]
        service._limiter.count -= 1
    wait(service.stopService())
    until(lambda: len(reactor.getDelayedCalls()) == timers)


def test_late_failure_of_an_endpoint_fails_serve_poem(log: Log) -> None:
    """`serve_poem` fails with any late error, and nothing goes on."""
    later = Later()
    serving = serve_poem(later, b"poem")
    later.listening.errback(OSError(5, "no onions today"))
    assert isinstance(wait_error(serving), CannotListenError)
    assert log.names == ["cannot_listen"]


def test_late_failure_of_an_endpoint_closes_the_others(log: Log) -> None:
    """All endpoints of a service listen, or none; after a failure it is not running."""
    later = Later()
    service = PoetryService(
        [(here(), PoetryServerFactory(b"one")), (later, PoetryServerFactory(b"two"))],
        clock=reactor,
    )
    service.startService()
    listening = service.whenListening()
    (port,) = service.ports
    later.listening.errback(CannotListenError("127.0.0.1", 1, OSError(98, "taken")))
    assert isinstance(wait_error(listening), CannotListenError)
    until(lambda: not port.connected)  # type: ignore[attr-defined]
    assert not service.running
    assert "cannot_listen" in [event.get("event") for event in log]
    assert isinstance(wait_error(service.whenListening()), CannotListenError)
    assert (service.addresses, service.ports) == ([], [])


def test_stop_before_an_endpoint_listens() -> None:
    """A port that opens after a stop is closed at once."""
    later = Later()
    service = PoetryService([(later, PoetryServerFactory(b"poem"))], clock=reactor)
    service.startService()
    listening = service.whenListening()
    wait(service.stopService())
    assert isinstance(wait_error(listening), CancelledError)
    later.open()
    until(lambda: not later.port.connected)
    assert isinstance(wait_error(service.whenListening()), CancelledError)
    assert (service.addresses, service.ports) == ([], [])


def test_cancelled_serve_poem_leaves_no_listener() -> None:
    """After a cancel, a port that opens late is closed at once."""
    later = Later()
    serving = serve_poem(later, b"poem")
    serving.cancel()
    assert isinstance(wait_error(serving), CancelledError)
    later.open()
    until(lambda: not later.port.connected)


def test_stop_ends_after_a_port_was_closed() -> None:
    """A stop ends although the port was closed before."""
    service = PoetryService([(here(), PoetryServerFactory(b"poem"))], clock=reactor)
    service.startService()
    wait(service.ports[0].stopListening())
    wait(service.stopService())


@pytest.mark.parametrize("port_first", [False, True])
def test_closed_port_leaves_no_timer(*, port_first: bool) -> None:
    """After the last connection and the port, in either order, no timer runs."""
    port: Any = wait(serve_poem(here(), b"poem"))
    service = port._factory.service
    with reader(port.getHost().port) as connection:
        assert drain(connection) == b"poem"
        assert reactor.getDelayedCalls()
        if port_first:
            wait(port.stopListening())
            assert reactor.getDelayedCalls()
    until(lambda: not service.connections)
    if not port_first:
        wait(port.stopListening())
    assert not reactor.getDelayedCalls()


# The life of a service


def flying(service: PoetryService) -> socket.socket:
    """Connect a reader to the last start of a service."""
    port: Any = service.ports[0]
    before = len(service.connections)
    connection = socket.create_connection(("127.0.0.1", port.getHost().port), 20)
    until(lambda: len(service.connections) > before)
    return connection


@pytest.mark.parametrize("orders", ["sS", "sSsS", "SsSsS", "sSSsS", "ssSS", "psSpsS", "pSsS"])
@pytest.mark.parametrize("read", [False, True], ids=["nobody", "readers"])
def test_starts_and_stops_in_every_order(orders: str, *, read: bool) -> None:
    """p(rivileged start), s(tart), S(top) in any order: each stop ends, each reader is whole."""
    service = PoetryService([(here(), PoetryServerFactory(LONG))], clock=reactor)
    stops: list[Deferred[None]] = []
    readers: list[socket.socket] = []
    for order in orders:
        if order == "p":
            service.privilegedStartService()
        elif order == "s":
            service.startService()
            assert (service.running, len(service.ports)) == (True, 1)
            if read:
                readers.append(flying(service))
        else:
            stops.append(service.stopService())
            assert not service.running
    for connection in readers:
        assert drain(connection) == LONG
        connection.close()
    for stop in stops:
        assert wait(stop) is None
    assert not service.connections
    assert not reactor.getDelayedCalls()


def test_start_serves_while_the_last_stop_drains() -> None:
    """Readers in flight have their grace while the next start serves already."""
    service = PoetryService([(here(), PoetryServerFactory(LONG))], clock=reactor, grace=0.01)
    service.startService()
    with flying(service) as stalled:
        stopped = service.stopService()
        service.startService()
        with flying(service) as served:
            wait(stopped)
            with pytest.raises(ConnectionResetError):
                drain(stalled)
            assert drain(served) == LONG
    wait(service.stopService())


def test_service_stopped_at_its_limit_serves_again() -> None:
    """A service that was stopped at its limit has free places when it starts again."""
    factory = PoetryServerFactory(LONG)
    service = PoetryService([(here(), factory)], clock=reactor, max_connections=1)
    for _ in range(2):
        service.startService()
        with flying(service) as connection:
            assert service.full
            stopped = service.stopService()
            assert drain(connection) == LONG
        wait(stopped)
        assert not service.full


def test_factory_belongs_to_one_service() -> None:
    """A second service refuses a factory of another one."""
    factory = PoetryServerFactory(b"poem")
    PoetryService([(here(), factory)], clock=reactor)
    with pytest.raises(ValueError, match="in another service"):
        PoetryService([(here(), factory)], clock=reactor)


def test_factory_on_two_endpoints_counts_connections_once() -> None:
    """In one service a factory may be on several endpoints, and each connection counts once."""
    factory = PoetryServerFactory(b"poem")
    service = PoetryService([(here(), factory), (here(), factory)], clock=reactor)
    service.startService()
    for port in service.ports:
        with reader(port.getHost().port) as connection:  # type: ignore[attr-defined]
            assert drain(connection) == b"poem"
    wait(service.stopService())
    assert not service.connections


def test_whenListening_fails_after_a_failure() -> None:
    """`whenListening` fails for later callers too, and the remaining endpoints are not tried."""
    tried: list[str] = []

    @implementer(IStreamServerEndpoint)
    class Taken:
        def listen(self, _: Factory) -> Deferred[IListeningPort]:  # type: ignore[override]
            tried.append("here")
            raise CannotListenError("127.0.0.1", 1, OSError(98, "taken"))

    listeners = Listening(lambda _index, port: port)
    listeners.listen([(Taken(), Factory()), (Taken(), Factory())])
    assert isinstance(wait_error(listeners.whenListening()), CannotListenError)
    assert tried == ["here"]


def test_stop_waits_for_its_own_connections() -> None:
    """A connection of the next start that ends does not end the last stop's wait."""
    service = PoetryService([(here(), PoetryServerFactory(LONG))], clock=reactor)
    service.startService()
    with flying(service) as stalled:
        stopped = service.stopService()
        service.startService()
        with flying(service) as served:
            assert drain(served) == LONG
        until(lambda: len(service.connections) == 1)
        assert not service._stops[0].done.called
        assert drain(stalled) == LONG
    wait(stopped)
    wait(service.stopService())


def test_failed_close_of_a_port_is_logged(log: Log) -> None:
    """The error is logged, and hinders neither the other ports nor the stop."""

    class Stuck:
        stopListening = failing(errno.EIO)

    @implementer(IStreamServerEndpoint)
    class Opens:
        def listen(self, _: Any) -> Any:
            return succeed(Stuck())

    listening = Listening(lambda _index, port: port)
    listening.listen([(Opens(), Factory()), (Opens(), Factory())])
    wait(listening.close())
    assert log.names == ["cannot_close"] * 2
    log.clear()


def test_port_that_stops_its_service_while_it_closes() -> None:
    """A second stop within the first closes nothing twice, and waits for the same ports."""
    closed: list[str] = []
    listening = Listening(lambda _index, port: port)

    class Port:
        def stopListening(self) -> None:
            closed.append("port")
            listening.close().addCallback(lambda _: closed.append("inner"))

    @implementer(IStreamServerEndpoint)
    class Opens:
        def listen(self, _: Any) -> Any:
            return succeed(Port())

    listening.listen([(Opens(), Factory()), (Opens(), Factory())])
    wait(listening.close())
    assert closed == ["port", "port", "inner", "inner"]


def test_failure_of_an_endpoint_after_a_stop_is_ignored() -> None:
    """Nothing is logged of an endpoint that fails after a stop."""
    later = Later()
    service = PoetryService([(later, PoetryServerFactory(b"poem"))], clock=reactor)
    service.startService()
    wait(service.stopService())
    later.listening.errback(CannotListenError("127.0.0.1", 1, OSError(98, "taken")))
