"""Both ends in memory, in any order of chunks, half-closes, losses and pauses."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, ITransport
from twisted.python.failure import Failure
from zope.interface import implementer

from poetry import PoetryClientFactory, PoetryServerFactory
from tests.faults.readers import poem


@implementer(ITransport)
class Transport:
    """One end of a connection, which does what Twisted's TCP transport and the kernel do.

    `buffer` is the process's, `flight` is the kernel's: a plain close lets it arrive and a reset
    destroys it. It is its own `socket`, to be told about SO_LINGER.
    """

    family = socket.AF_UNIX  # which has no reset of its own
    peer: Transport
    protocol: Any

    def __init__(self) -> None:
        self.socket = self
        self.dataBuffer = b""
        self.flight = b""
        self.disconnecting: int = False
        self.connected: int = True
        self.paused = False
        self.producer: Any = None
        self.streaming = False
        self.ending = ""
        self.lingers = False
        self._shouldShutdown = True

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER)
        self.lingers = bool(struct.unpack("ii", value)[0])

    def write(self, data: bytes) -> None:
        if self.connected:
            self.dataBuffer += data

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def getHost(self) -> Any:
        return None

    def getPeer(self) -> Any:
        return None

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if not self.connected:
            producer.stopProducing()
            return
        self.producer, self.streaming = producer, streaming
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        self.producer = None

    def startWriting(self) -> None:
        pass

    def startReading(self) -> None:
        """An end that was told already is told once more."""
        if self.peer.ending == "ended":
            self.peer.ending = "end"

    def shutdown(self, how: int) -> None:
        assert how == socket.SHUT_WR
        self.ending = self.ending or "end"

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def stopProducing(self) -> None:
        self.loseConnection()

    def loseConnection(self) -> None:
        self.disconnecting = self.connected

    def abortConnection(self) -> None:
        self.lose(ConnectionAborted())

    def lose(self, reason: Exception) -> None:
        """As `tcp.Connection.connectionLost`: the producer first, then the socket.

        A reactor that stops loses its connections with ConnectionLost, and shuts them down: that
        is a clean end, unless the socket lingers and is not to be shut down.
        """
        if not self.connected:
            return
        if self.producer is not None:
            self.producer.stopProducing()
        self.producer = None
        self.connected = False
        self.dataBuffer = b""
        if isinstance(reason, ConnectionAborted) or (self.lingers and not self._shouldShutdown):
            self.flight = b""
            self.ending = "reset"
        else:
            self.ending = self.ending or "end"
        self.protocol.connectionLost(Failure(reason))

    def turn(self, size: int) -> None:
        """A reactor turn of this end: some bytes to the kernel, or more from the producer."""
        if self.dataBuffer:
            self.flight += self.dataBuffer[:size]
            self.dataBuffer = self.dataBuffer[size:]
        elif self.producer is not None:
            if not self.streaming or self.disconnecting:
                self.producer.resumeProducing()
        elif self.disconnecting:
            self.lose(ConnectionDone())

    def pass_on(self, size: int) -> None:
        """Some bytes, or the end of the stream, from the kernel to the peer."""
        if self.peer.paused or not self.peer.connected:
            return
        if self.flight:
            data, self.flight = self.flight[:size], self.flight[size:]
            self.peer.protocol.dataReceived(data)
        elif self.ending == "reset":
            self.peer.lose(ConnectionLost())
        elif self.ending == "end":
            self.ending = "ended"
            if IHalfCloseableProtocol.providedBy(self.peer.protocol):
                self.peer.protocol.readConnectionLost()
            else:
                self.peer.lose(ConnectionDone())

    def half_close(self) -> None:
        if self.connected and not self.dataBuffer:
            self.ending = self.ending or "end"

    def do(self, step: str, size: int) -> None:
        actions: dict[str, Callable[[], None]] = {
            "turn": lambda: self.turn(size),
            "pass": lambda: self.pass_on(size),
            "half-close": self.half_close,
            "lose": lambda: self.lose(ConnectionLost()),
            "pause": self.pauseProducing,
            "resume": self.resumeProducing,
            "stop": self.loseConnection,
            "abort": self.abortConnection,
        }
        actions[step]()

    @property
    def state(self) -> tuple[object, ...]:
        return (self.connected, len(self.dataBuffer), len(self.flight), self.ending)


class SocketTransport(Transport, FileDescriptor):
    """One that gives its socket away, as Twisted's TCP transport does."""

    room = 10

    def getHandle(self) -> SocketTransport:
        return self

    def send(self, data: bytes, flags: int = 0) -> int:  # noqa: ARG002
        if not self.room:
            raise BlockingIOError(errno.EAGAIN, "full")
        taken = bytes(data[: self.room])
        self.flight += taken
        self.room -= len(taken)
        return len(taken)

    def turn(self, size: int) -> None:
        self.room = size
        super().turn(size)


class Server(PoetryServerFactory):
    """Notes what its hooks are told."""

    def __init__(self, poem: bytes | None) -> None:
        super().__init__(poem)
        self.told: list[bytes | Failure] = []

    def poemReceived(self, poem: bytes) -> None:
        self.told.append(poem)

    def poemFailed(self, reason: Failure) -> None:
        self.told.append(reason)


class Client(PoetryClientFactory):
    """Notes what its Deferred fires with."""

    def __init__(self, poem: bytes | None) -> None:
        super().__init__(poem)
        self.told: list[bytes | Failure] = []
        self.received.addBoth(self.told.append)


def settle(ends: Sequence[Transport]) -> None:
    """Let all go its way until nothing moves any more."""
    for end in ends:
        end.paused = False
    quiet = 0
    before: list[object] = []
    while quiet < 5:
        for end in ends:
            end.turn(1_000_000)
            end.pass_on(1_000_000)
        now: list[object] = [end.state for end in ends]
        quiet = quiet + 1 if now == before else 0
        before = now


SENDER, RECEIVER = 0, 1

Steps = list[tuple[int, str, int]]
"""Whose turn it is, what happens, and to how many bytes."""


def play(
    kind: type[Transport], sends: bytes, steps: Steps, server_sends: bool
) -> list[bytes | Failure]:
    """Connect two factories and take the steps; give what the receiver was told."""
    server = Server(sends if server_sends else None)
    client = Client(None if server_sends else sends)
    factories: list[Any] = [server, client] if server_sends else [client, server]
    ends = [kind(), kind()]
    for end, peer, factory in zip(ends, ends[::-1], factories, strict=True):
        end.peer = peer
        end.protocol = factory.buildProtocol(None)
    for end in ends:
        end.protocol.makeConnection(end)
    for who, step, size in steps:
        ends[who].do(step, size)
    settle(ends)
    told: list[bytes | Failure] = factories[RECEIVER].told
    return told


def moves(sender: Sequence[str], receiver: Sequence[str]) -> st.SearchStrategy[Steps]:
    """Up to 40 steps of these kinds."""
    sizes = st.sampled_from([1, 7, 1_000, 20_000, 1_000_000])
    one = st.one_of(
        st.tuples(st.just(SENDER), st.sampled_from(sender), sizes),
        st.tuples(st.just(RECEIVER), st.sampled_from(receiver), sizes),
    )
    return st.lists(one, max_size=40)


GENTLE = ("turn", "pass", "pause", "resume")
LOSSES = ("lose", "stop", "abort")

sizes = st.sampled_from([1, 10, 16_384, 16_385, 65_536, 200_000])
patiently = settings(deadline=None, max_examples=500)


@pytest.mark.parametrize("kind", [SocketTransport, Transport])
@patiently
@given(
    size=sizes,
    steps=moves([*GENTLE, *LOSSES], [*GENTLE, *LOSSES, "half-close"]),
    server_sends=st.booleans(),
)
@example(size=9, steps=[(0, "pass", 1), (1, "stop", 1), (1, "turn", 1)], server_sends=True)
@example(size=9, steps=[(0, "turn", 1), (0, "lose", 1)], server_sends=True)
@example(size=65_536, steps=[(0, "turn", 1), (0, "lose", 1)], server_sends=False)
def test_the_poem_or_an_error(
    kind: type[Transport], size: int, steps: Steps, server_sends: bool
) -> None:
    """The receiver has the exact poem or an error: never both, and never neither."""
    told = play(kind, poem(size), steps, server_sends)
    assert len(told) == 1
    assert told[0] == poem(size) or isinstance(told[0], Failure)


@pytest.mark.parametrize("kind", [SocketTransport, Transport])
@patiently
@given(size=sizes, steps=moves(GENTLE, [*GENTLE, "half-close"]), server_sends=st.booleans())
def test_the_poem_unless_something_happens(
    kind: type[Transport], size: int, steps: Steps, server_sends: bool
) -> None:
    """Where nothing is lost and nobody gives up, it is the poem."""
    assert play(kind, poem(size), steps, server_sends) == [poem(size)]
