"""Crowds of readers on raw sockets, which know what each of them received and how it ended.

A reader ends in one of these ways, and `Crowd.run` counts them:

    whole     a clean end (FIN, close_notify) after exactly the poem
    short     a clean end before the last byte: the lie that the promise forbids
    wrong     bytes that are not the poem's
    reset     the stream broke, and the reader knows it
    waiting   nothing ended it within the patience of the test
"""

from __future__ import annotations

import base64
import errno
import functools
import random
import select
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.processes import PATIENCE

QUIET = 20.0
"""Seconds without any event after which a crowd gives up: a bound, never an expectation."""

ACCEPTS = 0x10000
"""In the flags of /proc/net/unix: __SO_ACCEPTCON."""

TICK = 0.05
"""Seconds between two looks at `until` while nothing happens."""

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


PLAIN = Habit()

SPEAKS = Habit(says=b"GET / HTTP/1.0\r\n")

PAUSES = Habit(takes=65536)
"""Has begun, and leaves most of the poem to the server until told to read on."""

STALLED = Habit(takes=1, at_a_time=1, receive_buffer=4096, segment=536)
"""Takes one byte, and then nothing; small buffers and segments spare the machine's own memory."""


@functools.lru_cache(maxsize=4)
def poem(size: int) -> bytes:
    """A poem of `size` bytes, in lines of text, of which no two parts are alike."""
    return base64.encodebytes(random.Random(size).randbytes(size))[:size]


def dial(
    address: str, habit: Habit = PLAIN, context: ssl.SSLContext | None = None
) -> socket.socket:
    """Begin to connect to what a server announced; the socket does not block."""
    path = address.removeprefix("unix:")
    family = socket.AF_INET if path == address else socket.AF_UNIX
    sock = socket.socket(family)
    if habit.receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, habit.receive_buffer)
    if habit.segment is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, habit.segment)
    sock.setblocking(False)
    _, _, port = address.rpartition(":")
    failed = sock.connect_ex(path if family == socket.AF_UNIX else ("127.0.0.1", int(port)))
    assert failed in (0, errno.EINPROGRESS), errno.errorcode[failed]
    if context is None:
        return sock
    return context.wrap_socket(
        sock,
        server_hostname="127.0.0.1",
        do_handshake_on_connect=False,
        suppress_ragged_eofs=False,
    )


class Reader:
    """One reader: what it has yet to say, and what it has received."""

    def __init__(self, sock: socket.socket, poem: bytes, habit: Habit) -> None:
        self.socket = sock
        self.received = 0
        self.end = ""
        """How it ended, once it has."""
        self.waits_for = 0
        """The events of epoll with which it goes on."""
        self._poem = poem
        self._habit = habit
        self._unsaid = memoryview(habit.says)
        self._shakes_hands = isinstance(sock, ssl.SSLSocket)
        if habit.says or habit.half_closes or self._shakes_hands:
            self.waits_for |= select.EPOLLOUT
        if habit.takes != 0:
            self.waits_for |= select.EPOLLIN

    def resume(self) -> None:
        """Read on to the end."""
        self._habit = self._habit._replace(takes=None)
        self.waits_for |= select.EPOLLIN

    def proceed(self, event: int) -> None:
        """Go on as far as the socket allows."""
        try:
            if event & (select.EPOLLERR | select.EPOLLHUP):
                self.resume()
                self._read()
            if isinstance(self.socket, ssl.SSLSocket) and self._shakes_hands:
                self.waits_for = select.EPOLLIN
                self.socket.do_handshake()
                self._shakes_hands = False
                self.waits_for |= select.EPOLLOUT
            if event & select.EPOLLOUT:
                self._say()
            if event & select.EPOLLIN:
                self._read()
        except WOULD_BLOCK:
            pass
        except OSError:
            self.end = "reset"

    def _say(self) -> None:
        if self._unsaid:
            self._unsaid = self._unsaid[self.socket.send(self._unsaid) :]
        if not self._unsaid:
            self.waits_for &= ~select.EPOLLOUT
            if self._habit.half_closes:
                self.socket.shutdown(socket.SHUT_WR)

    def _read(self) -> None:
        takes = len(self._poem) + 1 if self._habit.takes is None else self._habit.takes
        for _ in range(max(1, 4096 // self._habit.at_a_time)):
            if self.received >= takes:
                self.waits_for &= ~select.EPOLLIN
                return
            data = self.socket.recv(self._habit.at_a_time)
            if not data:
                self.end = "whole" if self.received == len(self._poem) else "short"
            elif not self._poem.startswith(data, self.received):
                self.end = "wrong"
            if self.end:
                return
            self.received += len(data)


class Crowd:
    """`count` readers with one habit, at most `at_once` of them connected at the same time."""

    def __init__(
        self,
        address: str,
        poem: bytes,
        habit: Habit = PLAIN,
        *,
        count: int = 1,
        at_once: int | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.unopened = count
        self.ended: list[Reader] = []
        self._habit = habit
        self._poem = poem
        self._dial = functools.partial(dial, address, habit, context)
        self._at_once = at_once or count
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

    def begun(self) -> bool:
        """Whether all are connected and have at least a byte, or have ended."""
        return not self.unopened and 0 not in self.received

    def served(self) -> int:
        """How many are served now: they have a byte and no end."""
        return sum(map(bool, self.received))

    def run(
        self, until: Callable[[], bool] = lambda: False, *, quiet: float = QUIET
    ) -> Counter[str]:
        """Read until all have ended, or `until` holds; give how many ended in which way."""
        deadline = time.monotonic() + PATIENCE
        silence = time.monotonic() + quiet
        self._open()
        while self._readers and not until():
            events = self._epoll.poll(TICK)
            for descriptor, event in events:
                self._proceed(descriptor, event)
            now = time.monotonic()
            silence = now + quiet if events else silence
            if now > min(silence, deadline):
                break
            self._open()
        return self.ends + Counter(waiting=len(self._readers) + self.unopened)

    def resume(self) -> None:
        """Let those that stopped reading read on to the end."""
        self._habit = self._habit._replace(takes=None)
        for descriptor, reader in self._readers.items():
            reader.resume()
            self._epoll.modify(descriptor, reader.waits_for)

    def _open(self) -> None:
        while self.unopened and len(self._readers) < self._at_once:
            reader = Reader(self._dial(), self._poem, self._habit)
            self._readers[reader.socket.fileno()] = reader
            self._epoll.register(reader.socket.fileno(), reader.waits_for)
            self.unopened -= 1

    def _proceed(self, descriptor: int, event: int) -> None:
        reader = self._readers[descriptor]
        before = reader.waits_for
        reader.proceed(event)
        if reader.end:
            del self._readers[descriptor]
            self._epoll.unregister(descriptor)
            self.ended.append(reader)
            if not self._habit.stays:
                reader.socket.close()
        elif reader.waits_for != before:
            self._epoll.modify(descriptor, reader.waits_for)


def read_all(
    address: str,
    poem: bytes,
    habit: Habit = PLAIN,
    *,
    count: int = 1,
    at_once: int | None = None,
    context: ssl.SSLContext | None = None,
    quiet: float = QUIET,
) -> Counter[str]:
    """Let `count` readers come and go; give how many ended in which way."""
    with Crowd(address, poem, habit, count=count, at_once=at_once, context=context) as crowd:
        return crowd.run(quiet=quiet)


def eventually(true: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Whether `true` comes to hold within `patience` seconds."""
    deadline = time.monotonic() + patience
    while not (held := true()) and time.monotonic() < deadline:
        time.sleep(TICK)
    return held


def listens(path: Path) -> bool:
    """Whether somebody listens at a Unix socket's path: its file exists before (bind(2))."""
    for line in Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()[1:]:
        words = line.split(maxsplit=7)
        if words[7:] == [str(path)] and int(words[3], 16) & ACCEPTS:
            return True
    return False


def refuses(address: str) -> bool:
    """Whether nobody listens at `address` any more."""
    path = address.removeprefix("unix:")
    if path != address:
        return not Path(path).exists()
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) != 0
