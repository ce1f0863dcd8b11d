"""Standard streams that are not read."""

from __future__ import annotations

import os
import pty
import select
import socket
from pathlib import Path

import pytest

from poetry.system.streams import LossyStream, reopened, write_now


@pytest.mark.parametrize("polls", [True, False])
def test_full_pipe_drops_whole_lines(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, *, polls: bool
) -> None:
    """A line that does not fit is dropped whole; a line that has begun is finished first."""
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


def test_socket_is_written_like_a_pipe() -> None:
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


def test_unreadable_terminal_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that cannot be opened again, and is not read, does not block."""
    ours, theirs = pty.openpty()
    monkeypatch.setattr("poetry.system.streams.reopened", lambda _: None)
    stream = LossyStream(theirs)
    while not stream.dropped:
        stream.write(f"{'x' * 1_000}\n")
    assert os.get_blocking(theirs)
    stream.close()
    os.close(theirs)
    os.close(ours)


def test_files_and_sockets_are_not_reopened(pipe: tuple[int, int]) -> None:
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


def test_say_writes_now_or_raises(pipe: tuple[int, int]) -> None:
    """A line is written at once, or an error names the reason."""
    reading, writing = pipe
    write_now(writing, "hello")
    assert os.read(reading, 100) == b"hello"
    own = LossyStream(writing)
    own.write("x" * 1_000_000)
    with pytest.raises(BlockingIOError, match="nobody reads it"):
        write_now(writing, "hello")
    own.close()


def test_say_to_a_closed_pipe_raises() -> None:
    """A closed pipe has an error of its own."""
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        write_now(writing, "hello")
    os.close(writing)
