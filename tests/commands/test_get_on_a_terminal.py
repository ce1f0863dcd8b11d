"""`poetry get` on a terminal: progress, and what would spoil the terminal."""

from __future__ import annotations

import itertools
import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.commands.tools import HASTY, SHORT, accept, port_of, started, terminal
from tests.faults.bad import black_hole
from tests.faults.readers import reset
from tests.processes import PATIENCE, Server, eventually, poetry


@pytest.mark.parametrize(
    ("words", "terminals", "shown"),
    [
        ("-o /dev/null", {"stderr"}, True),
        ("", {"stderr"}, True),
        ("", {"stdout", "stderr"}, False),
        ("--progress", {"stdout", "stderr"}, True),
        ("-q", {"stderr"}, False),
        ("--no-progress", {"stderr"}, False),
        ("", {"stdout"}, False),
    ],
)
def test_progress_is_shown_on_a_terminal(
    peer: socket.socket, words: str, terminals: set[str], *, shown: bool
) -> None:
    """Progress is shown on a terminal's standard error, unless the poem goes to that terminal."""
    with terminal() as (device, seen):
        outputs = dict.fromkeys(terminals, device)
        given = ("get", *words.split(), port_of(peer))
        with started(*given, command=HASTY, **outputs) as process:
            with accept(peer) as connection:
                for count in itertools.count():
                    connection.sendall(SHORT)
                    time.sleep(0.01)
                    if b"B/s" in seen if shown else count > 20:
                        break
            stdout, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert (b"B/s" in seen) is shown
    if not words and "stdout" not in terminals:
        assert stdout == SHORT * (count + 1)


@pytest.mark.parametrize("name", ["TQDM_DISABLE=1", "TQDM_NCOLS=x", "TQDM_MININTERVAL=x"])
def test_environment_of_tqdm_changes_nothing(served: Server, tmp_path: Path, name: str) -> None:
    """The options of the command decide on its progress."""
    variable, _, value = name.partition("=")
    words = ("get", "--progress", "-o", tmp_path / "poem.txt", served.addresses[0])
    result = poetry(*words, env={variable: value})
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize("progress", [[], ["--progress"]])
def test_short_download_shows_no_progress(served: Server, progress: list[str]) -> None:
    """A download that is over at once draws nothing, and an error then has its line to itself."""
    with terminal() as (device, seen):
        words = ("get", *progress, served.addresses[0], "unix:/no/such/socket")
        with started(*words, stderr=device) as process:
            stdout, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout) == (1, SHORT)
    assert seen.startswith(b"Error: unix:/no/such/socket: ")
    assert seen.count(b"\r") == seen.count(b"\r\n") == 1


@pytest.mark.parametrize("columns", [0, 80])
@pytest.mark.parametrize("sent", [b"", b"half"])
def test_progress_goes_on_in_silence(peer: socket.socket, sent: bytes, columns: int) -> None:
    """The bar's clock runs before the first byte and in a pause, with any width of terminal."""
    with terminal(columns) as (device, seen):
        words = ("get", "-o", "/dev/null", port_of(peer))
        with started(*words, command=HASTY, stderr=device) as process:
            with accept(peer) as connection:
                connection.sendall(sent)
                assert eventually(lambda: seen.count(b", nothing for ") > 1)
                connection.sendall(SHORT)
            assert process.wait(PATIENCE) == 0
    drawn = re.findall(rb"\[([0-9:]+), .*?, nothing for \d+ s", seen)
    assert len(set(drawn)) > 1
    assert (b"4.00B" in seen) == bool(sent)


def test_progress_while_connecting_leaves_no_trace() -> None:
    """The bar's clock runs while no server answers, and the bar leaves no trace."""
    with black_hole() as port, terminal() as (device, seen):
        words = ("get", "--timeout", "1", "-o", "/dev/null", str(port))
        with started(*words, command=HASTY, stderr=device) as process:
            assert process.wait(PATIENCE) == 1
    assert b"0.00B [" in seen
    error = f"Error: {port}: no connection in time: nothing answers there"
    assert bytes(seen).rpartition(b"\n")[0].rstrip(b"\r").endswith(error.encode())


def test_full_standard_error_does_not_block_the_download(
    peer: socket.socket, tmp_path: Path
) -> None:
    """A standard error that is full holds nothing up."""
    reader, writer = os.pipe()
    own = os.open(f"/dev/fd/{writer}", os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while os.write(own, bytes(4096)):
            pass
    os.close(own)
    words = ("get", "-v", "--progress", "-o", tmp_path / "poem.txt", port_of(peer))
    with started(*words, command=HASTY, stderr=writer) as process, accept(peer) as connection:
        connection.sendall(SHORT)
        time.sleep(1)
        connection.close()
        assert process.wait(PATIENCE) == 0
    os.close(reader)
    os.close(writer)
    assert (tmp_path / "poem.txt").read_bytes() == SHORT


@pytest.mark.parametrize(
    ("words", "shown"), [("-o {file}", 1), ("-d {directory}", 1), ("-q -o {file}", 0)]
)
def test_written_file_is_named(served: Server, tmp_path: Path, words: str, *, shown: int) -> None:
    """On a terminal a line says which file was written, and how many bytes."""
    names = {"file": tmp_path / "poem.txt", "directory": tmp_path}
    words = f"get {words.format(**names)} {served.addresses[0]}"
    with terminal() as (device, seen), started(*words.split(), stderr=device) as process:
        assert process.wait(PATIENCE) == 0
    [path] = tmp_path.iterdir()
    assert bytes(seen).decode() == f"Wrote {path}: {len(SHORT)} bytes\r\n" * shown


def test_error_beside_progress_has_its_own_line(peer: socket.socket) -> None:
    """An error beside a progress bar has a line of its own, and no bar is left."""
    words = ("get", "-o", "/dev/null", "--retries", "1", port_of(peer))
    with terminal() as (device, seen), started(*words, command=HASTY, stderr=device) as process:
        with accept(peer):
            pass
        with accept(peer) as connection:
            while not re.search(rb"[1-9][\d.]*k?B \[", seen):
                connection.sendall(SHORT)
                time.sleep(0.01)
            reset(connection)
        assert process.wait(PATIENCE) == 1
    lines = [line.rpartition(b"\r")[2] for line in bytes(seen).split(b"\r\n")]
    assert b"; retry 1 of 1 in " in lines[0]
    assert lines[-2].startswith(f"Error: {port_of(peer)}: truncated after ".encode())
    assert b"B/s" not in lines[-1]


@pytest.mark.parametrize(
    ("words", "shown"), [("", 0), ("{short}", 0), ("-o -", 1), ("-o /dev/stdout", 1)]
)
def test_nul_bytes_are_not_shown_on_a_terminal(
    served: Server, peer: socket.socket, words: str, shown: int
) -> None:
    """NUL bytes are not shown on a terminal, unless asked for; the other poems are."""
    given = words.format(short=served.addresses[0]).split()
    given.append(port_of(peer))
    with terminal() as (device, seen), started("get", *given, stdout=device) as process:
        connection = accept(peer)
        connection.sendall(b"\x7fELF\0spoiled")
        connection.close()
        _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 - shown
    assert seen.count(b"ELF") == shown
    assert seen.count(SHORT[:9]) == words.count("short")
    if not shown:
        assert stderr.startswith(f"Error: {port_of(peer)}: not shown: it is no text".encode())
        assert stderr.count(b"\n") == 1


def test_late_nul_bytes_end_the_showing(peer: socket.socket) -> None:
    """Where NUL bytes follow a part shown already, the rest is not shown, and the line says so."""
    with terminal() as (device, seen), started("get", port_of(peer), stdout=device) as process:
        with accept(peer) as connection:
            connection.sendall(b"PDF")
            assert eventually(lambda: seen == b"PDF")
            connection.sendall(b"\0spoiled")
        _, stderr = process.communicate(timeout=PATIENCE)
        assert eventually(lambda: seen == b"PDF\r\n")
    assert process.returncode == 1
    assert stderr.startswith(f"Error: {port_of(peer)}: shown no further: it is no text".encode())
    assert stderr.count(b"\n") == 1


@pytest.mark.parametrize("part", [b"half a line", b"a line\n"])
def test_error_has_a_line_of_its_own(peer: socket.socket, part: bytes) -> None:
    """On a terminal what came of the poem stands first, and the error is not glued to it."""
    with terminal() as (device, seen):
        words = ("get", "--max-bytes", "20", port_of(peer))
        with started(*words, stdout=device, stderr=device) as process:
            with accept(peer) as connection:
                connection.sendall(part)
                assert eventually(lambda: len(seen) >= len(part))
                connection.sendall(b"x" * 30)
            process.wait(PATIENCE)
        assert eventually(lambda: b"too long" in seen)
    shown = part.rstrip(b"\n") + b"\r\n"
    assert bytes(seen).startswith(shown + f"Error: {port_of(peer)}: too long".encode())


CONTROLS = b"\x1b]0;title\x07 over\rwritten\n\xc2\x9b2J \xe2\x80"
VISIBLE = b"^[]0;title^G over^Mwritten\r\n<U+009B>2J <E2><80>"


@pytest.mark.parametrize(
    ("words", "shown"), [("", VISIBLE), ("{short}", VISIBLE), ("-o -", CONTROLS)]
)
def test_control_characters_are_visible_on_a_terminal(
    served: Server, peer: socket.socket, words: str, shown: bytes
) -> None:
    """Control characters are made visible, wherever the poem is cut; not with `-o -`."""
    given = [*words.format(short=served.addresses[0]).split(), port_of(peer)]
    with terminal() as (device, seen), started("get", *given, stdout=device) as process:
        with accept(peer) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in CONTROLS:
                connection.sendall(bytes([byte]))
        _, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stderr) == (0, b"")
    shown = shown if shown == VISIBLE else shown.replace(b"\n", b"\r\n")
    assert bytes(seen) == (SHORT.replace(b"\n", b"\r\n") if "short" in words else b"") + shown


def test_control_characters_in_a_pipe_stay(peer: socket.socket) -> None:
    """An output that is no terminal gets each byte unchanged."""
    with started("get", port_of(peer)) as process:
        with accept(peer) as connection:
            connection.sendall(CONTROLS)
        stdout, _ = process.communicate(timeout=PATIENCE)
    assert stdout == CONTROLS
