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
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.processes import PATIENCE

QUIET = 20.0
"""Seconds without any event after which a crowd gives up: a bound, never an expectation."""

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


@dataclass(eq=False)
class Reader:
    """One reader that has not ended."""

    __slots__ = ("received", "socket", "unsaid")

    socket: socket.socket
    unsaid: memoryview
    received: int


class Crowd:
    """`count` readers with one habit, at most `at_once` of them connected at the same time.

    `peak` is the largest number that were served at the same time: they had a byte and no end.
    """

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
        self.poem = poem
        self.habit = habit
        self.unopened = count
        self.ends: Counter[str] = Counter()
        self.peak = 0
        self._dial = functools.partial(dial, address, habit, context)
        self._opening = select.EPOLLIN
        if habit.says or habit.half_closes or context is not None:
            self._opening |= select.EPOLLOUT
        if habit.takes == 0:
            self._opening &= ~select.EPOLLIN
        self._takes = len(poem) + 1 if habit.takes is None else habit.takes
        self._at_once = at_once or count
        self._epoll = select.epoll()
        self._readers: dict[int, Reader] = {}
        self._stayed: list[socket.socket] = []
        self._served = 0

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *exception: object) -> None:
        for reader in self._readers.values():
            reader.socket.close()
        for sock in self._stayed:
            sock.close()
        self._epoll.close()

    @property
    def received(self) -> list[int]:
        """Bytes that each reader which has not ended has so far."""
        return [reader.received for reader in self._readers.values()]

    def begun(self) -> bool:
        """Whether all are connected and have at least a byte, or have ended."""
        return not self.unopened and 0 not in self.received

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
                self._on_event(self._readers[descriptor], event)
            now = time.monotonic()
            silence = now + quiet if events else silence
            if now > min(silence, deadline):
                break
            self._open()
        return self.ends + Counter(waiting=len(self._readers) + self.unopened)

    def resume(self) -> None:
        """Let those that stopped reading read on to the end."""
        self._takes = len(self.poem) + 1
        self._opening |= select.EPOLLIN
        for descriptor in self._readers:
            self._epoll.modify(descriptor, self._opening)

    def _open(self) -> None:
        while self.unopened and len(self._readers) < self._at_once:
            sock = self._dial()
            self._readers[sock.fileno()] = Reader(sock, memoryview(self.habit.says), 0)
            self._epoll.register(sock.fileno(), self._opening)
            self.unopened -= 1

    def _on_event(self, reader: Reader, event: int) -> None:
        broken = event & (select.EPOLLERR | select.EPOLLHUP)
        try:
            if event & select.EPOLLOUT and not broken:
                self._speak(reader)
            if event & select.EPOLLIN or broken:
                self._read(reader, len(self.poem) + 1 if broken else self._takes)
        except WOULD_BLOCK:
            pass
        except OSError:
            self._end(reader, "reset")

    def _speak(self, reader: Reader) -> None:
        if isinstance(reader.socket, ssl.SSLSocket):
            self._epoll.modify(reader.socket.fileno(), select.EPOLLIN)
            reader.socket.do_handshake()
        if reader.unsaid:
            reader.unsaid = reader.unsaid[reader.socket.send(reader.unsaid) :]
        if not reader.unsaid:
            mask = self._opening & ~select.EPOLLOUT
            self._epoll.modify(reader.socket.fileno(), mask)
            if self.habit.half_closes:
                reader.socket.shutdown(socket.SHUT_WR)

    def _read(self, reader: Reader, takes: int) -> None:
        at_a_time = self.habit.at_a_time
        for _ in range(max(1, 4096 // at_a_time)):
            if reader.received >= takes:
                self._epoll.modify(reader.socket.fileno(), 0)
                return
            data = reader.socket.recv(at_a_time)
            if not data:
                whole = reader.received == len(self.poem)
                self._end(reader, "whole" if whole else "short")
                return
            if not self.poem.startswith(data, reader.received):
                self._end(reader, "wrong")
                return
            if not reader.received:
                self._served += 1
                self.peak = max(self.peak, self._served)
            reader.received += len(data)

    def _end(self, reader: Reader, end: str) -> None:
        self.ends[end] += 1
        self._served -= bool(reader.received)
        del self._readers[reader.socket.fileno()]
        if self.habit.stays:
            self._epoll.unregister(reader.socket.fileno())
            self._stayed.append(reader.socket)
        else:
            reader.socket.close()


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


def refuses(address: str) -> bool:
    """Whether nobody listens at `address` any more."""
    path = address.removeprefix("unix:")
    if path != address:
        return not Path(path).exists()
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) != 0
