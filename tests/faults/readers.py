"""Readers on raw sockets, which know what they received and how it ended: for tests and benchmarks.

`ENDS` are all the ways in which a reader ends, and `Crowd.run` counts them:

    whole      a clean end (FIN, close_notify) after exactly the poem
    reset      an error instead of an end: the reader knows that it has not the poem
    empty      a clean end before the first byte: the reader knows, since no poem is empty
    truncated  a clean end before the last byte: the lie that the promise forbids
    waiting    neither bytes nor an end within the patience
    wrong      bytes that are not the poem's
"""

from __future__ import annotations

import base64
import errno
import functools
import hashlib
import random
import select
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from tests.processes import PATIENCE, TICK

ENDS = ("whole", "reset", "empty", "truncated", "waiting", "wrong")

QUIET = 20.0
"""Seconds without any event after which a crowd gives up: a bound, never an expectation."""

ACCEPTS = 0x10000
"""In the flags of /proc/net/unix: __SO_ACCEPTCON."""

WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Habit(NamedTuple):
    """How a reader behaves; the default reads all that there is and then closes."""

    says: bytes = b""
    """What it sends as soon as it is connected."""
    half_closes: bool = False
    """Ends its own side, after what it says."""
    at_a_time: int = 65536
    """Bytes of one `recv`."""
    receive_buffer: int | None = None
    """SO_RCVBUF, in bytes."""
    segment: int | None = None
    """TCP_MAXSEG, in bytes: tiny buffers need tiny segments, or the kernel waits for more room."""
    takes: int | None = None
    """Stops reading after so many bytes, until `Crowd.resume`."""
    stays: bool = False
    """Keeps its socket open after the end."""
    pause: float = 0.0
    """Seconds of rest after each `recv`: of the whole crowd, which is one thread."""
    drips: bytes = b""
    """What it sends after each `recv`."""
    discards: bool = False
    """Has the kernel drop what came (MSG_TRUNC, tcp(7)): it is counted, and never copied."""


PLAIN = Habit()

SPEAKS = Habit(says=b"GET / HTTP/1.0\r\n")

PAUSES = Habit(takes=65536)
"""Has begun, and leaves most of the poem to the server until `Crowd.resume`."""

STALLED = Habit(takes=1, at_a_time=1, receive_buffer=4096, segment=536)
"""Takes one byte, and then nothing; small buffers and segments spare the machine's own memory."""


@functools.lru_cache(maxsize=4)
def poem(size: int) -> bytes:
    """A poem of `size` bytes, in lines of text, of which no two parts are alike."""
    return base64.encodebytes(random.Random(size).randbytes(size))[:size]


# What a reader expects


class Expected(Protocol):
    """What one reader compares its bytes with."""

    @property
    def size(self) -> int:
        """Bytes of the poem, or 0 while that is unknown."""

    def judge(self, data: memoryview, before: int) -> str:
        """How it ends with `data`, which is empty at a clean end, after `before` bytes; or ""."""


class Exactly:
    """This poem, or where it is only counted: anything of its size."""

    def __init__(self, poem: bytes, *, counted: bool = False) -> None:
        self.size = len(poem)
        self._poem = None if counted else poem

    def judge(self, data: memoryview, before: int) -> str:
        if not data:
            return "whole" if before == self.size else "truncated" if before else "empty"
        return "" if self._poem is None or self._poem.startswith(data, before) else "wrong"


def numbered_poem(number: int, size: int, chance: random.Random) -> bytes:
    """A poem of at least 100 bytes that shows whether it is whole: see `Numbered`."""
    body = chance.randbytes(size - len(b"%d %d %064d\n" % (number, size, 0)))
    return b"%d %d %s\n" % (number, size, hashlib.sha256(body).hexdigest().encode()) + body


class Numbered:
    """Any poem of this number: its first line has the number, its size, and a digest of the rest.

    Servers that read their poems again have others by the minute.
    """

    size = 0

    def __init__(self, number: int) -> None:
        self._number = b"%d" % number
        self._data = bytearray()

    def judge(self, data: memoryview, before: int) -> str:
        self._data += data
        return "" if data else self._ended() if before else "empty"

    def __repr__(self) -> str:
        return f"{len(self._data):,} bytes, {bytes(self._data[:80])!r}"

    def _ended(self) -> str:
        first, found, body = bytes(self._data).partition(b"\n")
        if not found:
            return "truncated"
        number, size, digest = (*first.split(), b"", b"", b"")[:3]
        if number != self._number or not size.isdigit() or len(self._data) > int(size):
            return "wrong"
        if len(self._data) < int(size):
            return "truncated"
        return "whole" if hashlib.sha256(body).hexdigest().encode() == digest else "wrong"


# Readers


def dial(address: str, habit: Habit = PLAIN) -> socket.socket:
    """Begin to connect to an announced address; the socket does not block."""
    path = address.removeprefix("unix:")
    host, _, port = address.removeprefix("tls:").rpartition(":")
    family = socket.AF_UNIX
    where: str | tuple[str, int] = path
    if path == address:
        ipv6 = host.startswith("[")
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        where = ("::1" if ipv6 else "127.0.0.1", int(port))
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    if habit.receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, habit.receive_buffer)
    if habit.segment is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, habit.segment)
    failed = sock.connect_ex(where)
    if failed not in (0, errno.EINPROGRESS, errno.ECONNREFUSED):  # of which the reader learns
        sock.close()
        raise OSError(failed, errno.errorcode[failed], address)
    return sock


def reset(connection: socket.socket) -> None:
    """End a connection with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class Reader:
    """One reader: the bytes it has yet to send, and those it has received."""

    __slots__ = (
        "_context", "_expected", "_flags", "_habit", "_handshakes", "_unsaid",
        "end", "error", "received", "socket", "stopped", "waits_for",
    )  # fmt: skip

    def __init__(
        self,
        sock: socket.socket,
        expected: Expected,
        habit: Habit,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.socket = sock
        self.received = 0
        self.end = ""
        """How it ended, once it has."""
        self.error: OSError | None = None
        """What a "reset" was."""
        self.stopped = False
        """It has taken what it takes."""
        self.waits_for = select.EPOLLIN if habit.takes != 0 else 0
        """The events of epoll with which it goes on."""
        self._expected = expected
        self._habit = habit
        self._context = context
        self._handshakes = context is not None
        self._unsaid = memoryview(habit.says)
        self._flags = socket.MSG_TRUNC if habit.discards else 0
        if habit.says or habit.half_closes or context:
            self.waits_for |= select.EPOLLOUT

    def resume(self) -> None:
        """Read on to the end."""
        self._habit = self._habit._replace(takes=None)
        self.stopped = False
        self.waits_for |= select.EPOLLIN

    def proceed(self, event: int, room: memoryview) -> None:
        """Go on as far as the socket allows; `room` is for what comes."""
        try:
            if event & (select.EPOLLERR | select.EPOLLHUP):
                self.resume()
                if not self._handshakes:
                    self._read(room)
            if self._handshakes:
                self._shake_hands()
            if event & select.EPOLLOUT:
                self._say()
            if event & select.EPOLLIN:
                self._read(room)
        except WOULD_BLOCK:
            pass
        except OSError as error:
            self.end = "reset"
            self.error = error

    def _shake_hands(self) -> None:
        if self._context is not None:  # only what is connected can be wrapped
            self.socket.getpeername()  # fails after a reset: `wrap_socket` would leave one unclosed
            self.socket = self._context.wrap_socket(
                self.socket,
                server_hostname="127.0.0.1",
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,  # a FIN without close_notify is no end
            )
            self._context = None
            self.waits_for = select.EPOLLIN
        assert isinstance(self.socket, ssl.SSLSocket)
        self.socket.do_handshake()
        self._handshakes = False
        if self._unsaid or self._habit.half_closes:
            self.waits_for |= select.EPOLLOUT
        if self._habit.takes == 0:
            self.waits_for &= ~select.EPOLLIN

    def _say(self) -> None:
        if self._unsaid:
            self._unsaid = self._unsaid[self.socket.send(self._unsaid) :]
        if not self._unsaid:
            self.waits_for &= ~select.EPOLLOUT
            if self._habit.half_closes:
                socket.socket.shutdown(self.socket, socket.SHUT_WR)  # below TLS

    def _read(self, room: memoryview) -> None:
        habit = self._habit
        encrypted = isinstance(self.socket, ssl.SSLSocket)
        at_a_time = habit.at_a_time
        turns = max(1, 4096 // at_a_time)
        while True:
            if habit.takes is not None:
                at_a_time = min(at_a_time, habit.takes - self.received)
                if at_a_time <= 0:
                    self.waits_for &= ~select.EPOLLIN
                    self.stopped = True
                    return
            count = self.socket.recv_into(room, at_a_time, self._flags)
            self.end = self._expected.judge(room[:count], self.received)
            if self.end:
                return
            self.received += count
            turns -= 1
            if habit.drips:
                self.socket.send(habit.drips)
            if habit.pause:
                time.sleep(habit.pause)
            # What is decrypted epoll does not see; after the last byte the end is mostly there.
            if turns <= 0 and not encrypted and self.received < self._expected.size:
                return


class Crowd:
    """`count` readers with one habit, at most `at_once` of them at the same time.

    Those that have taken what they take are not counted among these.

    @param expected: the poem, or what gives each reader what it expects.
    @param context: for TLS.
    """

    def __init__(
        self,
        address: str,
        expected: bytes | Callable[[], Expected],
        habit: Habit = PLAIN,
        *,
        count: int = 1,
        at_once: int | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.unopened = count
        self.ended: list[Reader] = []
        self.last = 0.0
        """When something happened last, in seconds of `time.monotonic`."""
        self._address = address
        self._habit = habit
        self._context = context
        if isinstance(expected, bytes):
            known = Exactly(expected)
            self._expected: Callable[[], Expected] = lambda: known
        else:
            self._expected = expected
        self._room = memoryview(bytearray(habit.at_a_time))
        self._at_once = at_once or count
        self._stopped = 0
        self._epoll = select.epoll()
        self._readers: dict[int, Reader] = {}

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *exception: object) -> None:
        for reader in [*self._readers.values(), *self.ended]:
            reader.socket.close()
        self._epoll.close()

    @property
    def ends(self) -> Counter[str]:
        """How many have ended in which way."""
        return Counter(reader.end for reader in self.ended)

    @property
    def received(self) -> list[int]:
        """Bytes that each reader which has not ended has so far."""
        return [reader.received for reader in self._readers.values()]

    def connected(self) -> bool:
        """Whether all are connected, or have ended."""
        try:
            for reader in self._readers.values():
                reader.socket.getpeername()
        except OSError:
            return False
        return not self.unopened

    def begun(self) -> bool:
        """Whether all are connected and have at least a byte, or have ended."""
        return not self.unopened and 0 not in self.received

    def served(self) -> int:
        """How many are served now: they have a byte and no end."""
        return sum(map(bool, self.received))

    def stopped(self) -> bool:
        """Whether all have stopped reading, or have ended."""
        return not self.unopened and self._stopped == len(self._readers)

    def run(
        self,
        until: Callable[[], bool] = lambda: False,
        *,
        quiet: float = QUIET,
        patience: float = PATIENCE,
    ) -> Counter[str]:
        """Read until all have ended, or `until` holds; give how many ended in which way."""
        begun = self.last = time.monotonic()
        self._open()
        while self._readers and not until():
            events = self._epoll.poll(TICK, 1024)
            for descriptor, event in events:
                self._proceed(descriptor, event)
            now = time.monotonic()
            if events:
                self.last = now
            if now > min(self.last + quiet, begun + patience):
                break
            self._open()
        return self.ends + Counter(waiting=len(self._readers) + self.unopened)

    def resume(self) -> None:
        """Let those that stopped reading read on to the end."""
        self._habit = self._habit._replace(takes=None)
        self._stopped = 0
        for descriptor, reader in list(self._readers.items()):
            reader.resume()
            self._epoll.modify(descriptor, reader.waits_for)
            if self._context is not None:
                self._proceed(descriptor, select.EPOLLIN)  # what is decrypted epoll does not see

    def leave(self) -> None:
        """Reset the connections of those that have not ended."""
        for reader in self._readers.values():
            reset(reader.socket)

    def _open(self) -> None:
        while self.unopened and len(self._readers) - self._stopped < self._at_once:
            self.unopened -= 1
            sock = dial(self._address, self._habit)
            reader = Reader(sock, self._expected(), self._habit, self._context)
            self._readers[sock.fileno()] = reader
            self._epoll.register(sock.fileno(), reader.waits_for)

    def _proceed(self, descriptor: int, event: int) -> None:
        reader = self._readers[descriptor]
        before, stopped = reader.waits_for, reader.stopped
        reader.proceed(event, self._room)
        self._stopped += reader.stopped - stopped
        if reader.end:
            del self._readers[descriptor]
            self.ended.append(reader)
            self._epoll.unregister(descriptor)  # a child that another thread forks may hold it
            if not self._habit.stays:
                reader.socket.close()
        elif reader.waits_for != before:
            self._epoll.modify(descriptor, reader.waits_for)


def read_all(
    address: str,
    expected: bytes | Callable[[], Expected],
    habit: Habit = PLAIN,
    *,
    count: int = 1,
    at_once: int | None = None,
    context: ssl.SSLContext | None = None,
    quiet: float = QUIET,
) -> Counter[str]:
    """Let `count` readers come and go; give how many ended in which way."""
    with Crowd(address, expected, habit, count=count, at_once=at_once, context=context) as crowd:
        return crowd.run(quiet=quiet)


# Listeners


def listens(path: Path) -> bool:
    """Whether a server listens at a Unix socket's path: the file exists before (bind(2))."""
    for line in Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()[1:]:
        words = line.split(maxsplit=7)
        if words[7:] == [str(path)] and int(words[3], 16) & ACCEPTS:
            return True
    return False


def refuses(address: str) -> bool:
    """Whether no server listens at `address` any more."""
    path = address.removeprefix("unix:")
    if path != address:
        return not Path(path).exists()
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) != 0
