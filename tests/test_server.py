"""PoetryService: the limit, the sweep, the drain."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import ServerFactory
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from zope.interface import implementer

from poetry.client import get_poem
from poetry.protocol import PoetryServerFactory
from poetry.server import (
    LINGER,
    PoetryService,
    serve_poem,
)
from poetry.serving.poems import PoemFactory
from poetry.system.descriptors import raise_connection_limit
from tests.ends import LONG, Server, ended_with_reset, port_of, queued, reader, serving
from tests.loop import drain, poem_files, reactor, turn_until_still, until, wait, wait_error
from tests.transfers import Log


def fetch(service: PoetryService, index: int = 0) -> bytes:
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port_of(service, index))
    poem: bytes = wait(get_poem(endpoint))
    return poem


# Listening


def test_each_listener_has_its_poem() -> None:
    """One service serves several poems, and `addresses` has their places."""
    with serving(Server(b"one"), Server(LONG)) as service:
        assert [fetch(service, index) for index in (0, 1)] == [b"one", LONG]
        assert service.addresses == [f"127.0.0.1:{port_of(service, i)}" for i in (0, 1)]


def test_poem_on_several_endpoints_names_them_all() -> None:
    """A poem that is served in two places is said to be there in logs, and not in the last one."""
    factory = PoemFactory(b"poem", "poem.txt")
    endpoints = [TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1") for _ in range(2)]
    service = PoetryService([(endpoint, factory) for endpoint in endpoints])
    service.startService()
    assert factory.listener == ", ".join(service.addresses)
    assert len(service.addresses) == 2
    wait(service.stopService())


def test_listeners_may_be_any_iterable() -> None:
    """The pairs may come from a generator or `zip`, which can be read once."""
    endpoint, factory = TCP4ServerEndpoint(reactor, 0), Server(b"poem")
    assert PoetryService(iter([(endpoint, factory)])).listeners == [(endpoint, factory)]


def test_reader_takes_one_descriptor() -> None:
    """The file of a long poem is open from the start of listening to its end, and no other."""
    before = poem_files()
    with serving(Server(LONG), Server(b"short")) as service:
        assert poem_files() == before + 1
        assert [fetch(service) for _ in range(3)] == [LONG] * 3
        assert poem_files() == before + 1
        factory = service.listeners[0][1]
        factory.poem = LONG + b"!"
        assert [fetch(service) for _ in range(3)] == [LONG + b"!"] * 3
        assert poem_files() == before + 1
    factory.poem = None
    assert poem_files() == before


def test_taken_port_stops_the_start() -> None:
    """A service of which one address is taken does not start, and listens nowhere."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        factory = PoetryServerFactory(b"poem")
        free = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        other = TCP4ServerEndpoint(reactor, taken.getsockname()[1], interface="127.0.0.1")
        before = len(reactor.getReaders())
        service = PoetryService([(free, factory), (other, factory)])
        with pytest.raises(CannotListenError):
            service.startService()
        until(lambda: len(reactor.getReaders()) == before)
        assert not service.running


def test_serve_poem_gives_the_port() -> None:
    """`serve_poem` fires with the listening port, or fails with Twisted's error."""
    port = wait(serve_poem(TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"), b"poem"))
    number = port.getHost().port
    assert wait(get_poem(TCP4ClientEndpoint(reactor, "127.0.0.1", number))) == b"poem"
    again = TCP4ServerEndpoint(reactor, number, interface="127.0.0.1")
    assert isinstance(wait_error(serve_poem(again, b"poem")), CannotListenError)
    wait(port.stopListening())
    until(lambda: not reactor.getDelayedCalls())


def test_service_runs_without_sockets() -> None:
    """On a reactor without sockets the service listens, starts and stops."""
    memory = MemoryReactorClock()
    service = PoetryService(
        [(TCP4ServerEndpoint(memory, 80), PoetryServerFactory(b"poem"))], clock=memory
    )
    service.startService()
    assert service.addresses == ["0.0.0.0:80"]
    wait(service.stopService())


def test_other_services_are_outside_the_limit() -> None:
    """A factory in `others` is served, and is neither counted nor held back."""
    with serving(Server(b"poem"), max_connections=1) as service:
        assert service.others == []
    service = PoetryService([], clock=reactor)
    service.others.append((TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"), ServerFactory()))
    service.startService()
    assert len(service.addresses) == 1
    wait(service.stopService())


# The limit


def test_connections_never_exceed_the_limit(log: Log) -> None:
    """At the limit readers wait in the kernel's queue, and all are served in the end."""
    with serving(Server(LONG), Server(LONG), max_connections=3) as service, ExitStack() as all_:
        readers = [all_.enter_context(reader(port_of(service, i % 2))) for i in range(12)]
        most = 0

        def full() -> bool:
            nonlocal most
            most = max(most, len(service.connections))
            return service.full

        until(full)
        for _ in range(20):
            reactor.iterate(0)
        while readers:
            for connection in select.select(readers, [], [], 0)[0]:
                assert drain(connection) == LONG
                connection.close()
                readers.remove(connection)
            reactor.iterate(0.01)
            most = max(most, len(service.connections))
        assert most == 3
        until(lambda: "limit_left" in log.names)
        assert log.names.count("limit_reached") == 1


def _note(served: list[int], index: int, _: object) -> None:
    served.append(index)


def test_listeners_take_turns_at_the_limit() -> None:
    """A place that becomes free goes to each listener in its turn: none takes all of them."""
    served: list[int] = []
    servers = [Server(b"poem") for _ in range(3)]
    for index, server in enumerate(servers):
        server.observers = (partial(_note, served, index),)
    with serving(*servers, max_connections=1) as service, ExitStack() as all_:
        waiting = [
            all_.enter_context(reader(port_of(service, index)))
            for index in range(3)
            for _ in range(4)
        ]
        while waiting:
            until(lambda: select.select(waiting, [], [], 0)[0])
            for connection in select.select(waiting, [], [], 0)[0]:
                assert drain(connection) == b"poem"
                waiting.remove(connection)
                connection.close()
        until(lambda: len(served) == 12)
    assert [sorted(served[turn : turn + 3]) for turn in range(0, 12, 3)] == [[0, 1, 2]] * 4


def test_limit_is_left_once_nobody_waits(log: Log) -> None:
    """A sweep ends those that linger, and makes room for those that wait: the crowd goes on."""
    clock = Clock()
    with serving(Server(b"poem"), max_connections=1, clock=clock) as service, ExitStack() as all_:
        waiting = [all_.enter_context(reader(port_of(service))) for _ in range(4)]

        def left() -> bool:
            clock.advance(1.0)
            is_left = "limit_left" in log.names
            assert not (is_left and service.accept_queue)
            return is_left

        until(left)
        assert [connection.recv(10) for connection in waiting] == [b"poem"] * 4
    assert log.names.count("limit_reached") == log.names.count("limit_left") == 1


def test_default_limit_is_the_descriptors(log: Log) -> None:
    """Without a number the limit is what the descriptors allow; a higher number is lowered."""
    allowed = raise_connection_limit(0)
    assert PoetryService([], clock=reactor).limit == allowed
    assert PoetryService([], clock=reactor, max_connections=10).limit == 10
    assert not log.names
    assert PoetryService([], clock=reactor, max_connections=allowed + 1).limit == allowed
    assert log.names == ["limit_lowered"]


# The sweep


def test_sweep_without_connections_leaves_no_timer() -> None:
    """The sweep resets idle readers, and ends with the last connection."""
    clock = Clock()
    with serving(Server(LONG), clock=clock, idle_timeout=8.0) as service, reader(port_of(service)):
        until(lambda: service.connections)
        (protocol,) = service.connections
        turn_until_still(protocol)
        clock.pump([1.0] * 8)
        assert protocol.outcome is None
        clock.pump([1.0] * 2)
        assert protocol.outcome == "timed_out"
        until(lambda: not service.connections)
        clock.advance(1.0)
        assert not clock.getDelayedCalls()


def test_reader_that_stays_is_closed_after_the_linger() -> None:
    """A reader that has the whole poem and does not end is closed after the linger."""
    clock = Clock()
    with serving(Server(b"short"), clock=clock) as service, reader(port_of(service)) as connection:
        until(lambda: service.connections)
        (protocol,) = service.connections
        until(lambda: not queued(protocol))
        clock.pump([1.0] * int(LINGER + 2))
        until(lambda: not service.connections)
        assert (protocol.outcome, drain(connection)) == ("sent", b"short")


# Hooks


@pytest.mark.parametrize("hook", ["poemSent", "poemFailed", "observers"])
@pytest.mark.parametrize("mistake", [RuntimeError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_hook_that_raises_is_logged(hook: str, mistake: type[BaseException], log: Log) -> None:
    """An error in a hook or an observer is logged; other observers and serving go on."""

    class Hook:
        def __call__(self, _: object) -> None:
            raise mistake("in a hook")

        def __repr__(self) -> str:
            raise mistake("in its name")

    observed: list[object] = []
    fail = Hook()
    factory = PoetryServerFactory(LONG)
    setattr(factory, hook, (fail, observed.append) if hook == "observers" else fail)
    endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    clock = Clock()
    service = PoetryService([(endpoint, factory)], max_connections=1, clock=clock, idle_timeout=4)
    service.startService()
    for _ in range(2):
        assert read_and_linger(service, clock) == LONG
    with reader(port_of(service)):
        until(lambda: service.connections)
        (protocol,) = service.connections
        turn_until_still(protocol)
        clock.pump([1.0] * 6)
        until(lambda: not service.connections)
    stopped = service.stopService()
    wait(stopped)
    assert "hook_failed" in log.names
    assert len(observed) == 3 * (hook == "observers")


def read_and_linger(service: PoetryService, clock: Clock) -> bytes:
    """Read a poem, and let the service end the connection."""
    with reader(port_of(service)) as connection:
        poem = drain(connection)
    until(lambda: not service.connections)
    clock.advance(1.0)
    return poem


@pytest.mark.parametrize(
    "limits", [{"max_connections": 0}, {"idle_timeout": 0}, {"grace": -1}, {"idle_timeout": -1.0}]
)
def test_limits_below_their_least_are_refused(limits: dict[str, Any]) -> None:
    """A limit below its least is an error that names it."""
    with pytest.raises(ValueError, match=next(iter(limits))):
        PoetryService([], clock=reactor, **limits)


def test_grace_of_another_type_is_refused_at_the_start() -> None:
    """A grace that no timer takes is refused, 0 as well, rather than at the stop."""
    grace: Any = Decimal(0)
    with pytest.raises(TypeError, match="grace"):
        PoetryService([], clock=reactor, grace=grace)
    assert PoetryService([], clock=reactor, grace=0).grace == 0


def test_linger_is_shorter_while_readers_wait() -> None:
    """While readers wait for a place, a whole reader that stays is closed sooner."""
    clock = Clock()
    with (
        serving(Server(b"short"), clock=clock, max_connections=1) as service,
        reader(port_of(service)) as first,
    ):
        until(lambda: service.full)
        (protocol,) = service.connections
        until(lambda: not queued(protocol))
        clock.pump([1.0] * 4)
        with reader(port_of(service)) as second:
            assert drain(second) == b"short"
        assert drain(first) == b"short"


# Stopping


def test_second_stop_closes_nothing_again(log: Log) -> None:
    """A port of Twisted's cannot be closed twice; each stop waits until it is closed."""
    service = PoetryService([], clock=reactor)
    service.others.append((TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"), ServerFactory()))
    service.startService()
    stops = [service.stopService(), service.stopService()]
    for stop in stops:
        wait(stop)
    assert not log.names


def test_restart_within_a_stop_has_its_ports() -> None:
    """A caller that hears of the stop may start the service at once."""
    never = SimpleNamespace(listen=lambda _: Deferred())
    here = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    listeners: list[Any] = [(here, Server(b"one")), (never, Server(b"two"))]
    service = PoetryService(listeners, clock=reactor)
    service.startService()
    service.whenListening().addErrback(lambda _: service.startService())
    wait(service.stopService())
    assert fetch(service) == b"one"
    wait(service.stopService())


def test_stop_serves_readers_in_flight_and_in_the_queue(log: Log) -> None:
    """The listener closes first; readers in flight or in the queue have the poem whole."""
    with serving(Server(LONG)) as service, reader(port_of(service)) as flying:
        until(lambda: service.connections)
        with reader(port_of(service)) as queued:
            [port], number = service.ports, port_of(service)
            stopped = service.stopService()
            until(lambda: not port.connected)  # type: ignore[attr-defined]
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", number), 20)
            assert [drain(flying), drain(queued)] == [LONG, LONG]
            flying.close()
            queued.close()
            wait(stopped)
    assert log.names == ["draining"]


def test_reload_takes_new_text(tmp_path: Path) -> None:
    """A program of one's own reloads poems that came from files, and knows when and how."""
    path = tmp_path / "poem.txt"
    path.write_bytes(b"old")
    factory = PoemFactory.from_file(path)
    service = PoetryService([(TCP4ServerEndpoint(reactor, 0), factory)])
    before = service.reloaded_at
    path.write_bytes(b"new")
    wait(service.reload())
    assert (factory.poem, service.reloaded_well) == (b"new", True)
    path.unlink()
    wait(service.reload())
    assert (factory.poem, service.reloaded_well) == (b"new", False)
    assert service.reloaded_at > before


@contextmanager
def cancelled_stop(clock: Clock) -> Iterator[PoetryService]:
    """A service with a reader in flight, and with a stop for which nobody waits any more."""
    with serving(Server(LONG), clock=clock, grace=5) as service, reader(port_of(service)):
        until(lambda: service.connections)
        stopping = service.stopService()
        stopping.cancel()
        assert isinstance(wait_error(stopping), CancelledError)
        yield service


def test_cancelled_stop_is_a_cancel_and_goes_on(log: Log) -> None:
    """A caller that waits for a stop no longer does not keep the service from stopping."""
    clock = Clock()
    with cancelled_stop(clock) as service:
        clock.advance(5)
        until(lambda: not service.connections)
    assert "grace_over" in log.names


def test_cancelled_stop_leaves_no_timer() -> None:
    """The grace ends with its last reader, also where nobody waits for the stop any more."""
    clock = Clock()
    with cancelled_stop(clock) as service:
        service.abort()
        until(lambda: not service.connections)
        assert not clock.getDelayedCalls()


def test_failing_observers_hold_up_no_stop(log: Log) -> None:
    """A stop ends, whatever a factory's attributes raise."""

    class Fails(Server):
        @property
        def observers(self) -> Any:
            raise RuntimeError("no observers")

        @observers.setter
        def observers(self, _: Any) -> None: ...

    with serving(Fails(LONG)) as service, reader(port_of(service)):
        until(lambda: service.connections)
    assert "hook_failed" in log.names
    log.clear()


@implementer(IListeningPort)
class Foreign:
    """A port that is none of Twisted's own."""

    def __init__(self, port: Any) -> None:
        self._port = port

    def startListening(self) -> None: ...

    def stopListening(self) -> Any:
        return self._port.stopListening()

    def getHost(self) -> Any:
        return self._port.getHost()


@implementer(IStreamServerEndpoint)
class ForeignEndpoint:
    """Listens on a foreign port."""

    def listen(self, factory: Any) -> Any:
        return succeed(Foreign(reactor.listenTCP(0, factory, interface="127.0.0.1")))


def test_idle_reader_of_a_foreign_port_is_reset() -> None:
    """A port that tells nothing of its readers keeps none for ever; a stop leaves no timer."""
    clock = Clock()
    server = Server(LONG)
    service = PoetryService([(ForeignEndpoint(), server)], idle_timeout=4, clock=clock)
    service.startService()
    clock.pump([1.0] * 10)
    with reader(port_of(service)) as connection:
        until(lambda: server.connections)
        clock.pump([1.0] * 10)
        assert ended_with_reset(connection)
    until(lambda: server.outcomes)
    wait(service.ports[0].stopListening())
    clock.pump([1.0] * 10)
    assert server.outcomes == ["timed_out"]
    assert not clock.getDelayedCalls()
    wait(service.stopService())


def test_grace_bounds_a_stop(log: Log) -> None:
    """Readers that have not finished by the end of the grace are reset."""
    clock = Clock()
    with serving(Server(LONG), clock=clock, grace=5) as service:
        with reader(port_of(service)) as connection:
            until(lambda: service.connections)
            stopped = service.stopService()
            clock.advance(5)
            wait(stopped)
            with pytest.raises(ConnectionResetError):
                drain(connection)
        assert not clock.getDelayedCalls()
    assert log.names == ["draining", "grace_over"]


def test_stop_that_leaves_the_end_to_the_kernel_resets_nobody(log: Log) -> None:
    """A reader whose end is with the kernel is not counted among those that were reset."""
    text = b"x" * 200_000
    with serving(Server(text), grace=0) as service, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.connect(("127.0.0.1", port_of(service)))
        until(lambda: service.connections)
        (protocol,) = service.connections
        until(lambda: protocol.outgoing is not None and protocol.outgoing.ended)
        wait(service.stopService())
        assert drain(connection) == text
    assert protocol.outcome == "stopped"
    assert "kernel" in str(protocol.error)
    assert log.names == ["draining"]
    log.clear()


def test_stop_does_not_wait_for_a_whole_reader() -> None:
    """A whole reader that stays does not hold up a stop until the grace is over."""
    clock = Clock()
    with serving(Server(b"short"), clock=clock) as service, reader(port_of(service)) as connection:
        until(lambda: service.connections)
        (protocol,) = service.connections
        stopped = service.stopService()
        until(lambda: not queued(protocol))
        clock.pump([1.0] * 3)
        wait(stopped)
        assert (protocol.outcome, drain(connection)) == ("sent", b"short")


def test_whenListening_fires_with_the_addresses() -> None:
    """`whenListening` fires with the addresses, which the repr of a running service has too."""
    with serving(Server(b"poem")) as service:
        assert wait(service.whenListening()) == service.addresses
        assert service.addresses[0] in repr(service)
    never_started = PoetryService([], clock=reactor)
    assert "stopped" in repr(never_started)
    assert isinstance(wait_error(never_started.whenListening()), CancelledError)
