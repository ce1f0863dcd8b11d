"""Standard streams that are closed, full, or not read."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.commands.tools import SHORT, error_of, started
from tests.processes import PATIENCE, SAMPLE, Server, eventually, poetry


@pytest.mark.parametrize("words", [("get", "1"), ("--help",), ("serve", "--help")])
@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_standard_stream_is_no_traceback(words: tuple[str, ...], closed: int) -> None:
    """Whichever standard stream is closed, there is never a traceback."""
    result = poetry(*words, before=partial(os.close, closed))
    if words[0] != "get":
        assert (result.returncode, result.stderr) == (0, b"")
    elif closed == 1:
        assert error_of(result, 1) == "standard output: it is closed"
    elif closed == 0:
        assert error_of(result, 1).startswith("1: connection refused")
    else:
        assert (result.returncode, result.stderr) == (1, b"")


def test_serve_without_standard_input() -> None:
    """`-` where standard input is closed is a usage error."""
    result = poetry("serve", "-", before=partial(os.close, 0))
    assert error_of(result, 2).startswith("-: standard input is closed")


@pytest.mark.parametrize("words", ["--help", "get {short}", "get {long}", "get {short} {long}"])
def test_a_full_standard_output(served: Server, words: str) -> None:
    """A full disk behind standard output is one line, and 1."""
    names = dict(zip(("short", "long"), served.addresses, strict=True))
    given = words.format(**names).split()
    with (
        Path("/dev/full").open("wb") as full,
        started(*given, stdout=full) as process,
    ):
        _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert stderr == b"Error: standard output: No space left on device\n"


def test_a_file_while_standard_output_is_closed(served: Server, tmp_path: Path) -> None:
    """A poem that goes elsewhere needs no standard output."""
    for place in ("/dev/null", "poem.txt"):
        words = ("get", "-o", place, served.addresses[0])
        with started(*words, cwd=tmp_path, preexec_fn=lambda: os.close(1)) as process:
            _, stderr = process.communicate(timeout=PATIENCE)
        assert (process.returncode, stderr) == (0, b"")
    assert (tmp_path / "poem.txt").read_bytes() == SHORT


@pytest.mark.parametrize("stdout", ["full", "closed"])
def test_serve_without_standard_output(tmp_path: Path, stdout: str) -> None:
    """A server that cannot announce itself says so once, and serves."""
    place = tmp_path / "poem"
    with (
        Path("/dev/full").open("wb") as full,
        started(
            *("serve", "--log-level", "error", "-l", f"unix:{place}"),
            stdout=full,
            preexec_fn=(lambda: os.close(1)) if stdout == "closed" else None,
        ) as process,
    ):
        assert eventually(place.exists)
        assert poetry("get", f"unix:{place}").stdout == SAMPLE
        process.terminate()
        _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    full_line = b"Error: standard output: No space left on device\n"
    assert stderr == (full_line if stdout == "full" else b"")


@pytest.mark.parametrize(
    "words",
    ["serve --frob", "serve /dev/null", "serve --log-format json /dev/null", "get --frob", "get x"],
)
def test_error_that_nobody_reads_does_not_block(words: str) -> None:
    """A command that fails ends, although standard error is a full pipe."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while os.write(writing, bytes(65536)):
            pass
    os.set_blocking(writing, True)
    with started(*words.split(), stderr=writing) as process:
        os.close(writing)
        assert process.wait(PATIENCE) == 2
    os.close(reading)


def test_short_poem_into_a_closed_pipe_is_a_failure(served: Server) -> None:
    """A poem that nobody took is not done, although it is all in the kernel or in our buffer."""
    reading, writing = os.pipe()
    os.close(reading)
    with started("get", served.addresses[0], stdout=writing) as process:
        os.close(writing)
        assert process.wait(PATIENCE) == 1
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.parametrize("order", [(1,), (0, 1, 1)])
def test_get_into_head_ends_quietly(served: Server, order: tuple[int, ...]) -> None:
    """`poetry get ... | head -c 10` ends quietly."""
    with (
        started("get", *(served.addresses[index] for index in order)) as process,
        subprocess.Popen(
            ["head", "-c", "10"], stdin=process.stdout, stdout=subprocess.PIPE
        ) as head,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert len(head.communicate(timeout=PATIENCE)[0]) == 10
        assert process.wait(PATIENCE) == 1
        assert process.stderr.read() == b""


def test_max_time_bounds_the_printing(served: Server) -> None:
    """`--max-time` ends the printing as well."""
    with started("get", "--max-time", "3", *reversed(served.addresses)) as process:
        assert process.wait(PATIENCE) == 1
        _, stderr = process.communicate(timeout=PATIENCE)
    assert stderr == b"Error: standard output: timed out: not all was taken within 3 s\n"


@pytest.fixture
def unread() -> Iterator[int]:
    """A descriptor that takes little, cannot be opened again, and is not read."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        yield ours.fileno()


@pytest.mark.parametrize("order", [(1,), (1, 1)])
def test_max_time_with_a_blocking_output(
    served: Server, unread: int, order: tuple[int, ...]
) -> None:
    """`--max-time` is kept where standard output would block, and the error blames the output."""
    words = ("get", "--max-time", "1", *(served.addresses[index] for index in order))
    with started(*words, stdout=unread) as process:
        _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert stderr == b"Error: standard output: timed out: not all was taken within 1 s\n"


def test_interrupt_with_a_blocking_output(served: Server, unread: int) -> None:
    """An interrupt ends a command whose output would block."""
    with started("get", served.addresses[1], stdout=unread) as process:
        poll = select.poll()
        poll.register(unread, select.POLLOUT)
        assert eventually(lambda: not poll.poll(0))
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stderr) == (130, b"")
