"""What takes a poem as it comes without blocking, files that appear when whole, and spools."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from operator import methodcaller
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from poetry.download.files import Spool, Unwritten
from poetry.download.output import STANDARD_OUTPUT, Output, Sink, is_standard_output, open_sink
from poetry.system.streams import own_description
from tests.loop import reactor, until, wait, wait_error

LONG = bytes(range(256)) * 4_000


def output_to(descriptor: int) -> Output:
    """An output to what is open there."""
    return Output(reactor, own_description(descriptor), "the place")


def reason_of(error: BaseException) -> Exception:
    """Why it could not be written."""
    assert isinstance(error, Unwritten)
    assert error.place == "the place"
    return error.reason


def finish(sink: Sink, *, whole: bool = True) -> None:
    """Finish a sink while the reactor turns, and close it."""

    async def finished() -> None:
        await sink.finish(whole=whole)

    wait(Deferred.fromCoroutine(finished()))
    sink.close()


def save(path: Path, poem: bytes = b"a poem") -> list[str]:
    """Write a file as a poem is written; give what the user was told."""
    notes: list[str] = []
    sink = open_sink(reactor, str(path), notes.append)
    sink.write(poem)
    finish(sink)
    return notes


@pytest.fixture(params=[False, True], ids=["", "only sockets"])
def pipe(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[int, int]]:
    """Both ends of a pipe, to read and to write, for a reactor that can wait for it or cannot."""
    monkeypatch.setattr("poetry.download.output.ONLY_SOCKETS", request.param)
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
    output = output_to(writer)
    assert output.restart()
    output.write(LONG)
    assert not output.restart()
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
    output = output_to(pipe[1])
    while output.writeSomeData(bytes(65536)):
        pass
    os.read(pipe[0], 65536)
    output.loseConnection()
    assert wait(output.closed) is None


def test_a_closed_pipe(pipe: tuple[int, int]) -> None:
    """When the reader goes away, it says so."""
    output = output_to(pipe[1])
    os.close(pipe[0])
    output.write(LONG)
    assert isinstance(reason_of(wait_error(output.closed)), BrokenPipeError)


def test_a_reader_that_leaves_before_the_rest(pipe: tuple[int, int]) -> None:
    """The reactor's word that nobody reads any more is a broken pipe, too."""
    output = output_to(pipe[1])
    output.write(LONG)
    reactor.iterate(0)
    os.close(pipe[0])
    assert isinstance(reason_of(wait_error(output.closed)), BrokenPipeError)


def test_full() -> None:
    """A disk that is full is its own error."""
    with Path("/dev/full").open("wb") as full:
        output = output_to(full.fileno())
    output.write(b"a poem")
    error = reason_of(wait_error(output.closed))
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC


def test_an_open_file_keeps_its_place(tmp_path: Path) -> None:
    """A regular file is written from where it stands, as by `(echo a; poetry get ...) > file`."""
    path = tmp_path / "poem.txt"
    with path.open("wb", buffering=0) as file:
        file.write(b"title\n")
        output = output_to(file.fileno())
        output.write(b"poem\n")
        output.loseConnection()
        wait(output.closed)
        file.write(b"end\n")
    assert path.read_bytes() == b"title\npoem\nend\n"


def test_standard_output_that_is_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without standard output there is nothing to write to."""
    with Path(os.devnull).open() as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
    with pytest.raises(Unwritten) as failed:
        open_sink(reactor, None, print)
    assert failed.value.place == STANDARD_OUTPUT


def test_closing_gives_up_what_is_not_out(pipe: tuple[int, int]) -> None:
    """An output that is closed keeps nothing open, writes no more, and says nothing."""
    output = output_to(pipe[1])
    output.write(LONG)
    descriptor = output.fileno()
    output.close()
    reactor.iterate(0)
    os.set_blocking(pipe[0], False)
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert output not in reactor.getWriters()
    output.close()


def test_a_spool_is_read_from_its_start() -> None:
    """A spool that was started again has what was written since, and is copied whole."""
    spool = Spool()
    spool.write(b"half")
    assert spool.size == 4
    assert spool.restart()
    spool.write(b"all")
    wait(Deferred.fromCoroutine(spool.finish(whole=True)))
    assert spool.file.read() == b"all"
    spool.close()


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    """A file has its name only when all is written; an old one keeps its mode, not its text."""
    path = tmp_path / "poem.txt"
    sink = open_sink(reactor, str(path), print)
    sink.write(b"half")
    assert sink.restart()
    sink.write(b"a poem")
    assert not path.exists()
    finish(sink)
    assert path.read_bytes() == b"a poem"
    path.chmod(0o640)
    sink = open_sink(reactor, str(path), print)
    sink.write(b"another")
    assert path.read_bytes() == b"a poem"
    finish(sink)
    assert path.read_bytes() == b"another"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("end", [methodcaller("close"), partial(finish, whole=False)])
def test_a_failure_leaves_no_file(
    tmp_path: Path, old: bytes | None, end: Callable[[Sink], object]
) -> None:
    """A failure leaves no file, and an old one as it was."""
    path = tmp_path / "poem.txt"
    if old is not None:
        path.write_bytes(old)
    sink = open_sink(reactor, str(path), print)
    sink.write(b"half")
    end(sink)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_symbolic_link_stays(tmp_path: Path) -> None:
    """What a link points to is replaced, and not the link."""
    link, target = tmp_path / "link", tmp_path / "there" / "poem.txt"
    target.parent.mkdir()
    link.symlink_to(target)
    for poem in (b"a poem", b"another"):
        save(link, poem)
        assert link.is_symlink()
        assert target.read_bytes() == poem


def test_what_is_no_file_is_written_as_it_is(tmp_path: Path, pipe: tuple[int, int]) -> None:
    """A FIFO, a device and another process's pipe are written to, and stay what they are."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(Unwritten, match="No such device"):  # nobody reads
        open_sink(reactor, str(fifo), print)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    for path in (fifo, Path("/dev/null"), Path(f"/dev/fd/{pipe[1]}")):
        save(path, b"a poem")
    assert os.read(reader, 100) == b"a poem"
    os.close(reader)
    assert fifo.is_fifo()
    assert os.read(pipe[0], 100) == b"a poem"


def test_the_disk_has_it_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash of the machine leaves the old file, or all of the new one."""
    path, synced = tmp_path / "poem.txt", []

    def fsync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    save(path, b"a poem")
    assert synced == [(len(b"a poem"), False)]
    assert path.exists()


def test_no_more_than_permissions_are_kept(tmp_path: Path) -> None:
    """What comes from a network never runs as somebody else."""
    path = tmp_path / "poem.txt"
    path.touch()
    path.chmod(0o7751)
    assert save(path) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o751


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_the_owner_is_kept(tmp_path: Path) -> None:
    """Root who writes somebody's file leaves it theirs."""
    path = tmp_path / "poem.txt"
    path.touch()
    os.chown(path, 4711, 4712)
    assert save(path) == []
    assert (path.stat().st_uid, path.stat().st_gid) == (4711, 4712)


def test_an_owner_who_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file cannot stay somebody's, its group is still tried, and the user is told."""
    path = tmp_path / "poem.txt"
    path.touch()
    asked = []

    def fchown(_: int, user: int, group: int) -> None:
        asked.append((user, group))
        raise PermissionError(errno.EPERM, "Operation not permitted")

    theirs = os.stat_result((*path.stat()[:4], 4711, 4712, *path.stat()[6:]))
    monkeypatch.setattr(os, "fchown", fchown)
    monkeypatch.setattr("poetry.download.files.status_of", lambda _: theirs)
    assert save(path) == [f"{path}: its owner cannot be kept: Operation not permitted"]
    assert asked == [(4711, 4712), (-1, 4712)]
    assert path.read_bytes() == b"a poem"


def test_links_in_a_circle(tmp_path: Path) -> None:
    """A link that leads nowhere but to itself is an error, and stays."""
    link = tmp_path / "link"
    link.symlink_to(link)
    with pytest.raises(Unwritten, match="Too many levels of symbolic links"):
        open_sink(reactor, str(link), print)
    assert [path.is_symlink() for path in tmp_path.iterdir()] == [True]


def test_standard_output_by_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-`, and whatever is the same file, is standard output; other files are not."""
    path, other = tmp_path / "log", tmp_path / "other"
    with path.open("w") as stdout:
        monkeypatch.setattr("sys.__stdout__", stdout)
        other.hardlink_to(path)
        assert [is_standard_output(str(each)) for each in ("-", path, other)] == [True] * 3
        other.unlink()
        other.touch()
        assert not is_standard_output(str(other))
        assert not is_standard_output(str(tmp_path / "none"))
    monkeypatch.setattr("sys.__stdout__", None)
    assert not is_standard_output(str(other))
    assert is_standard_output("-")


def test_standard_error_is_written_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`-o /dev/stderr 2>> log` does not replace the log."""
    path = tmp_path / "log"
    path.write_bytes(b"what the shell wrote\n")
    with path.open("a") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        save(path, b"a poem")
    monkeypatch.setattr("sys.stderr", None)
    assert path.read_bytes() == b"what the shell wrote\na poem"


@pytest.mark.parametrize("name", [".", "no/such/directory", "poem.txt/", "poem.txt/.", "new/.."])
def test_where_no_file_can_be(tmp_path: Path, name: str) -> None:
    """A directory and what is not there cannot be written."""
    with pytest.raises(Unwritten, match=r"directory") as failed:
        open_sink(reactor, f"{tmp_path}/{name}", print)
    assert failed.value.place == f"{tmp_path}/{name}"
