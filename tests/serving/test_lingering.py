"""Readers that have everything, and are waited for together."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from poetry.serving.lingering import INTERVAL, LingeringClose
from poetry.system.descriptors import raise_limit
from poetry.system.features import EPOLL
from tests.calls import failing

pytestmark = pytest.mark.skipif(not EPOLL, reason="this system has no epoll")


class Reactor(MemoryReactorClock):
    """Notes what is to be called at a shutdown, and polls when it is told to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.at_shutdown: list[Any] = []

    def addSystemEventTrigger(self, phase: str, event: str, call: Any) -> Any:  # type: ignore[override]
        assert (phase, event) == ("during", "shutdown")
        self.at_shutdown.append(call)
        return call

    def removeSystemEventTrigger(self, call: Any) -> None:
        self.at_shutdown.remove(call)

    def poll(self) -> None:
        """Read what is readable."""
        for each in select.select(list(self.readers), [], [], 0)[0]:
            each.doRead()

    def settle(self) -> None:
        """Let as many pauses pass as it takes until those who stay are watched."""
        for _ in range(4):
            self.advance(INTERVAL)

    def state(self, lingering: LingeringClose) -> str:
        """What a lingering close goes by: "timer", "epoll", "rest", or "nothing" any more."""
        if lingering in self.readers:
            return "epoll"
        if self.getDelayedCalls():
            return "timer"
        return "rest" if self.at_shutdown else "nothing"


Connect = Callable[[], "Connection"]


class Connection:
    """A connection that lingers."""

    def __init__(self, lingering: LingeringClose) -> None:
        ours, self.reader = socket.socketpair()
        ours.setblocking(False)
        self.socket: Any = ours
        self.handle = ours
        self.reasons: list[Any] = []
        self.at_end: Callable[[], object] = lambda: None
        self._lingering = lingering
        lingering.add(self)

    def connectionLost(self, reason: Failure) -> None:
        self._lingering.remove(self)
        self.handle.close()
        self.socket = None
        self.reasons.append(reason.value)
        self.at_end()


@pytest.fixture
def reactor() -> Reactor:
    return Reactor()


@pytest.fixture
def lingering(reactor: Reactor) -> Iterator[LingeringClose]:
    lingering = LingeringClose(reactor)
    yield lingering
    lingering.connectionLost(Failure(ConnectionLost()))
    lingering.close()
    assert (lingering.fileno(), reactor.state(lingering)) == (-1, "nothing")


@pytest.fixture
def connect(lingering: LingeringClose) -> Iterator[Connect]:
    """A function that connects one more reader."""
    with ExitStack() as stack:

        def connect() -> Connection:
            connection = Connection(lingering)
            stack.callback(connection.reader.close)
            return connection

        yield connect


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_it_is_a_descriptor(lingering: LingeringClose) -> None:
    """It has all that a reactor asks of one."""
    verifyObject(IReadDescriptor, lingering)
    assert lingering.logPrefix() == "lingering close"


def test_each_goes_at_its_end(reactor: Reactor, connect: Connect) -> None:
    """A reader may say what it likes until it ends; the others stay."""
    first, second = connect(), connect()
    for _ in range(5):
        first.reader.sendall(b"GET / HTTP/1.1")
        reactor.poll()
        reactor.settle()
        assert not first.reasons
    first.reader.close()
    reactor.poll()
    assert [type(reason) for reason in first.reasons] == [ConnectionDone]
    assert not second.reasons


def test_a_reader_that_ends_soon_is_not_watched(
    lingering: LingeringClose,
    reactor: Reactor,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Most have ended when they are looked at first, and cost no place in an epoll."""
    monkeypatch.setattr(lingering, "_arm", None)
    for _ in range(9):
        connection = connect()
        assert reactor.state(lingering) == "timer"
        connection.reader.close()
        reactor.advance(INTERVAL)
        assert [type(reason) for reason in connection.reasons] == [ConnectionDone]
        assert reactor.state(lingering) == "rest"


def test_a_reader_that_comes_between_two_looks_has_time_to_end(
    lingering: LingeringClose, reactor: Reactor, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While looks go on, a new reader is looked at by the second one."""
    ends, _stays = connect(), connect()
    ends.reader.close()
    reactor.advance(INTERVAL)
    assert (len(ends.reasons), reactor.state(lingering)) == (1, "timer")
    monkeypatch.setattr(lingering, "_arm", None)
    comes = connect()
    reactor.advance(INTERVAL)
    comes.reader.close()
    reactor.advance(INTERVAL)
    assert comes.reasons


def test_who_stays_is_watched(
    reactor: Reactor, lingering: LingeringClose, connect: Connect
) -> None:
    """Then no timer goes, until one more comes."""
    connect()
    reactor.settle()
    assert reactor.state(lingering) == "epoll"
    connection = connect()
    assert reactor.state(lingering) == "timer"
    connection.reader.close()
    reactor.settle()
    assert connection.reasons
    assert reactor.state(lingering) == "epoll"


def test_all_that_end_meanwhile_are_one_look(
    reactor: Reactor, lingering: LingeringClose, connect: Connect
) -> None:
    """Once one has ended the reactor is not woken up for a while, and then by a timer."""
    connections = [connect() for _ in range(3)]
    reactor.settle()
    connections[0].reader.close()
    reactor.poll()
    assert reactor.state(lingering) == "timer"
    for connection in connections[1:]:
        connection.reader.close()
    reactor.poll()
    assert [len(each.reasons) for each in connections] == [1, 0, 0]
    reactor.advance(INTERVAL)
    assert [len(each.reasons) for each in connections] == [1, 1, 1]


def test_one_that_talks_is_heard_now_and_then(
    reactor: Reactor, lingering: LingeringClose, connect: Connect
) -> None:
    """A flood wakes the reactor up as seldom as ends do."""
    connection = connect()
    reactor.settle()
    for _ in range(5):
        connection.reader.sendall(b"GET / HTTP/1.1")
        reactor.poll()
        assert reactor.state(lingering) == "timer"
        reactor.settle()


def test_a_reset_is_one(reactor: Reactor, connect: Connect) -> None:
    """A reader that resets has not ended properly."""
    connection = connect()
    connection.handle.sendall(b"unread")
    connection.reader.close()
    reactor.settle()
    assert [type(reason) for reason in connection.reasons] == [ConnectionLost]


@pytest.mark.parametrize("stays", [False, True])
def test_nothing_is_left_behind(
    reactor: Reactor, lingering: LingeringClose, connect: Connect, *, stays: bool
) -> None:
    """Without readers it rests, without a timer; closed, it leaves no descriptor."""
    before = descriptors()
    for _ in range(2):
        connection = connect()
        if stays:
            reactor.settle()
        connection.reader.close()
        reactor.poll()
        reactor.settle()
        assert connection.reasons
        assert reactor.state(lingering) == "rest"
    lingering.close()
    assert (lingering.fileno(), reactor.state(lingering)) == (-1, "nothing")
    assert descriptors() == before


@pytest.mark.parametrize("looks", range(4))
@pytest.mark.parametrize("ends", [False, True])
def test_it_closes_behind_the_last(
    reactor: Reactor, lingering: LingeringClose, connect: Connect, looks: int, *, ends: bool
) -> None:
    """Where nobody comes any more the last one closes it, and no timer goes until then."""
    connections = [connect() for _ in range(3)]
    for _ in range(looks):
        reactor.advance(INTERVAL)
    lingering.close()
    while connections:
        assert reactor.state(lingering) == "epoll"
        connection = connections.pop()
        if ends:
            connection.reader.close()
            reactor.poll()
        else:
            connection.connectionLost(Failure(ConnectionLost()))
        assert connection.reasons
    assert (lingering.fileno(), reactor.state(lingering)) == (-1, "nothing")


@pytest.mark.parametrize("looks", range(4))
def test_who_waits_for_a_place(
    reactor: Reactor, lingering: LingeringClose, connect: Connect, looks: int
) -> None:
    """A pause is over when somebody waits, and where there is none nothing happens."""
    lingering.hurry()
    assert reactor.state(lingering) == "nothing"
    gone = connect()
    lingering.remove(gone)
    lingering.hurry()
    assert reactor.state(lingering) == "rest"
    connection, gone_too = connect(), connect()
    for _ in range(looks):
        reactor.advance(INTERVAL)
    for each in (gone, gone_too):
        lingering.remove(each)
        each.handle.close()
    lingering.hurry()
    assert reactor.state(lingering) == "epoll"
    connection.reader.close()
    reactor.poll()
    assert connection.reasons


def test_a_number_that_another_has_by_now(
    reactor: Reactor, lingering: LingeringClose, connect: Connect
) -> None:
    """A socket that a forked child keeps open says nothing of the next one with its number."""
    old = connect()
    reactor.settle()
    number = old.handle.fileno()
    kept = os.dup(number)
    lingering.remove(old)
    new = connect()
    lingering.remove(new)
    os.dup2(new.handle.fileno(), number)
    new.handle.close()
    new.handle = new.socket = socket.socket(fileno=number)
    old.handle.detach()
    new.handle.setblocking(False)
    lingering.add(new)
    old.reader.close()
    reactor.settle()
    assert not new.reasons
    assert reactor.state(lingering) == "epoll"
    new.reader.close()
    reactor.poll()
    assert [type(reason) for reason in new.reasons] == [ConnectionDone]
    os.close(kept)


def test_an_event_of_nobody(reactor: Reactor, lingering: LingeringClose, connect: Connect) -> None:
    """Who is waited for no longer may end as it likes."""
    gone, stays = connect(), connect()
    reactor.settle()
    lingering.remove(gone)
    gone.reader.close()
    reactor.poll()
    assert (gone.reasons, stays.reasons) == ([], [])
    gone.handle.close()


def test_one_whose_hook_takes_another_away(
    reactor: Reactor, lingering: LingeringClose, connect: Connect
) -> None:
    """Both have ended, and one of them only is told."""
    first, second = connect(), connect()
    for connection, other in ((first, second), (second, first)):
        connection.at_end = partial(lingering.remove, other)
        connection.reader.close()
    reactor.settle()
    assert sorted(len(each.reasons) for each in (first, second)) == [0, 1]
    for connection in (first, second):
        connection.handle.close()


def test_all_that_have_ended_go(reactor: Reactor, lingering: LingeringClose) -> None:
    """More than Python's epoll gives at once, if it is not asked for more."""
    ours, peer = socket.socketpair()
    count = 1_100

    class One:
        def __init__(self) -> None:
            self.socket: Any = ours.dup()
            self.socket.setblocking(False)

        def connectionLost(self, _: Failure) -> None:
            lingering.remove(self)
            self.socket.close()
            gone.append(self)

    gone: list[One] = []
    raise_limit()
    for _ in range(count):
        lingering.add(One())
    reactor.settle()
    assert reactor.state(lingering) == "epoll"
    with ours, peer:
        peer.shutdown(socket.SHUT_WR)
        reactor.poll()
    assert len(gone) == count


class FullEpoll:
    """One that nobody can be added to."""

    def fileno(self) -> int:
        return 9

    def poll(self, *_: object) -> list[tuple[int, int]]:
        return []

    register = failing(errno.ENOSPC)

    def close(self) -> None: ...


@pytest.mark.parametrize("stay", [False, True])
@pytest.mark.parametrize("lacks", ["epoll", "place", "reader"])
def test_nothing_to_wait_with(
    reactor: Reactor,
    lingering: LingeringClose,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    *,
    lacks: str,
    stay: bool,
) -> None:
    """Where the kernel or the reactor has no room all are looked at now and then, until it has."""
    place, lack = {
        "epoll": ("select.epoll", failing(errno.EMFILE)),
        "place": ("select.epoll", FullEpoll),
        "reader": (f"{__name__}.Reactor.addReader", failing(errno.EMFILE)),
    }[lacks]
    monkeypatch.setattr(place, lack)
    connections = [connect() for _ in range(3)]
    for connection in connections:
        if stay:
            reactor.settle()
        lingering.hurry()
        assert reactor.state(lingering) == "timer"
        connection.reader.close()
        reactor.settle()
        assert connection.reasons
    assert reactor.state(lingering) == "rest"
    last = connect()
    reactor.settle()
    monkeypatch.undo()
    if lacks == "place":
        lingering._epoll = None
    reactor.settle()
    assert reactor.state(lingering) == "epoll"
    last.reader.close()
    reactor.poll()
    assert last.reasons


def test_no_place_after_a_hook_has_hurried(
    reactor: Reactor, lingering: LingeringClose, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who cannot be watched after that is looked at by a timer."""
    first, *others = [connect() for _ in range(7)]
    reactor.advance(INTERVAL)
    epoll: Any = lingering._epoll

    def at_end() -> None:  # as a hook that stops the service, while the kernel runs out of room
        lingering.close()
        methods = {name: getattr(epoll, name) for name in ("close", "fileno", "poll")}
        monkeypatch.setattr(
            lingering, "_epoll", SimpleNamespace(register=failing(errno.EMFILE), **methods)
        )

    first.at_end = at_end
    first.reader.close()
    reactor.poll()
    reactor.settle()
    assert first.reasons
    for other in others:
        other.reader.close()
        reactor.poll()
        reactor.settle()
        assert other.reasons


def test_no_epoll_when_a_hook_hurries(
    reactor: Reactor, lingering: LingeringClose, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reactor is not asked to wait for nothing: all go by the timer."""
    monkeypatch.setattr("select.epoll", failing(errno.EMFILE))
    connections = [connect() for _ in range(3)]
    for connection in connections:
        connection.at_end = lingering.close
    connections[0].reader.close()
    reactor.settle()
    assert connections[0].reasons
    assert reactor.state(lingering) == "timer"
    for connection in connections[1:]:
        connection.reader.close()
    reactor.settle()
    assert [len(each.reasons) for each in connections] == [1, 1, 1]


def test_the_last_one_that_is_taken_away(
    reactor: Reactor, lingering: LingeringClose, connect: Connect
) -> None:
    """It leaves nothing behind either."""
    connection = connect()
    reactor.settle()
    lingering.remove(connection)
    connection.handle.close()
    assert reactor.state(lingering) == "rest"


def test_the_reactor_drops_it(
    reactor: Reactor, lingering: LingeringClose, connect: Connect
) -> None:
    """All are told, and who comes later is waited for as ever."""
    gone, also, lost = connect(), connect(), connect()
    reactor.settle()
    more: list[Connection] = []

    def at_end() -> None:  # as its hooks may bring one more, and take one away
        lingering.remove(gone)
        more.append(connect())

    lost.at_end = at_end
    reactor.readers.remove(lingering)
    lingering.connectionLost(Failure(ConnectionLost()))
    assert [len(each.reasons) for each in (lost, also, gone, *more)] == [1, 1, 0, 1]
    gone.handle.close()
    assert reactor.state(lingering) == "nothing"
    connection = connect()
    connection.reader.close()
    reactor.settle()
    assert connection.reasons


@pytest.mark.parametrize("pauses", [False, True])
def test_the_reactor_stops(
    reactor: Reactor, lingering: LingeringClose, connect: Connect, *, pauses: bool
) -> None:
    """All are told, also where the reactor knows nothing of the lingering."""
    first, second = connect(), connect()
    reactor.settle()
    if pauses:
        first.reader.close()
        reactor.poll()
    assert reactor.state(lingering) == ("timer" if pauses else "epoll")
    reactor.at_shutdown.pop()()
    assert [type(reason) for reason in second.reasons] == [ConnectionLost]
    assert len(first.reasons) == 1


def test_a_connection_that_cannot_be_ended(reactor: Reactor, connect: Connect) -> None:
    """What goes wrong with one keeps nobody else waiting."""
    first, second = connect(), connect()
    first.at_end = second.at_end = failing(errno.EIO)
    first.reader.close()
    second.reader.close()
    reactor.settle()
    assert first.reasons
    assert second.reasons


def test_an_epoll_that_fails(
    reactor: Reactor,
    lingering: LingeringClose,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where no event can be asked for, the timer tells of those that are due."""
    connection = connect()
    epoll: Any = lingering._epoll
    methods = {name: getattr(epoll, name) for name in ("close", "fileno", "register")}
    monkeypatch.setattr(lingering, "_epoll", SimpleNamespace(poll=failing(errno.EMFILE), **methods))
    connection.reader.close()
    reactor.settle()
    assert connection.reasons
