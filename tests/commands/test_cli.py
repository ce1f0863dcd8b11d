"""The commands, as a user meets them: real processes, their lines and their exit codes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from twisted.internet.error import CannotListenError
from twisted.logger import globalLogBeginner

from poetry.cli import cli, main
from poetry.commands.serve import cannot_listen
from poetry.system.descriptors import LEAST
from tests.certificates import Certificates
from tests.faults.conftest import Command
from tests.processes import PATIENCE, POETRY, Server, poetry, running

SHORT = "Said the river: I bring what I have to the sea. — envoi\n".encode()
LONG = bytes(range(256)) * 12_000
SAMPLE = (Path(__file__).parents[2] / "poetry" / "sample.txt").read_bytes()
NO_PATH = f"/{'x' * 119}"
RESET = struct.pack("ii", 1, 0)
SERVE = (*POETRY, "serve")
HASTE = """
import time
real, start = time.time, time.time()
time.time = lambda: start + 100 * (real() - start)
from poetry.cli import main
main()
"""
HASTY = (sys.executable, "-c", HASTE)
"""The command, with a time of day that runs a hundred times as fast, so that it soon takes long."""
QUICK = (*SERVE, "--grace", "0", "--log-level", "error")


@pytest.fixture(scope="module")
def poems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with short.txt, long.txt, empty.txt, and 'a directory'."""
    directory = tmp_path_factory.mktemp("poems")
    for name, poem in [("short", SHORT), ("long", LONG), ("empty", b"")]:
        (directory / f"{name}.txt").write_bytes(poem)
    (directory / "a directory").mkdir()
    return directory


@pytest.fixture(scope="module")
def served(poems: Path) -> Iterator[Server]:
    """A server of short.txt, then of long.txt."""
    with running([*QUICK, poems / "short.txt", poems / "long.txt"], listeners=2) as server:
        yield server


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    """A listener that does what the test makes it do."""
    with socket.socket() as listener:
        listener.settimeout(PATIENCE)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


@contextmanager
def terminal() -> Iterator[tuple[int, bytearray]]:
    """A terminal to write to, and what was shown on it when the block has ended."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    seen = bytearray()

    def watch() -> None:
        with suppress(OSError):  # EIO: nobody has the terminal open any more
            while data := os.read(master, 65536):
                seen.extend(data)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield slave, seen
    finally:
        os.close(slave)
        watcher.join(PATIENCE)
        os.close(master)


def port_of(listener: socket.socket) -> str:
    return str(listener.getsockname()[1])


def accept(listener: socket.socket) -> socket.socket:
    """The next connection; nothing that it does takes for ever."""
    connection, _ = listener.accept()
    connection.settimeout(PATIENCE)
    return connection


@contextmanager
def started(
    *words: str | Path, command: Sequence[str] = POETRY, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A `poetry` command that runs until the block ends; its outputs are pipes."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen([*command, *map(str, words)], **options) as process:
        try:
            yield process
        finally:
            process.kill()


Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that does not come to run the reactor, as `processes.poetry` does."""

    def run(*words: str) -> subprocess.CompletedProcess[bytes]:
        monkeypatch.setattr(sys, "argv", ["poetry", *words])
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO()))
        monkeypatch.setattr(globalLogBeginner, "beginLoggingTo", lambda *_, **__: None)
        with pytest.raises(SystemExit) as ended:
            main()
        printed = [text.encode() for text in capfd.readouterr()]
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(words, ended.value.code, *printed)

    return run


def eventually(condition: Callable[[], object]) -> None:
    """Wait until something holds."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "it never came true"
        time.sleep(0.01)


def written(directory: Path) -> bool:
    """Whether a file there has something in it."""
    return any(path.stat().st_size for path in directory.iterdir())


def error_of(result: subprocess.CompletedProcess[bytes], code: int) -> str:
    """The one line on standard error of a command that has failed with `code`."""
    lines = result.stderr.decode().splitlines()
    assert (result.returncode, len(lines)) == (code, 1), result
    assert lines[0].startswith("Error: ")
    return lines[0].removeprefix("Error: ")


# Bad input


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("serve -p 65536", "Invalid value for '-p' / '--port': 65536 is not in the range"),
        ("serve -p x", "Invalid value for '-p' / '--port': x is not a whole number, such as 10000"),
        ("serve -p -1", "Invalid value for '-p' / '--port': -1 is not in the range of 0 to 65535"),
        ("serve -l 65536", "'65536': port 65536 is out of range (0 to 65535)"),
        ("serve -l nonsense", "'nonsense' is no address: use PORT, HOST:PORT or"),
        ("serve -l frob:1:2", "'frob:1:2' is no address: Unknown endpoint type: 'frob'"),
        ("serve -l tcp:0:frob=1", "'tcp:0:frob=1' is no address: too few or too many arguments"),
        ("serve -l ssl:0:privateKey=/none", "'ssl:0:privateKey=/none' is no address: [Errno 2]"),
        ("serve -l stdio:", "'stdio:': standard input and output is not a listener"),
        ("serve -l unix:", "'unix:': it names no path"),
        ("serve -i ", "--interface : write a host or an address of this machine, without a port"),
        ("serve -i *", "--interface *: write a host or an address of this machine"),
        ("serve -i 127.0.0.1:80", "--interface 127.0.0.1:80: write a host or an address"),
        ("serve -i [::1]:80", "--interface [::1]:80: write a host or an address"),
        ("serve -l haproxy:tcp:0", "'haproxy:tcp:0': the PROXY protocol is not supported"),
        (f"serve -l unix:{NO_PATH}", f"'unix:{NO_PATH}' is no address: its path has 120 bytes"),
        ("serve --metrics nonsense", "'nonsense' is no address"),
        ("serve -l 0 -p 0", "give --listen, or --port and --interface, not both"),
        ("serve -p 9 a.txt b.txt", "several poems cannot share --port: give each a --listen"),
        ("serve -l 0 {short} {short}", "2 poems and 1 addresses"),
        ("serve -l 0 -l 0 -l 0 {short} {short}", "2 poems and 3 addresses"),
        ("serve --delay nan", "Invalid value for '--delay': nan is not a number of seconds"),
        ("serve --grace 5s", "Invalid value for '--grace': 5s is not a number of seconds, such as"),
        ("serve --grace -1", "Invalid value for '--grace': -1 is not in the range of 0 and more"),
        ("serve --num-bytes 0", "Invalid value for '--num-bytes': 0 is not in the range"),
        ("get", "Missing argument 'ADDRESS...'"),
        ("get nonsense", "'nonsense' is no address: use PORT, HOST:PORT or an endpoint string"),
        ("get 127.0.0.1:0", "'127.0.0.1:0': port 0 is not one to connect to (1 to 65535)"),
        ("get ::1:80", "'::1:80' is no address: an IPv6 host goes in brackets"),
        ("get http://localhost/", "'http://localhost/' is no address: write localhost:PORT"),
        (f"get unix:{NO_PATH}", f"'unix:{NO_PATH}' is no address: its path has 120 bytes"),
        ("get unix:", "'unix:': it names no path"),
        ("get tcp:80:frob=1", "'tcp:80:frob=1' is no address: "),
        ("get -o a -d b 1", "give --output or --directory, not both"),
        ("get -d {empty}.d 1 127.0.0.1:1 1", "two addresses would share a file in --directory"),
        ("get --sha256 abc 1", "--sha256 abc: not 64 hexadecimal digits"),
        ("get -o  1", "--output: it names no file"),
        (
            "get --timeout 0 1",
            "Invalid value for '--timeout': 0 is not in the range of more than 0",
        ),
        ("get --timeout 5s 1", "Invalid value for '--timeout': 5s is not a number of seconds"),
        ("get --max-time 1m 1", "Invalid value for '--max-time': 1m is not a number of seconds"),
        (
            "get --max-bytes 1M 1",
            "Invalid value for '--max-bytes': 1M is not a whole number, such as 1000000",
        ),
        (
            "get --retries -1 1",
            "Invalid value for '--retries': -1 is not in the range of 0 and more",
        ),
        ("frob", "No such command 'frob'"),
    ],
)
def test_usage(in_process: Run, poems: Path, words: str, message: str) -> None:
    """What makes no sense is one line that names it and tells where to read on, and 2."""
    names = {path.stem: str(path) for path in poems.iterdir()}
    given = [word.format(**names) for word in words.split(" ")]
    error = error_of(in_process(*given), 2)
    assert error.startswith(message.format(**names))
    assert "--help')" in error


@pytest.mark.parametrize("words", ["serve -p x", "get nonsense", "frob"])
def test_usage_of_a_process(in_process: Run, words: str) -> None:
    """The command itself says the same."""
    expected, result = in_process(*words.split()), poetry(*words.split())
    assert (result.returncode, result.stdout) == (expected.returncode, expected.stdout)
    assert result.stderr.replace(b"python -m poetry", b"poetry") == expected.stderr


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("no-such-file.txt", "No such file or directory"),
        (".", "Is a directory"),
        ("{empty}", "it is empty, and there is no empty poem"),
        ("-", "it is empty, and there is no empty poem"),
    ],
)
def test_a_poem_that_cannot_be_served(poems: Path, word: str, message: str) -> None:
    """Where the command makes sense, and its poem is none, there is nothing to read on."""
    given = word.format(empty=poems / "empty.txt")
    assert error_of(poetry("serve", given), 2) == f"{given}: {message}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "-p {taken}",
            "cannot listen on 127.0.0.1:{taken}: Address already in use; choose another",
        ),
        ("--metrics {taken}", "cannot listen on 127.0.0.1:{taken}: Address already in use"),
        ("-i 192.0.2.1", "cannot listen on 192.0.2.1: no interface of this machine has that"),
        (
            "-l unix:{file}",
            "cannot listen on {file}: a file that is no socket is there; choose another",
        ),
        ("-l unix:/no/such/place", "cannot listen on unix:/no/such/place: No such file"),
    ],
)
def test_cannot_listen(peer: socket.socket, poems: Path, words: str, message: str) -> None:
    """An address that cannot be had is one line that names it and says what to do, and 1."""
    names = {"taken": port_of(peer), "file": str(poems / "short.txt")}
    given = [word.format(**names) for word in words.split()]
    assert error_of(poetry("serve", *given), 1).startswith(message.format(**names))


def test_a_unix_socket_that_is_served(tmp_path: Path) -> None:
    """A second server on a Unix socket is told so, and the first one stays."""
    address = f"unix:{tmp_path / 'poem'}"
    with running([*QUICK, "-l", address]) as server:
        message = f"cannot listen on {tmp_path / 'poem'}: a server answers on it; choose another"
        assert error_of(poetry("serve", "-l", address), 1).startswith(message)
        assert poetry("get", server.addresses[0]).stdout == SAMPLE


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            CannotListenError("127.0.0.1", 80, OSError(errno.EACCES, "Permission denied")),
            "cannot listen on 127.0.0.1:80: Permission denied; ports below 1024 need privileges",
        ),
        (
            CannotListenError(None, b"/run/x", OSError(errno.EACCES, "Permission denied")),
            "cannot listen on /run/x: Permission denied",
        ),
        (
            CannotListenError("::1", 80, OSError(errno.EADDRNOTAVAIL, "odd")),
            "cannot listen on [::1]:80: no interface of this machine has that address",
        ),
        (CannotListenError("x", 0, OSError("odd")), "cannot listen on x: odd"),
        (
            CannotListenError("", "onion:80", ValueError("there is no Tor")),
            "cannot listen on onion:80: there is no Tor",
        ),
        (
            CannotListenError(None, "/run/x", "locked"),
            "cannot listen on /run/x: locked; choose another",
        ),
    ],
)
def test_why_it_cannot_listen(error: Exception, message: str) -> None:
    """Where the reason is known, so is what to do about it."""
    assert cannot_listen(error) == message


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


@contextmanager
def black_hole() -> Iterator[str]:
    """An address that answers nothing: a listener whose queue is full."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for other in (first, second):
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        yield port_of(listener)


def test_no_answer() -> None:
    """Where nothing answers, it is given up."""
    with black_hole() as address:
        error = error_of(poetry("get", "--timeout", "0.2", address), 1)
    assert error == f"{address}: no connection in time: nothing answers there"


@pytest.mark.parametrize("words", [("get", "1"), ("--help",), ("serve", "--help")])
@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_streams(words: tuple[str, ...], closed: int) -> None:
    """Whichever standard stream is closed, nothing is ever a traceback."""
    result = subprocess.run(
        [*POETRY, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        preexec_fn=lambda: os.close(closed),
        timeout=PATIENCE,
        check=False,
    )
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
    result = subprocess.run(
        [*SERVE, "-"],
        capture_output=True,
        preexec_fn=lambda: os.close(0),
        timeout=PATIENCE,
        check=False,
    )
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
        eventually(place.exists)
        assert poetry("get", f"unix:{place}").stdout == SAMPLE
        process.terminate()
        _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    full_line = b"Error: standard output: No space left on device\n"
    assert stderr == (full_line if stdout == "full" else b"")


@pytest.mark.parametrize("order", [(1,), (0, 1, 1)])
def test_head(served: Server, order: tuple[int, ...]) -> None:
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


# get


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
def test_progress(peer: socket.socket, words: str, terminals: set[str], *, shown: bool) -> None:
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


@pytest.mark.parametrize("progress", [[], ["--progress"]])
def test_a_short_download_shows_no_progress(served: Server, progress: list[str]) -> None:
    """What is over at once draws nothing, and an error then has its line to itself."""
    with terminal() as (device, seen):
        words = ("get", *progress, served.addresses[0], "unix:/no/such/socket")
        with started(*words, stderr=device) as process:
            stdout, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout) == (1, SHORT)
    assert seen.startswith(b"Error: unix:/no/such/socket: ")
    assert seen.count(b"\r") == seen.count(b"\r\n") == 1


@pytest.mark.parametrize(
    ("words", "shown"), [("", 0), ("{short}", 0), ("-o -", 1), ("-o /dev/stdout", 1)]
)
def test_what_would_spoil_a_terminal(
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


def test_what_turns_out_to_spoil_a_terminal(peer: socket.socket) -> None:
    """Where NUL bytes follow what is shown already, no more of it is, and the line says so."""
    with terminal() as (device, seen), started("get", port_of(peer), stdout=device) as process:
        with accept(peer) as connection:
            connection.sendall(b"PDF")
            eventually(lambda: seen == b"PDF")
            connection.sendall(b"\0spoiled")
        _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert seen == b"PDF"
    assert stderr.startswith(f"Error: {port_of(peer)}: shown no further: it is no text".encode())
    assert stderr.count(b"\n") == 1


def test_progress_and_errors(peer: socket.socket) -> None:
    """An error beside a progress bar has a line of its own, and no bar is left."""
    words = ("get", "-o", "/dev/null", "--retries", "1", port_of(peer))
    with terminal() as (device, seen), started(*words, command=HASTY, stderr=device) as process:
        with accept(peer):
            pass
        with accept(peer) as connection:
            while b"B/s" not in seen:
                connection.sendall(SHORT)
                time.sleep(0.01)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        assert process.wait(PATIENCE) == 1
    lines = [line.rpartition(b"\r")[2] for line in bytes(seen).split(b"\r\n")]
    assert b"; retry 1 of 1 in " in lines[0]
    assert lines[-2].startswith(f"Error: {port_of(peer)}: truncated after ".encode())
    assert b"B/s" not in lines[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(peer: socket.socket, tmp_path: Path, number: int) -> None:
    """INT, TERM and HUP end it with 130, and leave no file."""
    with (
        started("get", "-o", tmp_path / "poem.txt", port_of(peer)) as process,
        accept(peer) as connection,
    ):
        connection.sendall(LONG)
        eventually(lambda: written(tmp_path))
        process.send_signal(number)
        _, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stderr) == (130, b"")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_ignored(peer: socket.socket, number: signal.Signals) -> None:
    """Under nohup a HUP is nothing, and in the background of a shell script an interrupt."""
    options: Any = {"preexec_fn": lambda: signal.signal(number, signal.SIG_IGN)}
    with started("get", port_of(peer), **options) as process, accept(peer) as connection:
        process.send_signal(number)
        connection.sendall(SHORT)
        connection.close()
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout, stderr) == (0, SHORT, b"")


@pytest.mark.parametrize("count", [1, 2])
def test_interrupted_while_nobody_reads(served: Server, count: int) -> None:
    """An interrupt is heard while standard output is stuck."""
    with started("get", *[served.addresses[1]] * count) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == LONG[:1]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        _, stderr = process.communicate(timeout=PATIENCE)
    assert stderr == b""


def test_in_time_while_nobody_reads(served: Server) -> None:
    """`--max-time` ends the printing as well."""
    with started("get", "--max-time", "3", *reversed(served.addresses)) as process:
        assert process.wait(PATIENCE) == 1
        _, stderr = process.communicate(timeout=PATIENCE)
    assert stderr == b"Error: standard output: timed out: not all was taken within 3 s\n"


@pytest.mark.parametrize("count", [1, 2])
def test_interrupted_while_it_connects(tmp_path: Path, count: int) -> None:
    """An interrupt before there is a connection is no failure, either."""
    with black_hole() as address:
        words = ("get", "--directory", tmp_path / "d", *(address, f"tcp:127.0.0.1:{address}"))
        with started(*words[: 3 + count]) as process:
            eventually(lambda: len(list(tmp_path.glob("d/.poetry-*.part"))) == count)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stderr) == (130, b"")
    assert not list(tmp_path.glob("d/*"))


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


# serve


@pytest.mark.parametrize(
    ("words", "stdin", "expected"),
    [
        ((), b"", [("sample.txt", SAMPLE)]),
        (("-",), SHORT, [("-", SHORT)]),
        (("{short}",), b"", [("short.txt", SHORT)]),
        (("{short}", "{long}"), b"", [("short.txt", SHORT), ("long.txt", LONG)]),
        (("-p", "0", "{short}", "-"), LONG, [("short.txt", SHORT), ("-", LONG)]),
        (("-l", "0", "-l", "tcp:0:interface=127.0.0.1"), b"", [("sample.txt", SAMPLE)] * 2),
        (("-l", "unix:{place}", "-l", "0", "-"), SHORT, [("-", SHORT)] * 2),
        (("--num-bytes", "20", "{short}"), b"", [("short.txt", SHORT)]),
        (("--delay", "0.001", "{short}"), b"", [("short.txt", SHORT)]),
    ],
)
def test_serve(
    poems: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    stdin: bytes,
    expected: list[tuple[str, bytes]],
) -> None:
    """Each poem is announced where it is served, and what follows `on` gets it."""
    names = {path.stem: str(path) for path in poems.iterdir()}
    given = [word.format(**names, place=tmp_path / "poem") for word in words]
    with running([*QUICK, *given], stdin=stdin, listeners=len(expected)) as server:
        for (name, _), address, line in zip(expected, server.addresses, server.lines, strict=True):
            assert line == f"Serving {name} on {address}"
        assert poetry("get", *server.addresses).stdout == b"".join(poem for _, poem in expected)
        assert server.stop() == 0
        assert server.stderr == ""


@pytest.mark.parametrize("interface", ["::1", "[::1]"])
def test_serve_ipv6(poems: Path, interface: str) -> None:
    """An IPv6 interface is announced in brackets, and may be given in them."""
    try:
        with closing(socket.create_server(("::1", 0), family=socket.AF_INET6)):
            pass
    except OSError:
        pytest.skip("needs IPv6")
    with running([*QUICK, "-i", interface, poems / "short.txt"]) as server:
        assert server.addresses[0].startswith("[::1]:")
        assert poetry("get", server.addresses[0]).stdout == SHORT


def test_serve_tls(certificates: Certificates, poems: Path) -> None:
    """A TLS listener is announced as `tls:`, and got by those who trust its certificate."""
    with running([*QUICK, "-l", certificates.listen("good"), poems / "long.txt"]) as server:
        [address] = server.addresses
        assert address.startswith("tls:127.0.0.1:")
        trusting = {"SSL_CERT_FILE": str(certificates.authority)}
        assert poetry("get", address, env=trusting).stdout == LONG
        assert "refused: TLS failed: " in error_of(poetry("get", address), 1)
    with running([*QUICK, "-l", certificates.listen("misnamed")]) as server:
        result = poetry("get", server.addresses[0], env=trusting)
        assert "refused: the server's certificate is for another name" in error_of(result, 1)


def test_a_reader_in_flight_and_a_second_signal() -> None:
    """A stop waits for who is in flight, and a second signal resets them at once."""
    command = [*SERVE, "--num-bytes", "10", "--delay", "3600", "--grace", "3600"]
    with running(command) as server:
        reader = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
        with reader:
            assert reader.recv(10) == SAMPLE[:10]
            server.signal(signal.SIGINT)

            def closed() -> bool:
                with socket.socket() as other:
                    return other.connect_ex(("127.0.0.1", server.port)) != 0

            eventually(closed)
            assert server.process.poll() is None
            server.signal(signal.SIGTERM)
            with pytest.raises(ConnectionResetError):
                reader.recv(10)
        assert server.wait() == 0
        assert "Traceback" not in server.stderr


def logged(server: Server, event: str) -> list[dict[str, Any]]:
    """The log lines of one kind, of a server with `--log-format json`."""
    lines = [json.loads(line) for line in server.stderr.splitlines(keepends=True) if "\n" in line]
    return [line for line in lines if line["event"] == event]


def test_reload(tmp_path: Path) -> None:
    """HUP reads the poem again; one that is empty or gone leaves the old one in place."""
    path = tmp_path / "poem.txt"
    path.write_bytes(b"old")
    with running([*SERVE, "--log-format", "json", path]) as server:
        path.write_bytes(b"new")
        server.signal(signal.SIGHUP)
        eventually(lambda: logged(server, "reloaded"))
        assert poetry("get", server.addresses[0]).stdout == b"new"
        path.write_bytes(b"")
        server.signal(signal.SIGHUP)
        eventually(lambda: logged(server, "reload_failed"))
        path.unlink()
        server.signal(signal.SIGHUP)
        eventually(lambda: len(logged(server, "reload_failed")) == 2)
        assert poetry("get", server.addresses[0]).stdout == b"new"
        assert server.stop() == 0
        [empty, gone] = logged(server, "reload_failed")
        assert str(path) in empty["message"]
        assert "empty" in empty["message"]
        assert "No such file or directory" in gone["message"]
        assert [line["level"] for line in (empty, gone)] == ["error", "error"]


@pytest.mark.parametrize(("level", "count"), [("debug", 1), ("info", 1), ("warn", 0)])
def test_log(poems: Path, level: str, count: int) -> None:
    """Each transfer is a line, of which `--log-format json` makes an object."""
    words = ("--log-format", "json", "--log-level", level)
    with running([*SERVE, *words, poems / "short.txt"]) as server:
        assert poetry("get", server.addresses[0]).returncode == 0
        assert server.stop() == 0
        transfers = logged(server, "transfer")
        assert len(transfers) == count
        for line in transfers:
            expected = {
                "outcome": "sent",
                "bytes": len(SHORT),
                "poem": "short.txt",
                "listener": server.addresses[0],
            }
            assert {key: line[key] for key in expected} == expected
            assert line["peer"].startswith("127.0.0.1:")


def test_text_log(poems: Path) -> None:
    """By default a transfer is a line of text."""
    with running([*SERVE, poems / "short.txt"]) as server:
        assert poetry("get", server.addresses[0]).returncode == 0
        assert server.stop() == 0
        [line] = server.stderr.splitlines()
        assert " info  sent short.txt 127.0.0.1:" in line
        assert f" {len(SHORT)} bytes in " in line


def test_metrics() -> None:
    """`--metrics` is announced after the poems, and counts their readers."""
    pytest.importorskip("prometheus_client", reason="needs twisted-poetry[metrics]")
    with running([*QUICK, "--metrics", "0"], listeners=2) as server:
        assert poetry("get", server.addresses[0]).stdout == SAMPLE
        assert server.lines[1] == f"Serving metrics on {server.addresses[1]}"
        with urllib.request.urlopen(f"http://{server.addresses[1]}/metrics", timeout=60) as page:
            assert b'poetry_poems_total{outcome="sent"} 1.0' in page.read()


def test_without_metrics(poems: Path) -> None:
    """Where prometheus-client is not installed, the error says what to install."""
    blocked = poems / "a directory" / "prometheus_client.py"
    blocked.write_text("raise ImportError('not here')\n")
    result = poetry("serve", "--metrics", "0", env={"PYTHONPATH": str(blocked.parent)})
    assert error_of(result, 2).startswith("metrics need twisted-poetry[metrics]: not here")


# Help, and what is not worth a process


HELPS: tuple[list[str], ...] = ([], ["serve"], ["get"])


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("command", HELPS)
def test_help(command: list[str], width: int) -> None:
    """Each help has examples, fits the terminal, and breaks no example and no option."""
    widest = CliRunner().invoke(cli, [*command, "--help"], terminal_width=1_000).output
    result = CliRunner().invoke(cli, [*command, "-h"], terminal_width=width)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= width
    _, _, examples = result.output.partition("Examples:\n\n")
    assert examples.startswith("  poetry ")
    assert examples.partition("\n\n")[0] in widest
    assert not [line for line in lines if line.endswith("-")]
    assert "[x" not in result.output
    assert "<" not in result.output


def test_no_command() -> None:
    """Without a command the help is shown, and it is a usage error."""
    result = CliRunner().invoke(cli, [])
    assert result.exit_code == 2
    assert result.output.startswith("Usage: ")


def test_version() -> None:
    """The version is the distribution's."""
    for word in ("-V", "--version"):
        result = CliRunner().invoke(cli, [word])
        assert result.output == f"twisted-poetry, version {version('twisted-poetry')}\n"
        assert result.exit_code == 0


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


@pytest.mark.parametrize("command", [POETRY, (Path(sys.executable).with_name("poetry"),)])
@pytest.mark.parametrize(
    ("loading", "words"),
    [
        ("click", ("get", "1")),
        ("twisted", ("get", "1")),
        ("tqdm", ("get", "--progress", "1")),
        ("twisted", ("serve",)),
    ],
)
def test_interrupted_while_it_is_loaded(
    tmp_path: Path, loading: str, command: Command, words: Command
) -> None:
    """An interrupt before all is imported is no traceback, wherever it comes."""
    interrupting = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / f"{loading}.py").write_text(interrupting)
    done = subprocess.run(
        [*command, *words],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


RUN = "from poetry.__main__ import main; main()"
LATE = f"import atexit, os, signal; atexit.register(os.kill, os.getpid(), signal.SIGINT); {RUN}"


def test_interrupted_when_it_is_done() -> None:
    """An interrupt while Python ends does not change how it went."""
    words = [sys.executable, "-c", LATE, "get", "unix:/no/such/socket"]
    result = subprocess.run(words, capture_output=True, timeout=PATIENCE, check=False)
    assert error_of(result, 1).startswith("unix:/no/such/socket: ")


def test_get_without_hangups(served: Server) -> None:
    """Where there is no SIGHUP, as on Windows, a poem is got all the same."""
    words = [sys.executable, "-c", f"import signal; del signal.SIGHUP; {RUN}", "get"]
    result = subprocess.run(
        [*words, served.addresses[0]], capture_output=True, timeout=PATIENCE, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, SHORT, b"")


def test_interrupted_before_it_runs() -> None:
    """An interrupt while the poem is read from standard input is no traceback, either."""
    with started("serve", "-", stdin=subprocess.PIPE) as process:
        reading = Path(f"/proc/{process.pid}/wchan")
        eventually(lambda: "pipe" in reading.read_text(encoding="ascii"))
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout, stderr.strip()) == (130, b"", b"")


def test_too_few_descriptors(in_process: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that could hardly do anything says what it takes."""
    monkeypatch.setattr("poetry.system.descriptors.raise_limit", lambda: 6)
    message = f"6 open files (ulimit -n) do not do: it takes {LEAST}"
    assert error_of(in_process("serve"), 1) == message


def test_out_of_descriptors(in_process: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A want of descriptors is not blamed on standard output."""

    def fail() -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("poetry.system.descriptors.raise_limit", fail)
    assert error_of(in_process("serve"), 1) == "Too many open files: raise the limit (ulimit -n)"
