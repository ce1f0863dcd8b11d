"""Standard streams that nobody reads."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

import pytest

from poetry.system.streams import LossyStream, say


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("polls", [True, False])
def test_a_full_pipe(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, *, polls: bool
) -> None:
    """What does not fit is dropped whole; what was begun is gone on with first."""
    if not polls:
        monkeypatch.delattr(select, "poll")
    reading, writing = pipe
    stream = LossyStream(writing)
    stream.write("a" * 1_000_000)
    assert stream.dropped == 0
    stream.write("b")
    stream.write("c")
    assert stream.dropped == 2
    read = b""
    while not stream.flush():
        read += os.read(reading, 1 << 20)
    stream.write("d")
    while not read.endswith(b"d"):
        read += os.read(reading, 1 << 20)
    assert read == b"a" * 1_000_000 + b"d"
    stream.close()


def test_a_socket() -> None:
    """A socket, as systemd's journal gives one, is written to like a pipe."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = LossyStream(ours.fileno())
        stream.write("a line\n")
        assert theirs.recv(100) == b"a line\n"
        stream.write("x" * 10_000_000)
        stream.write("dropped")
        assert stream.dropped == 1
        stream.close()


def test_say(pipe: tuple[int, int]) -> None:
    """It is said now, or an error tells why it cannot be."""
    reading, writing = pipe
    say(writing, "hello")
    assert os.read(reading, 100) == b"hello"
    own = LossyStream(writing)
    own.write("x" * 1_000_000)
    with pytest.raises(BlockingIOError, match="nobody reads it"):
        say(writing, "hello")
    own.close()


def test_nobody_will_ever_read_it() -> None:
    """A closed pipe is told by its own error."""
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        say(writing, "hello")
    os.close(writing)
