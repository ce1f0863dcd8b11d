"""`poetry get`, as a user meets it: what it prints and writes, its errors and exit codes."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.commands.tools import (
    LONG,
    QUICK,
    RESET,
    SAMPLE,
    SHORT,
    accept,
    black_hole,
    error_of,
    eventually,
    port_of,
    started,
    written,
)
from tests.processes import PATIENCE, Server, poetry, running


@pytest.mark.parametrize("order", [(0,), (1,), (0, 1), (1, 0, 0), (1, 1)])
def test_get(served: Server, order: tuple[int, ...]) -> None:
    """Poems are printed byte for byte in the order asked for, the same one twice if asked."""
    result = poetry("get", *(served.addresses[index] for index in order))
    assert result.stdout == b"".join((SHORT, LONG)[index] for index in order)
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_slow_first_one(served: Server, peer: socket.socket) -> None:
    """What is due later is fetched meanwhile, and waits for its turn."""
    with started("get", port_of(peer), *served.addresses) as process, accept(peer) as connection:
        connection.sendall(b"slow ")
        connection.sendall(b"but first\n")
        connection.close()
        stdout, _ = process.communicate(timeout=PATIENCE)
    assert stdout == b"slow but first\n" + SHORT + LONG
    assert process.returncode == 0


def test_one_of_several_fails(served: Server, tmp_path: Path) -> None:
    """When one of several fails the others are printed, but do not make a file."""
    addresses = (served.addresses[0], "unix:/no/such/socket", served.addresses[1])
    result = poetry("get", *addresses)
    assert error_of(result, 1).startswith("unix:/no/such/socket: ")
    assert result.stdout == SHORT + LONG
    error_of(poetry("get", "-o", tmp_path / "poems.txt", *addresses), 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("order", [(0,), (0, 1)])
def test_output(served: Server, tmp_path: Path, order: tuple[int, ...]) -> None:
    """With `-o` one file has all poems, in order, and keeps the mode it had."""
    path = tmp_path / "poems.txt"
    path.write_bytes(b"old")
    path.chmod(0o600)
    result = poetry("get", "-o", path, *(served.addresses[index] for index in order))
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    assert path.read_bytes() == b"".join((SHORT, LONG)[index] for index in order)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_output_to_another_command(served: Server) -> None:
    """`-o -`, `-o /dev/stdout` and `-o /dev/null` are written as they are."""
    assert poetry("get", "-o", "-", served.addresses[0]).stdout == SHORT
    assert poetry("get", "-o", "/dev/stdout", served.addresses[0]).stdout == SHORT
    assert poetry("get", "-o", "/dev/null", served.addresses[0]).returncode == 0


@pytest.mark.parametrize("output", ["/dev/stdout", "log"])
def test_output_to_standard_output_by_its_name(served: Server, tmp_path: Path, output: str) -> None:
    """`(echo title; poetry get -o /dev/stdout ...) > log` keeps the title."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.write(b"title\n")
        file.flush()
        words = ("get", "-o", output, served.addresses[0])
        with started(*words, stdout=file, cwd=tmp_path) as process:
            assert process.wait(PATIENCE) == 0
        file.seek(0, os.SEEK_END)
        file.write(b"end\n")
    assert log.read_bytes() == b"title\n" + SHORT + b"end\n"


def test_directory(served: Server, tmp_path: Path) -> None:
    """With `-d` each poem that arrives has a file named after its address."""
    directory = tmp_path / "new" / "poems"
    result = poetry("get", "-d", directory, *served.addresses, "unix:/no/such/socket")
    assert error_of(result, 1).startswith("unix:/no/such/socket: ")
    names = [address.replace(":", "_") + ".txt" for address in served.addresses]
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {
        names[0]: SHORT,
        names[1]: LONG,
    }


def test_limits_that_are_kept(served: Server) -> None:
    """A poem of the limit and with the digest wanted, in any case, is a good one."""
    digest = hashlib.sha256(SHORT).hexdigest().upper()
    words = ("--max-bytes", str(len(SHORT)), "--sha256", digest, "--timeout", "inf")
    assert poetry("get", *words, served.addresses[0]).stdout == SHORT


def test_retries(peer: socket.socket, tmp_path: Path) -> None:
    """With `--retries` a failure is said, and tried again from the start."""
    words = ("get", "--retries", "3", "-o", tmp_path / "poem.txt", port_of(peer))
    with started(*words) as process:
        accept(peer).close()
        with accept(peer) as connection:
            connection.sendall(SHORT)
        _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    [line] = stderr.decode().splitlines()
    assert line.startswith(f"{port_of(peer)}: an empty poem: ")
    assert "; retry 1 of 3 in " in line
    assert (tmp_path / "poem.txt").read_bytes() == SHORT


def test_a_late_server(tmp_path: Path) -> None:
    """`--retries` bridges a server that comes up late."""
    place = tmp_path / "poem"
    with started("get", "--retries", "60", f"unix:{place}") as process:
        assert process.stderr is not None
        assert b"; retry 1 of 60 in " in process.stderr.readline()
        with running([*QUICK, "-l", f"unix:{place}"]):
            stdout, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout) == (0, SAMPLE)


def test_no_retry_of_what_is_printed(peer: socket.socket) -> None:
    """What is already on standard output cannot be taken back, so there is no retry."""
    with started("get", "--retries", "9", port_of(peer)) as process:
        with accept(peer) as connection:
            connection.sendall(SHORT)
            assert process.stdout is not None
            assert process.stdout.read(len(SHORT)) == SHORT
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout) == (1, b"")
    assert stderr.startswith(f"Error: {port_of(peer)}: truncated after {len(SHORT)} ".encode())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{refused}", "{refused}: connection refused: is a server running there?"),
        ("-q --retries 1 {refused}", "{refused}: connection refused: is a server running there?"),
        ("unix:/no/such/socket", "unix:/no/such/socket: no connection: No such file"),
        ("host.invalid:80", "host.invalid:80: no such host (DNS lookup failed"),
        ("--max-bytes {less} {short}", "{short}: too long: more than {less} bytes"),
        ("--sha256 {sha256} {short}", "{short}: wrong digest: expected {sha256}, got "),
        ("-o /no/such/place {short}", "/no/such/place: No such file or directory"),
        ("-o . {short}", ".: Is a directory"),
        ("-o . {short} {short}", ".: Is a directory"),
        ("-o /dev/full {short}", "/dev/full: No space left on device"),
        ("-o /dev/full {long} {long}", "/dev/full: No space left on device"),
        ("-o /proc/poem {short}", "/proc/poem: No such file or directory"),
        ("-d {file} {short}", "{file}: it is no directory"),
        ("-d {file}/x {short}", "{file}/x: Not a directory"),
    ],
)
def test_cannot_get(served: Server, words: str, message: str) -> None:
    """What fails is one line that names the address or the file, and 1."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        names = {
            "refused": port_of(unused),
            "short": served.addresses[0],
            "long": served.addresses[1],
            "less": str(len(SHORT) - 1),
            "sha256": "0" * 64,
            "file": __file__,
        }
        result = poetry("get", *[word.format(**names) for word in words.split()])
    assert error_of(result, 1).startswith(message.format(**names))


@pytest.mark.parametrize(
    ("poem", "message"),
    [(b"", "an empty poem: the stream ended"), (LONG, "truncated after ")],
)
def test_a_bad_end(peer: socket.socket, tmp_path: Path, poem: bytes, message: str) -> None:
    """A stream that ends before its first byte, or with a reset, is no poem."""
    with started("get", "-o", tmp_path / "poem.txt", port_of(peer)) as process:
        with accept(peer) as connection:
            connection.sendall(poem)
            if poem:
                eventually(lambda: written(tmp_path))
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert stderr.decode().startswith(f"Error: {port_of(peer)}: {message}")
    assert not list(tmp_path.iterdir())


def test_a_silent_server(peer: socket.socket) -> None:
    """A server that says nothing is given up, and it is said for how long nothing came."""
    error = error_of(poetry("get", "--timeout", "0.2", port_of(peer)), 1)
    assert error == f"{port_of(peer)}: timed out: nothing for 0.2 s after 0 bytes"


def test_no_answer() -> None:
    """Where nothing answers, it is given up."""
    with black_hole() as address:
        error = error_of(poetry("get", "--timeout", "0.2", address), 1)
    assert error == f"{address}: no connection in time: nothing answers there"


def test_back_pressure(peer: socket.socket) -> None:
    """A pipe that nobody reads holds the sender back, and the poem is whole in the end."""
    poem = LONG * 20
    with started("get", port_of(peer)) as process, accept(peer) as connection:
        connection.settimeout(1)
        sent = 0
        with suppress(TimeoutError):
            while sent < len(poem):
                sent += connection.send(memoryview(poem)[sent : sent + 65536])
        assert sent < len(poem)
        connection.settimeout(PATIENCE)

        def send_the_rest() -> None:
            connection.sendall(memoryview(poem)[sent:])
            connection.close()

        sender = threading.Thread(target=send_the_rest, daemon=True)
        sender.start()
        stdout, stderr = process.communicate(timeout=PATIENCE)
        sender.join(PATIENCE)
    assert (process.returncode, stderr) == (0, b"")
    assert stdout == poem


def test_what_nobody_foresaw() -> None:
    """An error that nobody foresaw is one line, too."""
    script = """
from poetry import cli
from poetry.download import fetch
async def fail(*_): raise RuntimeError("what\\nnobody foresaw")
fetch.Fetcher.fetch = fail
cli.main()
"""
    words = [sys.executable, "-c", script, "get", "1"]
    result = subprocess.run(words, capture_output=True, timeout=PATIENCE, check=False)
    assert error_of(result, 1) == "unexpected: what nobody foresaw"
