"""Readers of every habit on blocking sockets, and poems that tell whether they are whole.

A reader's fate is one of:

    whole     a clean end after exactly a poem: what every patient reader is owed
    reset     an error instead of an end: it knows that it has not the poem
    refused   nobody listened, or somebody else where a server had been
    left      it went by itself, as some do
    empty     a clean end before the first byte: it knows, since no poem is empty
    unix      a clean end in the middle, where nothing else can be: Unix sockets have no reset
    waiting   neither bytes nor an end for a long time
    short     a clean end before the last byte: the lie that the promise forbids
    wrong     bytes that are no poem's
"""

from __future__ import annotations

import hashlib
import random
import socket
import ssl
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

FATES = ("whole", "reset", "refused", "left", "empty", "unix", "waiting", "short", "wrong")
LET_DOWN = frozenset({"waiting", "short", "wrong"})

PATIENCE = 30.0
"""Seconds without a byte after which a reader counts as waiting."""

IDLE = 3.0
"""The server's idle timeout, in seconds: `stalls` is slower, and `rests` is not."""

LETTERS = b"abcdefghijklmnopqrstuvwxyz"


def make_poem(number: int, size: int, chance: random.Random) -> bytes:
    """A poem of `size` bytes, whose first line has its number, its size and a digest of the rest.

    Of one byte, it is a letter.
    """
    if size == 1:
        return bytes([chance.choice(LETTERS)])
    empty = b"%d %d %064d\n" % (number, size, 0)
    body = chance.randbytes(size - len(empty))
    return b"%d %d %s\n" % (number, size, hashlib.sha256(body).hexdigest().encode()) + body


def judge(number: int, data: bytes) -> str:
    """What a reader has that saw a clean end after `data`: "whole", "empty", "short", "wrong"."""
    if not data:
        return "empty"
    if len(data) == 1 and data in LETTERS:
        return "whole" if number == 0 else "short"
    first, found, body = data.partition(b"\n")
    if not found:
        return "short"
    its_number, size, digest = (*first.split(), b"", b"", b"")[:3]
    if its_number != b"%d" % number or not size.isdigit() or len(data) > int(size):
        return "wrong"
    if len(data) < int(size):
        return "short"
    return "whole" if hashlib.sha256(body).hexdigest().encode() == digest else "wrong"


class Target(NamedTuple):
    """Where a reader goes: `poem` is the number of the one that is served there."""

    transport: str
    address: str
    poem: int


def connected(target: Target, context: ssl.SSLContext) -> socket.socket:
    """Connect to what a server announced."""
    if target.transport == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(target.address.removeprefix("unix:"))
        except OSError:
            sock.close()
            raise
        return sock
    host, _, port = target.address.removeprefix("tls:").rpartition(":")
    sock = socket.create_connection((host.strip("[]"), int(port)), PATIENCE)
    # As Python has it: a FIN without close_notify is an end as well.
    if target.transport != "tls":
        return sock
    return context.wrap_socket(sock, suppress_ragged_eofs=False)


def take(
    sock: socket.socket, most: int = 1 << 30, at_a_time: int = 1 << 18, pause: float = 0.0
) -> bytes:
    """Read up to `most` bytes or to the end, `pause` seconds apart."""
    data = bytearray()
    while len(data) < most and (part := sock.recv(min(at_a_time, most - len(data)))):
        data += part
        if pause:
            time.sleep(pause)
    return bytes(data)


def reads_fast(sock: socket.socket, _: random.Random) -> bytes:
    return take(sock)


def reads_slowly(sock: socket.socket, _: random.Random) -> bytes:
    return take(sock, at_a_time=1 << 16, pause=0.004)


def speaks_first(sock: socket.socket, _: random.Random) -> bytes:
    sock.sendall(b"GET / HTTP/1.1\r\nHost: poem\r\n\r\n")
    return take(sock)


def half_closes_first(sock: socket.socket, _: random.Random) -> bytes:
    socket.socket.shutdown(sock, socket.SHUT_WR)  # below TLS: Python's would go on without it
    return take(sock)


def drips(sock: socket.socket, _: random.Random) -> bytes:
    """Says a byte after each piece, long after everybody else has ended."""
    data = bytearray()
    while part := sock.recv(1 << 14):
        data += part
        sock.send(b"x")
        time.sleep(0.002)
    return bytes(data)


def rests(sock: socket.socket, _: random.Random) -> bytes:
    time.sleep(IDLE / 3)
    data = take(sock, 1000)
    time.sleep(IDLE / 3)
    return data + take(sock)


def stalls(sock: socket.socket, _: random.Random) -> bytes:
    data = take(sock, 1)
    time.sleep(2 * IDLE)
    return data + take(sock)


def stays(sock: socket.socket, _: random.Random) -> bytes:
    data = take(sock)
    time.sleep(IDLE)
    return data


def resets_midway(sock: socket.socket, chance: random.Random) -> None:
    take(sock, chance.randrange(1, 2_000_000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def closes_early(sock: socket.socket, chance: random.Random) -> None:
    if chance.random() < 0.5:
        take(sock, chance.randrange(1, 100_000))


Habit = Callable[[socket.socket, random.Random], bytes | None]

HABITS: tuple[Habit, ...] = (
    reads_fast,
    reads_slowly,
    speaks_first,
    half_closes_first,
    drips,
    rests,
    stalls,
    stays,
    resets_midway,
    closes_early,
)


def fate(
    target: Target,
    habit: Habit,
    context: ssl.SSLContext,
    chance: random.Random,
    is_there: Callable[[], bool],
) -> str:
    """Let one reader come and go, and give its fate.

    @param is_there: whether the server is still the one whose target it is: after a restart, who is
        at its address may be anybody.
    """
    try:
        sock = connected(target, context)
    except TimeoutError:
        return "waiting"
    except (ConnectionRefusedError, FileNotFoundError):
        return "refused"
    except (ConnectionError, ssl.SSLError):
        return "reset"
    with sock:
        if not is_there():
            return "refused"
        try:
            data = habit(sock, chance)
        except TimeoutError:
            return "waiting"
        except (ConnectionError, ssl.SSLError):
            return "reset"
    return "left" if data is None else judge(target.poem, data)
