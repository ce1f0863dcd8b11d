"""Standard output that does not block, and files that appear when whole."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from poetry.output import Output, atomic_file
from tests.loop import reactor, until, wait, wait_error

LONG = bytes(range(256)) * 4_000


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe, to read and to write."""
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            assert end == ends[0], "only its reader is closed by a test"


def test_a_full_pipe_blocks_nobody(pipe: tuple[int, int]) -> None:
    """What the pipe has no room for waits, and the pipe blocks for those who share it."""
    reader, writer = pipe
    output = Output(reactor, writer)
    assert not output.used
    output.write(LONG)
    assert output.used
    output.loseConnection()
    reactor.iterate(0)
    assert not output.closed.called
    assert os.get_blocking(writer)
    received = bytearray()
    os.set_blocking(reader, False)

    def read() -> bool:
        with suppress(BlockingIOError):
            received.extend(os.read(reader, 1 << 20))
        return bool(output.closed.called)

    until(read)
    read()
    assert wait(output.closed) is None
    assert received == LONG


def test_a_pipe_that_another_process_filled(pipe: tuple[int, int]) -> None:
    """A pipe that has no room after all takes nothing, and that is no error."""
    output = Output(reactor, pipe[1])
    while output.writeSomeData(bytes(65536)):
        pass
    os.read(pipe[0], 65536)
    output.loseConnection()
    assert wait(output.closed) is None


def test_a_closed_pipe(pipe: tuple[int, int]) -> None:
    """When the reader goes away, it says so."""
    output = Output(reactor, pipe[1])
    os.close(pipe[0])
    output.write(LONG)
    assert isinstance(wait_error(output.closed), BrokenPipeError)


def test_a_reader_that_leaves_before_the_rest(pipe: tuple[int, int]) -> None:
    """The reactor's word that nobody reads any more is a broken pipe, too."""
    output = Output(reactor, pipe[1])
    output.write(LONG)
    reactor.iterate(0)
    os.close(pipe[0])
    assert isinstance(wait_error(output.closed), BrokenPipeError)


def test_full() -> None:
    """A disk that is full is its own error."""
    with Path("/dev/full").open("wb") as full:
        output = Output(reactor, full.fileno())
    output.write(b"a poem")
    error = wait_error(output.closed)
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC


def test_an_open_file_keeps_its_place(tmp_path: Path) -> None:
    """A regular file is written from where it stands, as by `(echo a; poetry get ...) > file`."""
    path = tmp_path / "poem.txt"
    with path.open("wb", buffering=0) as file:
        file.write(b"title\n")
        output = Output(reactor, file.fileno())
        output.write(b"poem\n")
        output.loseConnection()
        wait(output.closed)
        file.write(b"end\n")
    assert path.read_bytes() == b"title\npoem\nend\n"


def test_a_descriptor_that_is_not_open() -> None:
    """Without standard output there is nothing to write to."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        Output(reactor, 999_999)


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    """A file has its name only when all is written; an old one keeps its mode, not its text."""
    path = tmp_path / "poem.txt"
    with atomic_file(path) as file:
        file.write(b"a poem")
        assert not path.exists()
    path.chmod(0o640)
    with atomic_file(path) as file:
        file.write(b"another")
        assert path.read_bytes() == b"a poem"
    assert path.read_bytes() == b"another"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failure_leaves_no_file(tmp_path: Path, old: bytes | None) -> None:
    """A failure leaves no file, and an old one as it was."""
    path = tmp_path / "poem.txt"
    if old is not None:
        path.write_bytes(old)

    def fail() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [each.read_bytes() for each in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_symbolic_link_stays(tmp_path: Path) -> None:
    """What a link points to is replaced, and not the link."""
    link, target = tmp_path / "link", tmp_path / "there" / "poem.txt"
    target.parent.mkdir()
    link.symlink_to(target)
    for poem in (b"a poem", b"another"):
        with atomic_file(link) as file:
            file.write(poem)
        assert link.is_symlink()
        assert target.read_bytes() == poem


def test_what_is_no_file_is_written_as_it_is(tmp_path: Path, pipe: tuple[int, int]) -> None:
    """A FIFO, a device and another process's pipe are written to, and stay what they are."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="No such device"), atomic_file(fifo):  # nobody reads
        raise AssertionError("it was opened")
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    for path in (fifo, Path("/dev/null"), Path(f"/dev/fd/{pipe[1]}")):
        with atomic_file(path) as file:
            file.write(b"a poem")
    assert os.read(reader, 100) == b"a poem"
    os.close(reader)
    assert fifo.is_fifo()
    assert os.read(pipe[0], 100) == b"a poem"


@pytest.mark.parametrize("name", [".", "no/such/directory"])
def test_where_no_file_can_be(tmp_path: Path, name: str) -> None:
    """A directory and what is not there cannot be written."""
    with pytest.raises(OSError, match=r"directory"), atomic_file(tmp_path / name):
        raise AssertionError("it was opened")
