"""The lingering close: readers that have the whole poem, waited for together."""

from __future__ import annotations

import errno
import gc
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
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from poetry.serving.lingering import CROWD, INTERVAL, LingeringClose
from poetry.system.descriptors import raise_limit
from poetry.system.features import EPOLL
from tests.calls import failing
from tests.memory import MemoryReactor

pytestmark = pytest.mark.skipif(not EPOLL, reason="this system has no epoll")


class Reactor(MemoryReactor):
    """A reactor in memory that polls by hand."""

    def poll(self) -> None:
        """Call each reader that is readable."""
        for each in select.select(list(self.readers), [], [], 0)[0]:
            each.doRead()

    def settle(self) -> None:
        """Let so many pauses pass that readers which stay are watched by epoll."""
        for _ in range(4):
            self.advance(INTERVAL)

    def state(self, lingering: LingeringClose) -> str:
        """What wakes a lingering close: "timer", "epoll", "rest" (nothing now), or "closed"."""
        if lingering in self.readers:
            return "epoll"
        if self.getDelayedCalls():
            return "timer"
        return "rest" if self.at_shutdown else "closed"


Connect = Callable[[], "Connection"]


ENDS: dict[Any, str] = {ConnectionDone: "whole", ConnectionLost: "reset"}


class Connection:
    """A connection that lingers."""

    def __init__(self, lingering: LingeringClose) -> None:
        ours, self.reader = socket.socketpair()
        ours.setblocking(False)
        self.socket: Any = ours
        self.handle = ours
        self.ends: list[str] = []
        self.at_end: Callable[[], object] = lambda: None
        self._lingering = lingering
        lingering.add(self)

    def readConnectionLost(self) -> None:
        raise AssertionError("a Unix socket has nothing under way")

    def connectionLost(self, reason: Failure) -> None:
        self._lingering.remove(self)
        self.handle.close()
        self.socket = None
        self.ends.append(ENDS[type(reason.value)])
        self.at_end()

    @property
    def end(self) -> str:
        """How its reader ended: "whole" or "reset", and "waiting" until then."""
        return ", ".join(self.ends) or "waiting"


@pytest.fixture
def reactor() -> Reactor:
    return Reactor()


@pytest.fixture
def lingering(reactor: Reactor) -> Iterator[LingeringClose]:
    lingering = LingeringClose(reactor)
    yield lingering
    lingering.connectionLost(Failure(ConnectionLost()))
    lingering.close()
    assert (lingering.fileno(), reactor.state(lingering)) == (-1, "closed")


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
    gc.collect()  # services of other tests, which may have files in memory
    return len(list(Path("/proc/self/fd").iterdir()))


def test_lingering_close_is_a_read_descriptor(lingering: LingeringClose) -> None:
    """A lingering close has all that a reactor asks of a descriptor."""
    verifyObject(IReadDescriptor, lingering)
    assert lingering.logPrefix() == "lingering close"


def test_each_reader_ends_by_itself(reactor: Reactor, connect: Connect) -> None:
    """A reader may send anything until it ends; the others stay."""
    first, second = connect(), connect()
    for _ in range(5):
        first.reader.sendall(b"GET / HTTP/1.1")
        reactor.poll()
        reactor.settle()
        assert first.end == "waiting"
    first.reader.close()
    reactor.poll()
    assert (first.end, second.end) == ("whole", "waiting")


def test_reader_that_ends_soon_is_not_watched(
    lingering: LingeringClose,
    reactor: Reactor,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Most readers have ended by the first look, and take no place in an epoll."""
    monkeypatch.setattr(lingering, "_register", None)
    for _ in range(9):
        connection = connect()
        assert reactor.state(lingering) == "timer"
        connection.reader.close()
        reactor.advance(INTERVAL)
        assert (connection.end, reactor.state(lingering)) == ("whole", "rest")


def test_reader_between_two_looks_has_time_to_end(
    lingering: LingeringClose, reactor: Reactor, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that comes between two looks is examined by the second look after it came."""
    speaks = connect()
    speaks.reader.sendall(b"GET / HTTP/1.1")
    reactor.advance(INTERVAL)
    assert reactor.state(lingering) == "timer"
    monkeypatch.setattr(lingering, "_register", None)
    comes = connect()
    reactor.advance(INTERVAL)
    comes.reader.close()
    reactor.advance(INTERVAL)
    assert comes.end == "whole"


def test_reader_that_stays_is_watched_by_epoll(
    reactor: Reactor, lingering: LingeringClose, connect: Connect
) -> None:
    """No timer runs while readers stay, until one more reader comes."""
    connect()
    reactor.settle()
    assert reactor.state(lingering) == "epoll"
    connection = connect()
    assert reactor.state(lingering) == "timer"
    connection.reader.close()
    reactor.settle()
    assert (connection.end, reactor.state(lingering)) == ("whole", "epoll")


def test_ends_of_a_crowd_share_one_look(
    reactor: Reactor, lingering: LingeringClose, connect: Connect
) -> None:
    """After the first end of a crowd, a timer wakes the reactor for the ends that follow."""
    connections = [connect() for _ in range(CROWD + 1)]
    reactor.settle()
    connections[0].reader.close()
    reactor.poll()
    assert reactor.state(lingering) == "timer"
    for connection in connections[1:]:
        connection.reader.close()
    reactor.poll()
    assert [each.end for each in connections] == ["whole", *["waiting"] * CROWD]
    reactor.advance(INTERVAL)
    assert [each.end for each in connections] == ["whole"] * (CROWD + 1)


def test_each_end_of_a_few_wakes_the_reactor(
    reactor: Reactor, lingering: LingeringClose, connect: Connect
) -> None:
    """Where fewer than a crowd are left, epoll wakes the reactor for each end."""
    connections = [connect() for _ in range(CROWD)]
    reactor.settle()
    while connections:
        assert reactor.state(lingering) == "epoll"
        connection = connections.pop()
        connection.reader.close()
        reactor.poll()
        assert connection.end == "whole"


def test_flood_of_input_wakes_the_reactor_seldom(
    reactor: Reactor, lingering: LingeringClose, connect: Connect
) -> None:
    """A reader that sends without end wakes the reactor no more often than ends do."""
    connection = connect()
    reactor.settle()
    for count in range(5):
        if count == 3:
            lingering.close()
        connection.reader.sendall(b"GET / HTTP/1.1")
        reactor.poll()
        assert reactor.state(lingering) == "timer"
        reactor.settle()


def test_reset_by_a_reader_is_a_lost_connection(reactor: Reactor, connect: Connect) -> None:
    """A reader that resets has not ended cleanly."""
    connection = connect()
    connection.handle.sendall(b"unread")
    connection.reader.close()
    reactor.settle()
    assert connection.end == "reset"


@pytest.mark.parametrize("wakes", ["timer", "epoll"])
def test_last_end_leaves_no_timer_and_no_descriptor(
    reactor: Reactor, lingering: LingeringClose, connect: Connect, wakes: str
) -> None:
    """Without readers a lingering close has no timer; once closed, no descriptor."""
    before = descriptors()
    for _ in range(2):
        connection = connect()
        if wakes == "epoll":
            reactor.settle()
        assert reactor.state(lingering) == wakes
        connection.reader.close()
        reactor.poll()
        reactor.settle()
        assert (connection.end, reactor.state(lingering)) == ("whole", "rest")
    lingering.close()
    assert (lingering.fileno(), reactor.state(lingering)) == (-1, "closed")
    assert descriptors() == before


@pytest.mark.parametrize("looks", range(4))
@pytest.mark.parametrize("end", ["whole", "reset"])
def test_closing_ends_with_the_last_reader(
    reactor: Reactor, lingering: LingeringClose, connect: Connect, looks: int, end: str
) -> None:
    """After `close` the last reader's end closes the descriptor, and no timer runs until then."""
    connections = [connect() for _ in range(3)]
    for _ in range(looks):
        reactor.advance(INTERVAL)
    lingering.close()
    while connections:
        assert reactor.state(lingering) == "epoll"
        connection = connections.pop()
        if end == "whole":
            connection.reader.close()
            reactor.poll()
        else:
            connection.connectionLost(Failure(ConnectionLost()))
        assert connection.end == end
    assert (lingering.fileno(), reactor.state(lingering)) == (-1, "closed")


@pytest.mark.parametrize("looks", range(4))
def test_hurry_ends_the_pause(
    reactor: Reactor, lingering: LingeringClose, connect: Connect, looks: int
) -> None:
    """`hurry`, for readers that wait for a place, ends a pause; without a pause it does nothing."""
    lingering.hurry()
    assert reactor.state(lingering) == "closed"
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
    assert connection.end == "whole"


def test_event_of_a_forked_child_s_copy_ends_no_other_reader(
    reactor: Reactor, lingering: LingeringClose, connect: Connect
) -> None:
    """A socket that a forked child keeps open says nothing of the next socket with its number."""
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
    assert (new.end, reactor.state(lingering)) == ("waiting", "epoll")
    new.reader.close()
    reactor.poll()
    assert new.end == "whole"
    os.close(kept)


def test_event_of_a_removed_reader_is_ignored(
    reactor: Reactor, lingering: LingeringClose, connect: Connect
) -> None:
    """The end of a reader that was removed reaches no connection."""
    gone, stays = connect(), connect()
    reactor.settle()
    lingering.remove(gone)
    gone.reader.close()
    reactor.poll()
    assert (gone.end, stays.end) == ("waiting", "waiting")
    gone.handle.close()


def test_hook_removes_another_ended_reader(
    reactor: Reactor, lingering: LingeringClose, connect: Connect
) -> None:
    """Of two ended readers whose hooks remove each other, only one connection ends."""
    first, second = connect(), connect()
    for connection, other in ((first, second), (second, first)):
        connection.at_end = partial(lingering.remove, other)
        connection.reader.close()
    reactor.settle()
    assert sorted(each.end for each in (first, second)) == ["waiting", "whole"]
    for connection in (first, second):
        connection.handle.close()


def test_one_poll_ends_more_readers_than_epoll_gives_by_default(
    reactor: Reactor, lingering: LingeringClose
) -> None:
    """Python's epoll gives fewer events at once unless it is asked for more."""
    ours, peer = socket.socketpair()
    count = 1_100

    class One:
        def __init__(self) -> None:
            self.socket: Any = ours.dup()
            self.socket.setblocking(False)

        def readConnectionLost(self) -> None:
            raise AssertionError("a Unix socket has nothing under way")

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
    """An epoll that takes no descriptor."""

    def fileno(self) -> int:
        return 9

    def poll(self, *_: object) -> list[tuple[int, int]]:
        return []

    register = failing(errno.ENOSPC)

    def close(self) -> None: ...


@pytest.mark.parametrize("readers", ["end soon", "stay"])
@pytest.mark.parametrize("lacks", ["epoll", "place", "reader"])
def test_readers_are_polled_by_timer_while_epoll_is_refused(
    reactor: Reactor,
    lingering: LingeringClose,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    lacks: str,
    readers: str,
) -> None:
    """Without room in the kernel or the reactor a timer looks at all readers, until there is."""
    place, lack = {
        "epoll": ("select.epoll", failing(errno.EMFILE)),
        "place": ("select.epoll", FullEpoll),
        "reader": (f"{__name__}.Reactor.addReader", failing(errno.EMFILE)),
    }[lacks]
    monkeypatch.setattr(place, lack)
    connections = [connect() for _ in range(3)]
    for connection in connections:
        if readers == "stay":
            reactor.settle()
        lingering.hurry()
        assert reactor.state(lingering) == "timer"
        connection.reader.close()
        reactor.settle()
        assert connection.end == "whole"
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
    assert last.end == "whole"


def test_timer_serves_readers_refused_after_a_hook_closed(
    reactor: Reactor, lingering: LingeringClose, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers that epoll refuses after a hook has closed the lingering are polled by a timer."""
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
    assert first.end == "whole"
    for other in others:
        other.reader.close()
        reactor.poll()
        reactor.settle()
        assert other.end == "whole"


def test_timer_serves_all_readers_where_a_hook_closes_without_epoll(
    reactor: Reactor, lingering: LingeringClose, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an epoll there is no descriptor for the reactor: the timer looks at all readers."""
    monkeypatch.setattr("select.epoll", failing(errno.EMFILE))
    connections = [connect() for _ in range(3)]
    for connection in connections:
        connection.at_end = lingering.close
    connections[0].reader.close()
    reactor.settle()
    assert (connections[0].end, reactor.state(lingering)) == ("whole", "timer")
    for connection in connections[1:]:
        connection.reader.close()
    reactor.settle()
    assert [each.end for each in connections] == ["whole"] * 3


def test_removing_the_last_reader_leaves_no_timer(
    reactor: Reactor, lingering: LingeringClose, connect: Connect
) -> None:
    """A last reader that is removed rather than ended leaves a lingering close at rest."""
    connection = connect()
    reactor.settle()
    lingering.remove(connection)
    connection.handle.close()
    assert reactor.state(lingering) == "rest"


def test_lingering_dropped_by_the_reactor_resets_and_starts_again(
    reactor: Reactor, lingering: LingeringClose, connect: Connect
) -> None:
    """All connections end, and readers that come later are waited for as before."""
    gone, also, lost = connect(), connect(), connect()
    reactor.settle()
    more: list[Connection] = []

    def at_end() -> None:  # as its hooks may bring one more, and take one away
        lingering.remove(gone)
        more.append(connect())

    lost.at_end = at_end
    reactor.readers.remove(lingering)
    lingering.connectionLost(Failure(ConnectionLost()))
    assert [each.end for each in (lost, also, gone, *more)] == [
        "reset",
        "reset",
        "waiting",
        "reset",
    ]
    gone.handle.close()
    assert reactor.state(lingering) == "closed"
    connection = connect()
    connection.reader.close()
    reactor.settle()
    assert connection.end == "whole"


@pytest.mark.parametrize("state", ["epoll", "timer"])
def test_shutdown_of_the_reactor_resets_all(
    reactor: Reactor, lingering: LingeringClose, connect: Connect, state: str
) -> None:
    """All connections end, also while a timer runs and the reactor has no descriptor."""
    first, second = connect(), connect()
    reactor.settle()
    if state == "timer":
        first.reader.sendall(b"GET / HTTP/1.1")
        reactor.poll()
    assert reactor.state(lingering) == state
    reactor.at_shutdown.pop()()
    assert (first.end, second.end) == ("reset", "reset")


def test_error_in_a_hook_keeps_no_other_reader_waiting(reactor: Reactor, connect: Connect) -> None:
    """Two readers end although the hook of each raises."""
    first, second = connect(), connect()
    first.at_end = second.at_end = failing(errno.EIO)
    first.reader.close()
    second.reader.close()
    reactor.settle()
    assert (first.end, second.end) == ("whole", "whole")


def test_timer_ends_readers_where_epoll_gives_no_events(
    reactor: Reactor,
    lingering: LingeringClose,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where epoll_wait(2) fails, the timer ends the readers that are due."""
    connection = connect()
    epoll: Any = lingering._epoll
    methods = {name: getattr(epoll, name) for name in ("close", "fileno", "register")}
    monkeypatch.setattr(lingering, "_epoll", SimpleNamespace(poll=failing(errno.EMFILE), **methods))
    connection.reader.close()
    reactor.settle()
    assert connection.end == "whole"
