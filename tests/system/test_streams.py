"""Standard streams that nobody reads."""

from __future__ import annotations

import os
import pty
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from poetry.system.streams import LossyStream, reopened, write_now


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


def test_a_terminal_of_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot be opened again, and that nobody reads, blocks nobody."""
    ours, theirs = pty.openpty()
    monkeypatch.setattr("poetry.system.streams.reopened", lambda _: None)
    stream = LossyStream(theirs)
    while not stream.dropped:
        stream.write(f"{'x' * 1_000}\n")
    assert os.get_blocking(theirs)
    stream.close()
    os.close(theirs)
    os.close(ours)


def test_what_cannot_be_opened_again(pipe: tuple[int, int]) -> None:
    """A file is shared for its position, a socket has no name, and /dev/fd may be missing."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Path(__file__).open() as file:
        assert reopened(ours.fileno()) is None
        assert reopened(file.fileno()) is None
    own = reopened(pipe[1])
    assert own is not None
    assert not os.get_blocking(own)
    os.close(own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", lambda *_: Path("/no/such/file").stat())
        assert reopened(pipe[1]) is None


def test_say(pipe: tuple[int, int]) -> None:
    """It is said now, or an error tells why it cannot be."""
    reading, writing = pipe
    write_now(writing, "hello")
    assert os.read(reading, 100) == b"hello"
    own = LossyStream(writing)
    own.write("x" * 1_000_000)
    with pytest.raises(BlockingIOError, match="nobody reads it"):
        write_now(writing, "hello")
    own.close()


def test_nobody_will_ever_read_it() -> None:
    """A closed pipe is told by its own error."""
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        write_now(writing, "hello")
    os.close(writing)
