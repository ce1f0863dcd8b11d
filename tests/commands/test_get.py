"""`poetry get`, as a user meets it: what it prints and writes, its errors and exit codes."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.certificates import Certificates
from tests.commands.tools import (
    LONG,
    QUICK,
    RUN,
    SHORT,
    accept,
    error_of,
    port_of,
    started,
    written,
)
from tests.faults.bad import black_hole
from tests.faults.readers import reset
from tests.processes import (
    PATIENCE,
    POETRY,
    SAMPLE,
    Server,
    eventually,
    limit_descriptors,
    poetry,
    run,
    running,
)


@pytest.mark.parametrize("order", [(0,), (1,), (0, 1), (1, 0, 0), (1, 1)])
def test_get_prints_in_order(served: Server, order: tuple[int, ...]) -> None:
    """Poems are printed byte for byte in the order asked for, the same one twice if asked."""
    result = poetry("get", *(served.addresses[index] for index in order))
    assert result.stdout == b"".join((SHORT, LONG)[index] for index in order)
    assert (result.returncode, result.stderr) == (0, b"")


def test_slow_first_poem_is_printed_first(served: Server, peer: socket.socket) -> None:
    """Later poems are fetched meanwhile, and wait for their turn."""
    with started("get", port_of(peer), *served.addresses) as process, accept(peer) as connection:
        connection.sendall(b"slow ")
        connection.sendall(b"but first\n")
        connection.close()
        stdout, _ = process.communicate(timeout=PATIENCE)
    assert stdout == b"slow but first\n" + SHORT + LONG
    assert process.returncode == 0


def test_failure_of_one_spares_the_others(served: Server, tmp_path: Path) -> None:
    """When one of several fails the others are printed, but do not make a file."""
    addresses = (served.addresses[0], "unix:/no/such/socket", served.addresses[1])
    result = poetry("get", *addresses)
    assert error_of(result, 1).startswith("unix:/no/such/socket: ")
    assert result.stdout == SHORT + LONG
    error_of(poetry("get", "-o", tmp_path / "poems.txt", *addresses), 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("order", [(0,), (0, 1)])
def test_output_file_has_all_poems(served: Server, tmp_path: Path, order: tuple[int, ...]) -> None:
    """With `-o` one file has all poems, in order, and keeps the mode it had."""
    path = tmp_path / "poems.txt"
    path.write_bytes(b"old")
    path.chmod(0o600)
    result = poetry("get", "-o", path, *(served.addresses[index] for index in order))
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    assert path.read_bytes() == b"".join((SHORT, LONG)[index] for index in order)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_output_to_a_pipe_and_a_device(served: Server) -> None:
    """`-o -`, `-o /dev/stdout` and `-o /dev/null` are written in place."""
    assert poetry("get", "-o", "-", served.addresses[0]).stdout == SHORT
    assert poetry("get", "-o", "/dev/stdout", served.addresses[0]).stdout == SHORT
    assert poetry("get", "-o", "/dev/null", served.addresses[0]).returncode == 0


@pytest.mark.parametrize("number", [4, 6])
@pytest.mark.parametrize("linked", [False, True])
def test_descriptor_that_was_not_given_is_an_error(
    served: Server, tmp_path: Path, number: int, *, linked: bool
) -> None:
    """A poem is not lost in what the command has opened for itself."""
    path = Path(f"/dev/fd/{number}")
    if linked:
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    result = poetry("get", "-o", path, served.addresses[0])
    assert error_of(result, 1) == f"{path}: Bad file descriptor"


@pytest.mark.parametrize(
    ("name", "numbers"), [("/dev/stdin", [0, 1]), ("/dev/stdout", [1]), ("/dev/stderr", [0, 2])]
)
def test_closed_stream_is_an_error(served: Server, name: str, numbers: list[int]) -> None:
    """A standard stream that is closed takes no poem, whatever has its number now."""

    def shut() -> None:
        for number in numbers:
            os.close(number)

    assert run([*POETRY, "get", "-o", name, served.addresses[0]], before=shut).returncode == 1


@pytest.mark.parametrize("kind", ["pipe", "device", "file"])
def test_output_open_for_reading_is_an_error(
    served: Server, tmp_path: Path, pipe: tuple[int, int], kind: str
) -> None:
    """A standard output that cannot be written to takes no poem."""
    (tmp_path / "file").touch()
    paths = {"pipe": f"/dev/fd/{pipe[0]}", "device": os.devnull, "file": str(tmp_path / "file")}
    with (
        Path(paths[kind]).open("rb") as output,
        started("get", served.addresses[0], stdout=output) as process,
    ):
        _, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stderr) == (1, b"Error: standard output: Bad file descriptor\n")


def test_bad_address_makes_no_directory(tmp_path: Path) -> None:
    """All words are checked before anything is made."""
    assert poetry("get", "-d", tmp_path / "new", "10000x").returncode == 2
    assert not list(tmp_path.iterdir())


def test_endless_authorities_are_none() -> None:
    """A file without end is read as far as authorities go."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); " + RUN
    words = [sys.executable, "-c", limit, "get", "--cacert", "/dev/zero", "tls:127.0.0.1:9"]
    assert error_of(run(words), 2).startswith("--cacert /dev/zero: no certificate is in it (PEM)")


@pytest.mark.parametrize("output", ["/dev/stdout", "log"])
def test_output_to_the_file_of_standard_output_appends(
    served: Server, tmp_path: Path, output: str
) -> None:
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


def test_directory_has_a_file_for_each_poem(served: Server, tmp_path: Path) -> None:
    """With `-d` each poem that arrives has a file named after its address."""
    directory = tmp_path / "new" / "poems"
    result = poetry("get", "-d", directory, *served.addresses, "unix:/no/such/socket")
    assert error_of(result, 1).startswith("unix:/no/such/socket: ")
    names = [address.replace(":", "_") + ".txt" for address in served.addresses]
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {
        names[0]: SHORT,
        names[1]: LONG,
    }


def test_poem_at_the_limit_with_the_digest_is_taken(served: Server) -> None:
    """A poem of exactly the limit and with the wanted digest, in any case, is taken."""
    digest = hashlib.sha256(SHORT).hexdigest().upper()
    words = ("--max-bytes", str(len(SHORT)), "--sha256", digest, "--timeout", "inf")
    done = poetry("get", *words, served.addresses[0])
    assert (done.returncode, done.stdout, done.stderr) == (0, SHORT, b"")


def test_error_of_a_digest_follows_its_poem(served: Server) -> None:
    """Where both go to one pipe, the poem comes first: it was wrong only after its last byte."""
    words = ["get", "--sha256", "0" * 64, served.addresses[0]]
    done = run(["sh", "-c", '"$@" 2>&1', "sh", *map(str, POETRY), *words])
    assert done.stdout.startswith(SHORT + b"Error: ")
    assert done.returncode == 1


def test_cacert_without_tls_is_a_usage_error(served: Server, certificates: Certificates) -> None:
    """An option that would verify nothing is refused, and not passed over."""
    words = ("get", "--cacert", certificates.authority, served.addresses[0])
    assert error_of(poetry(*words), 2).startswith("--cacert: no ADDRESS is over TLS")
    words = ("get", "--cacert", certificates.authority, "https://localhost:1")
    assert error_of(poetry(*words), 2).startswith("'https://localhost:1' is no address: write tls:")


def test_retry_starts_again(peer: socket.socket, tmp_path: Path) -> None:
    """With `--retries` a failure is a line, and tried again from the start."""
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


def test_retries_bridge_a_late_start(tmp_path: Path) -> None:
    """`--retries` bridges a server that comes up late."""
    place = tmp_path / "poem"
    with started("get", "--retries", "60", f"unix:{place}") as process:
        assert process.stderr is not None
        assert b"; retry 1 of 60 in " in process.stderr.readline()
        with running([*QUICK, "-l", f"unix:{place}"]):
            stdout, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout) == (0, SAMPLE)


def test_printed_bytes_prevent_a_retry(peer: socket.socket) -> None:
    """Bytes already on standard output cannot be taken back, so there is no retry."""
    with started("get", "--retries", "9", port_of(peer)) as process:
        with accept(peer) as connection:
            connection.sendall(SHORT)
            assert process.stdout is not None
            assert process.stdout.read(len(SHORT)) == SHORT
            reset(connection)
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
def test_each_failure_is_one_line(served: Server, words: str, message: str) -> None:
    """A failure is one line that names the address or the file, and 1."""
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
def test_empty_and_truncated_poems_are_errors(
    peer: socket.socket, tmp_path: Path, poem: bytes, message: str
) -> None:
    """A stream that ends before its first byte, or with a reset, is no poem."""
    with started("get", "-o", tmp_path / "poem.txt", port_of(peer)) as process:
        with accept(peer) as connection:
            connection.sendall(poem)
            if poem:
                assert eventually(lambda: written(tmp_path))
                reset(connection)
        _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert stderr.decode().startswith(f"Error: {port_of(peer)}: {message}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("retries", [0, 1])
def test_full_queue_of_a_unix_socket_is_named(tmp_path: Path, retries: int) -> None:
    """The error and the notes of retries say that the server's queue is full."""
    path = str(tmp_path / "poem")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        result = poetry("get", "--retries", str(retries), f"unix:{path}")
    full = f"unix:{path}: no connection: the server's queue is full"
    *notes, error = result.stderr.decode().splitlines()
    assert (result.returncode, error) == (1, f"Error: {full}")
    assert [note.partition("; retry ")[0] for note in notes] == [full] * retries


def test_end_during_the_handshake_is_one_line(peer: socket.socket) -> None:
    """A close_notify in the middle of a handshake is one plain line."""
    pytest.importorskip("OpenSSL", reason="needs twisted-poetry[tls]")
    address = f"tls:127.0.0.1:{port_of(peer)}"
    with started("get", address) as process, accept(peer) as connection:
        connection.recv(65536)
        connection.sendall(bytes.fromhex("15030300020100"))
        _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    line = f"Error: {address}: no connection: the server ended TLS before it was up\n"
    assert stderr.decode() == line


@pytest.mark.parametrize("form", ["tls:{}", "tls:{}:timeout=30", "ssl:{}"])
def test_cacert_trusts_its_authority_alone(
    certificates: Certificates, poems: Path, form: str
) -> None:
    """A server is trusted if one of the file's authorities has signed, and only then."""
    with running([*QUICK, "-l", certificates.listen("good"), poems / "short.txt"]) as server:
        address = form.format(server.addresses[0].removeprefix("tls:"))
        given = poetry("get", "--cacert", certificates.authority, address)
        other = poetry(
            *("get", "--cacert", certificates.path("untrusted"), address),
            env={"SSL_CERT_FILE": str(certificates.authority)},
        )
    if form == "tls:{}":
        assert (given.returncode, given.stdout) == (0, SHORT)
        assert "certificate verify failed" in error_of(other, 1)
    else:
        message = f"{address!r}: with --cacert, write tls:HOST:PORT"
        assert error_of(given, 2).startswith(message)


def test_cacert_without_a_certificate_is_a_usage_error(poems: Path, tmp_path: Path) -> None:
    """A file without a certificate, and one with a damaged one, are usage errors."""
    pytest.importorskip("OpenSSL", reason="needs twisted-poetry[tls]")
    damaged = tmp_path / "damaged.pem"
    damaged.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for path, reason in (
        (poems / "short.txt", "no certificate is in it (PEM)"),
        (damaged, "a certificate in it is damaged"),
    ):
        error = error_of(poetry("get", "--cacert", path, "1"), 2)
        assert error.startswith(f"--cacert {path}: {reason}")


def test_more_addresses_than_descriptors(served: Server) -> None:
    """A soft limit of descriptors is raised: 100 addresses fit where 64 are allowed."""
    address = served.addresses[0]
    result = poetry("get", *[address] * 100, before=partial(limit_descriptors, 64, 4096))
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == SHORT * 100


def test_too_few_descriptors_say_what_to_raise(served: Server) -> None:
    """Where the hard limit is too low, the error says what to raise."""
    address = served.addresses[0]
    result = poetry("get", *[address] * 100, before=partial(limit_descriptors, 64, 64))
    assert result.returncode == 1
    line = f"Error: {address}: no connection: Too many open files; raise the limit (ulimit -n)\n"
    assert line in result.stderr.decode()
    assert set(result.stdout) == set(SHORT)


def test_silent_server_times_out(peer: socket.socket) -> None:
    """A silent server times out, and the error says for how long nothing came."""
    error = error_of(poetry("get", "--timeout", "0.2", port_of(peer)), 1)
    hint = "; is it full, or does it speak TLS (tls:HOST:PORT), wait for its client to speak?"
    assert error == f"{port_of(peer)}: timed out: nothing for 0.2 s after 0 bytes{hint}"


def test_black_hole_times_out() -> None:
    """An address that does not answer times out."""
    with black_hole() as port:
        address = str(port)
        error = error_of(poetry("get", "--timeout", "0.2", address), 1)
    assert error == f"{address}: no connection in time: nothing answers there"


def test_unread_pipe_holds_the_sender_back(peer: socket.socket) -> None:
    """A pipe that is not read holds the sender back, and the poem is whole in the end."""
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


def test_unexpected_error_is_one_line() -> None:
    """An unexpected error is one line, too."""
    script = """
from poetry import cli
from poetry.download import fetch
async def fail(*_): raise RuntimeError("what\\nnobody foresaw")
fetch.Fetcher.fetch = fail
cli.main()
"""
    words = [sys.executable, "-c", script, "get", "1"]
    result = run(words)
    assert error_of(result, 1) == "unexpected: what nobody foresaw"
