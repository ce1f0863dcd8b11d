"""What takes a poem as it comes without blocking: pipes, terminals, devices, open files."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from poetry.download.files import OutputError
from poetry.download.output import (
    STANDARD_OUTPUT,
    Output,
    is_standard_output,
    make_output,
    open_sink,
)
from tests.calls import failing
from tests.download.test_files import save, spooled
from tests.loop import reactor, until, wait, wait_error

LONG = bytes(range(256)) * 4_000


def open_output(descriptor: int) -> Output:
    """An output to an open descriptor."""
    return make_output(reactor, descriptor, "the place")


def reason_of(error: BaseException) -> Exception:
    """The reason of an output's error."""
    assert isinstance(error, OutputError)
    assert error.place == "the place"
    return error.reason


@pytest.fixture(params=["own", "shared", "shared and not blocking", "only sockets"])
def pipe(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[int, int]]:
    """Both ends of a pipe, to read and to write; it can be opened again, or be waited for."""
    if request.param.startswith("shared"):
        monkeypatch.setattr("poetry.download.output.reopened", lambda _: None)
    monkeypatch.setattr("poetry.download.output.ONLY_SOCKETS", request.param == "only sockets")
    ends = os.pipe()
    os.set_blocking(ends[1], "not blocking" not in request.param)
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            assert end == ends[0], "only its reader is closed by a test"


def read_all(reader: int, output: Output) -> bytes:
    """Read a pipe until an output to it is closed."""
    received = bytearray()
    os.set_blocking(reader, False)

    def read() -> bool:
        with suppress(BlockingIOError):
            received.extend(os.read(reader, 1 << 20))
        return bool(output.closed.called)

    until(read)
    read()
    assert wait(output.closed) is None
    return bytes(received)


def test_full_pipe_does_not_block(pipe: tuple[int, int]) -> None:
    """Bytes without room in the pipe wait, and the pipe's other users see no change."""
    reader, writer = pipe
    blocking = os.get_blocking(writer)
    output = open_output(writer)
    assert output.restart()
    output.write(LONG)
    assert not output.restart()
    output.loseConnection()
    reactor.iterate(0)
    assert not output.closed.called
    assert os.get_blocking(writer) == blocking
    assert read_all(reader, output) == LONG


def test_output_waits_for_more(pipe: tuple[int, int]) -> None:
    """An output that has written all waits for more."""
    output = open_output(pipe[1])
    received = b""
    for part in (b"a ", b"poem"):
        output.write(part)
        until(lambda: select.select([pipe[0]], [], [], 0)[0])
        received += os.read(pipe[0], 100)
        until(lambda: not output.dataBuffer)
        assert not output.closed.called
    output.loseConnection()
    assert wait(output.closed) is None
    assert received == b"a poem"


def test_pipe_filled_by_another_process_is_no_error(pipe: tuple[int, int]) -> None:
    """A pipe that others have filled takes nothing until it is read."""
    reader, writer = pipe
    other = os.open(f"/dev/fd/{writer}", os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while os.write(other, bytes(select.PIPE_BUF)):
            pass
    os.close(other)
    output = open_output(writer)
    output.write(b"a poem")
    output.loseConnection()
    for _ in range(3):
        reactor.iterate(0)
    assert not output.closed.called
    assert read_all(reader, output).strip(b"\0") == b"a poem"


def test_room_gone_by_the_write_is_awaited_again() -> None:
    """Room that is gone by the time of the write is waited for again."""
    reader, writer = os.pipe()
    output = open_output(writer)
    while output.writeSomeData(bytes(65536)):
        pass
    output.close()
    os.close(reader)
    os.close(writer)


def test_socket_does_not_block() -> None:
    """A socket, which cannot be opened again, does not block either."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        output = open_output(ours.fileno())
        output.write(LONG)
        output.loseConnection()
        reactor.iterate(0)
        assert ours.getblocking()
        assert read_all(theirs.fileno(), output) == LONG


def test_output_without_a_thread_fails(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no thread can be started, an output that needs one fails."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(reactor, "callInThread", refuse)
    output = open_output(pipe[1])
    output.write(b"a poem")
    output.loseConnection()
    if type(output) is Output:
        assert wait(output.closed) is None
    else:
        assert str(reason_of(wait_error(output.closed))).endswith("can't start new thread")


def test_descriptor_is_closed_after_the_last_write(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A descriptor is closed when no write is under way: its number may be reused at once."""
    output = open_output(pipe[1])
    output.write(LONG)
    descriptor = output.fileno()
    until(lambda: select.select([pipe[0]], [], [], 0)[0])
    closed: list[int] = []
    real = os.close

    def close(descriptor: int) -> None:
        closed.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "close", close)
    output.close()
    assert closed == ([descriptor] if type(output) is Output else [])
    os.set_blocking(pipe[0], False)

    def emptied() -> bool:
        with suppress(BlockingIOError):
            os.read(pipe[0], 1 << 20)
        return bool(closed)

    until(emptied)
    assert closed == [descriptor]


@pytest.mark.parametrize("refused", range(6))
def test_each_refusal_of_the_reactor_ends_a_copy(
    refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever epoll_ctl(2) of a copy is refused, the copy ends with that error."""
    spool = spooled(LONG)
    reader, writer = os.pipe()
    calls = iter(range(1_000_000))

    def sometimes(real: Callable[[Any], None]) -> Callable[[Any], None]:
        def call(descriptor: Any) -> None:
            if descriptor is output and next(calls) == refused:
                failing(errno.ENOSPC)()
            real(descriptor)

        return call

    async def copy() -> None:
        await output.copy(spool)
        await output.finish(whole=True)

    received = bytearray()
    os.set_blocking(reader, False)

    def read() -> bool:
        with suppress(BlockingIOError):
            received.extend(os.read(reader, 1 << 20))
        return bool(done.called)

    with monkeypatch.context() as patch:
        for name in ("addWriter", "removeWriter"):
            patch.setattr(reactor, name, sometimes(getattr(reactor, name)))
        output = open_output(writer)
        done = Deferred.fromCoroutine(copy())
        until(read)
        error = reason_of(wait_error(done))
        output.close()
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC
    assert LONG.startswith(received)
    reactor.removeWriter(output)
    spool.close()
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("call", ["addWriter", "removeWriter"])
def test_refused_wait_is_the_outputs_error(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where epoll_ctl(2) is refused the output is at fault, and no wait is for ever."""
    reader, writer = os.pipe()
    output = open_output(writer)
    with monkeypatch.context() as patch:
        patch.setattr(reactor, call, failing(errno.ENOSPC))
        if call == "addWriter":
            for begin in (output.write, lambda _: wait(Deferred.fromCoroutine(ending(output)))):
                with pytest.raises(OutputError) as failed:
                    begin(b"a poem")
                assert failed.value.place == "the place"
        output.connectionLost(Failure(ConnectionDone()))
        assert isinstance(reason_of(wait_error(output.closed)), OSError)
    reactor.removeWriter(output)
    os.close(reader)
    os.close(writer)


async def ending(output: Output) -> None:
    """Finish an output."""
    await output.finish(whole=True)


@pytest.mark.parametrize("open_again", [True, False])
def test_error_of_close_is_the_outputs_error(
    monkeypatch: pytest.MonkeyPatch, *, open_again: bool
) -> None:
    """An error that a file system gives at close(2), as for a quota, is the output's."""
    if not open_again:
        monkeypatch.setattr("poetry.download.output.reopened", lambda _: None)
    reader, writer = os.pipe()
    output = open_output(writer)
    real = os.close

    def close(descriptor: int) -> None:
        real(descriptor)
        if descriptor == output.fileno():
            failing(errno.EDQUOT)()

    monkeypatch.setattr(os, "close", close)
    output.write(b"a poem")
    output.loseConnection()
    error = reason_of(wait_error(output.closed))
    assert isinstance(error, OSError)
    assert error.errno == errno.EDQUOT
    assert os.read(reader, 100) == b"a poem"
    real(reader)
    real(writer)


def test_stuck_output_without_poll_times_out(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without poll(2) an output that is stuck has a moment more, and is given up then."""
    monkeypatch.delattr(select, "poll")
    monkeypatch.setattr("poetry.download.output.MOMENT", 0.01)
    output = make_output(reactor, pipe[1], "the place", 0.01)
    output.write(LONG)
    assert isinstance(reason_of(wait_error(output.closed)), TimeoutError)


def test_closed_pipe_is_a_broken_pipe(pipe: tuple[int, int]) -> None:
    """A pipe whose reader has gone is a broken pipe."""
    output = open_output(pipe[1])
    os.close(pipe[0])
    output.write(LONG)
    assert isinstance(reason_of(wait_error(output.closed)), BrokenPipeError)


def test_reader_gone_before_the_rest_is_a_broken_pipe(pipe: tuple[int, int]) -> None:
    """The reactor's notice that the reader has gone is a broken pipe, too."""
    output = open_output(pipe[1])
    output.write(LONG)
    reactor.iterate(0)
    os.close(pipe[0])
    assert isinstance(reason_of(wait_error(output.closed)), BrokenPipeError)


@pytest.mark.parametrize("size", [6, len(LONG)])
def test_reader_gone_after_the_last_write_is_a_broken_pipe(
    size: int, pipe: tuple[int, int]
) -> None:
    """What the output still had to write is lost, although no more would have come."""
    output = open_output(pipe[1])
    output.write(LONG[:size])
    output.loseConnection()
    os.close(pipe[0])
    assert isinstance(reason_of(wait_error(output.closed)), BrokenPipeError)


def test_full_disk_is_an_error() -> None:
    """A full disk has its own error."""
    with Path("/dev/full").open("wb") as full:
        output = open_output(full.fileno())
    output.write(b"a poem")
    error = reason_of(wait_error(output.closed))
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC


def test_open_file_is_written_at_its_position(tmp_path: Path) -> None:
    """A regular file is written at its position, as by `(echo a; poetry get ...) > file`."""
    path = tmp_path / "poem.txt"
    with path.open("wb", buffering=0) as file:
        file.write(b"title\n")
        output = open_output(file.fileno())
        output.write(b"poem\n")
        output.loseConnection()
        wait(output.closed)
        file.write(b"end\n")
    assert path.read_bytes() == b"title\npoem\nend\n"


def test_closed_standard_output_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without standard output there is no output."""
    with Path(os.devnull).open() as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
    with pytest.raises(OutputError) as failed:
        open_sink(reactor, None, print)
    assert failed.value.place == STANDARD_OUTPUT


def test_close_before_a_turn_writes_nothing(pipe: tuple[int, int]) -> None:
    """An output that is closed before the reactor turns writes nothing, and logs nothing."""
    output = open_output(pipe[1])
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


def test_fifo_device_and_pipe_stay_in_place(tmp_path: Path, pipe: tuple[int, int]) -> None:
    """A FIFO, a device and another process's pipe are written to, and stay in place."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(OutputError, match="nobody reads from this FIFO yet"):
        open_sink(reactor, str(fifo), print)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        with pytest.raises(OutputError, match="No such device"):
            open_sink(reactor, str(tmp_path / "socket"), print)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_inheritable(pipe[1], True)
    for path in (fifo, Path("/dev/null"), Path(f"/dev/fd/{pipe[1]}")):
        save(path, b"a poem")
    assert os.read(reader, 100) == b"a poem"
    os.close(reader)
    assert fifo.is_fifo()
    assert os.read(pipe[0], 100) == b"a poem"


def test_other_names_of_standard_output_are_recognized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`-`, and any name of the same file, is standard output; other files are not."""
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


def test_standard_error_is_appended_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-o /dev/stderr 2>> log` does not replace the log."""
    path = tmp_path / "log"
    path.write_bytes(b"what the shell wrote\n")
    with path.open("a") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        save(path, b"a poem")
    monkeypatch.setattr("sys.stderr", None)
    assert path.read_bytes() == b"what the shell wrote\na poem"
