"""Whatever a server does, `poetry get` has the whole poem or says that it has not."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, clientFromString

from poetry import get_poem, send_poem
from poetry.download import fetch
from poetry.download.fetch import DownloadOptions, Fetcher
from tests.certificates import Certificates
from tests.faults.bad import Handler, alerts, black_hole, closed_port, reset, serving, stall, whole
from tests.faults.conftest import NAIVE
from tests.faults.key_updates import key_updates, shake
from tests.faults.readers import poem
from tests.loop import reactor, until, wait, wait_error
from tests.processes import PATIENCE, POETRY, Command, eventually, need, poetry, run

POEM = poem(10_000_000)
PART = POEM[:6_000_000]
"""More than the kernels hold (tcp_wmem's 4 MiB, and the window): the client has read some of it."""

OLD = b"an old poem\n"
MEGABYTE = 1_000_000
GIGABYTE = 1_000 * MEGABYTE


def resets(sock: socket.socket) -> None:
    sock.sendall(PART)
    reset(sock)


def resets_first(sock: socket.socket) -> None:
    reset(sock)


def stalls(sock: socket.socket) -> None:
    sock.sendall(PART)
    stall(sock)


def part(sock: socket.socket) -> None:
    sock.sendall(PART)


def drips(sock: socket.socket) -> None:
    for byte in POEM:
        sock.sendall(bytes([byte]))
        with contextlib.suppress(TimeoutError):
            sock.settimeout(0.05)
            if not sock.recv(1):
                return


def nothing(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)
    stall(sock)


sends = partial(whole, poem=POEM)

SHORTLY = ["--timeout", "0.5"]
"""For servers that time out anyway; where bytes have to come, a busy machine may miss it."""

FAILURES: dict[str, tuple[Handler, list[str], str]] = {
    "reset": (resets, [], "truncated"),
    "reset at once": (resets_first, [], "truncated|reset by peer"),
    "stall at once": (stall, SHORTLY, "timed out|in time"),
    "stall": (stalls, SHORTLY, "timed out"),
    "empty": (nothing, [], "empty"),
    "too long": (sends, ["--max-bytes", "150000"], "too long"),
    "too long at once": (sends, ["--max-bytes", "1"], "too long"),
    "drip": (drips, ["--max-time", "1"], "timed out"),
    "wrong digest": (sends, ["--sha256", "0" * 64], "digest"),
}

TLS_FAILURES: dict[str, tuple[Handler, list[str], str]] = {
    "no close_notify": (part, [], "truncated"),
    "no close_notify after all": (lambda sock: sock.sendall(POEM), [], "truncated"),
    **{name: FAILURES[name] for name in ("reset", "stall at once", "stall")},
}

UNREACHABLE = {
    "refused": (closed_port, "127.0.0.1:{port}", [], "refused"),
    "black hole": (black_hole, "127.0.0.1:{port}", SHORTLY, "in time"),
    "unknown name": (closed_port, "no-such-name.invalid:{port}", [], "no-such-name.invalid"),
}

CERTIFICATES = {
    "untrusted": ("verify", "verify failed"),
    "misnamed": ("another name", "Mismatch"),
    "nameless": ("subjectAltName", "subjectAltName"),
    "mail": ("subjectAltName", "subjectAltName"),
    "star": ("unusable", "unusable"),
}
"""What the command says of them, and what the error of the library does."""


def names(directory: Path) -> list[str]:
    """What is in a directory."""
    return [path.name for path in directory.iterdir()]


def assert_error(done: subprocess.CompletedProcess[bytes], address: str, pattern: str) -> None:
    """Check for one line on standard error that names the address, and exit code 1."""
    print(done.stderr.decode())
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    before, found, after = done.stderr.decode().partition(address)
    assert found
    assert re.search(pattern, before + after, re.IGNORECASE)


def assert_fails(address: str, options: list[str], pattern: str, directory: Path) -> None:
    """Check that a download fails, leaves nothing behind, and an old file unchanged."""
    file = directory / "poem.txt"
    file.write_bytes(OLD)
    done = poetry("get", *options, "-o", file, address)
    assert_error(done, address, pattern)
    assert done.stdout == b""
    assert names(directory) == ["poem.txt"]
    assert file.read_bytes() == OLD


@pytest.mark.parametrize("failure", FAILURES)
def test_each_bad_server_has_its_error(tmp_path: Path, failure: str) -> None:
    """Each way to fail has its own error, and leaves an old file unchanged."""
    handler, options, pattern = FAILURES[failure]
    with serving(handler) as port:
        assert_fails(f"127.0.0.1:{port}", options, pattern, tmp_path)


@pytest.mark.parametrize("failure", ["reset", "too long", "wrong digest"])
def test_bad_server_to_standard_output_is_an_error(failure: str) -> None:
    """A download that fails after its first bytes were printed is an error, too."""
    handler, options, pattern = FAILURES[failure]
    with serving(handler) as port:
        done = poetry("get", *options, str(port))
    assert_error(done, str(port), pattern)
    assert POEM.startswith(done.stdout)


@pytest.mark.parametrize("failure", TLS_FAILURES)
def test_tls_without_close_notify_is_truncated(
    certificates: Certificates, tmp_path: Path, failure: str
) -> None:
    """Over TLS a poem without close_notify is truncated, however much of it came."""
    handler, options, pattern = TLS_FAILURES[failure]
    with serving(handler, certificates.server_context("good")) as port:
        assert_fails(certificates.trusting(port), options, pattern, tmp_path)


@pytest.mark.parametrize(
    ("handler", "options", "pattern"),
    [
        (stall, SHORTLY, "timed out|in time"),
        (sends, [], "TLS"),
        (nothing, [], "TLS|empty|truncated"),
    ],
)
def test_failed_handshake_is_an_error(
    certificates: Certificates, tmp_path: Path, handler: Handler, options: list[str], pattern: str
) -> None:
    """A server with which TLS does not come up is an error within the timeout."""
    with serving(handler) as port:
        assert_fails(certificates.trusting(port), options, pattern, tmp_path)


@pytest.mark.parametrize("failure", UNREACHABLE)
def test_unreachable_server_is_an_error(tmp_path: Path, failure: str) -> None:
    """A server that cannot be reached is an error within the timeout."""
    unreachable, address, options, pattern = UNREACHABLE[failure]
    with unreachable() as port:
        assert_fails(address.format(port=port), options, pattern, tmp_path)


@pytest.mark.parametrize("certificate", CERTIFICATES)
def test_wrong_certificate_is_refused(
    certificates: Certificates, tmp_path: Path, certificate: str
) -> None:
    """An untrusted certificate, a wrong name and one that names no host are refused."""
    with serving(sends, certificates.server_context(certificate)) as port:
        assert_fails(certificates.trusting(port), [], CERTIFICATES[certificate][0], tmp_path)


@pytest.mark.parametrize("certificate", CERTIFICATES)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_get_poem_refuses_a_wrong_certificate(
    certificates: Certificates, certificate: str, host: str
) -> None:
    """The library refuses them as well, whether the server has an address or a name."""
    with serving(sends, certificates.server_context(certificate)) as port:
        address = certificates.trusting(port, host)
        error = wait_error(get_poem(clientFromString(reactor, address)))
        until(lambda: not reactor.getDelayedCalls())  # until the connection is closed
    assert re.search(CERTIFICATES[certificate][1], repr(error))


@pytest.mark.parametrize("certificate", CERTIFICATES)
def test_send_poem_refuses_a_wrong_certificate(
    certificates: Certificates, certificate: str
) -> None:
    """No byte of a poem goes to a server that proves no name."""
    received: list[bytes] = []

    def receives(connection: socket.socket) -> None:
        with suppress(OSError):
            received.append(connection.recv(1))

    with serving(receives, certificates.server_context(certificate)) as port:
        endpoint = clientFromString(reactor, certificates.trusting(port))
        error = wait_error(send_poem(endpoint, POEM))
        until(lambda: not reactor.getDelayedCalls())  # until the connection is closed
    assert re.search(CERTIFICATES[certificate][1], repr(error))
    assert received in ([], [b""])


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_fatal_alert_is_truncated(
    certificates: Certificates, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """A server that ends TLS with a fatal alert in the middle has not sent a poem."""
    context = certificates.server_context("good")
    context.minimum_version = context.maximum_version = version
    with serving(partial(alerts, context=context, part=POEM[:10_000])) as port:
        assert_fails(certificates.trusting(port), [], "truncated", tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_right_certificate_is_accepted(certificates: Certificates, host: str) -> None:
    """A trusted certificate of the right name brings the poem."""
    with serving(sends, certificates.server_context("good")) as port:
        done = poetry("get", certificates.trusting(port, host))
    assert (done.returncode, done.stderr, done.stdout) == (0, b"", POEM)


@pytest.mark.evidence
def test_naive_client_takes_a_part_for_the_whole() -> None:
    """The tutorial's client takes a part that ends in a reset, or nothing at all, for a poem."""
    for handler in (resets, nothing):
        with serving(handler) as port:
            done = run([*NAIVE, "get", str(port)])
        print(f"naive: {len(done.stdout)} bytes, exit {done.returncode}")
        assert done.returncode == 0
        assert done.stdout != POEM


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=1m tmpfs "$0" || exit 77
"$@"
code=$?
ls -A "$0"
exit $code
"""


def test_full_disk_is_one_line(tmp_path: Path) -> None:
    """A disk that fills up is one line and exit code 1, and no leftover."""
    unshare = need("unshare")
    file = tmp_path / "poem.txt"
    with serving(partial(whole, poem=poem(10 * MEGABYTE))) as port:
        command = [*POETRY, "get", "-o", str(file), str(port)]
        done = run([unshare, "-rm", "sh", "-c", ON_A_SMALL_DISK, tmp_path, *command])
    if done.returncode == 77 or b"unshare" in done.stderr:
        pytest.skip(f"no mounts of one's own here: {done.stderr.decode()}")
    assert_error(done, str(file), "No space left")
    assert done.stdout == b""


@pytest.mark.parametrize("directory", ["/no-such-directory", "/sys", "/dev/null"])
def test_unwritable_directory_is_one_line(directory: str) -> None:
    """A directory that cannot be written to is one line that names the file, and exit code 1."""
    file = f"{directory}/poem.txt"
    with serving(sends) as port:
        assert_error(poetry("get", "-o", file, str(port)), file, ".")


def test_paused_output_does_not_time_the_server_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO whose reader pauses for longer than the timeout gets the poem whole in the end."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    complaints: list[str] = []
    options = DownloadOptions(
        timeout=5, max_time=None, max_bytes=None, retries=0, sha256=None, text_only=False
    )
    fetcher = Fetcher(reactor, options, str, str, complaints.append)
    received = bytearray()

    def read() -> bool:
        with contextlib.suppress(BlockingIOError):
            received.extend(os.read(reader, MEGABYTE))
        return done.called and len(received) >= len(POEM)

    with serving(sends) as port:
        source = fetch.Source("address", TCP4ClientEndpoint(reactor, "127.0.0.1", port))
        done = Deferred.fromCoroutine(fetcher.fetch([source], str(fifo)))
        until(lambda: select.select([reader], [], [], 0)[0] and not reactor.getDelayedCalls())
        seconds = reactor.seconds
        monkeypatch.setattr(reactor, "seconds", lambda: seconds() + 3600)
        reactor.iterate(0)
        assert not done.called
        until(read)
    os.close(reader)
    assert received == POEM
    assert wait(done)
    assert complaints == []


@pytest.mark.parametrize("options", [[], ["-o", "{file}"]])
def test_unusable_address_is_its_own_error(tmp_path: Path, options: list[str]) -> None:
    """An error of an address is not blamed on the file, and never passed over."""
    address = "[fe80::1%nosuch]:10000"
    words = [word.format(file=tmp_path / "poem.txt") for word in options]
    assert_error(poetry("get", *words, address), address, ".")
    assert names(tmp_path) == []


class Source:
    """Sends `size` bytes in a row, and counts the bytes that have left."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.sent = 0

    def __call__(self, sock: socket.socket) -> None:
        block = poem(MEGABYTE)
        while self.sent < self.size:
            sock.sendall(block)
            self.sent += len(block)
        sock.shutdown(socket.SHUT_WR)
        stall(sock)


CENSUS = (sys.executable, str(Path(__file__).with_name("census.py")))


@contextmanager
def getting(report: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `poetry get` with a report of its peak of memory; the block reads its output."""
    command = [*CENSUS, "get", *map(str, arguments)]
    environment = {**os.environ, "CENSUS": str(report)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            yield process
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def figures(report: Path) -> tuple[float, float]:
    """Peak memory in bytes, and processor time in seconds."""
    written = json.loads(report.read_text(encoding="utf-8"))
    return written["peak"], written["seconds"]


def to_file(size: int, directory: Path) -> tuple[float, float]:
    """The figures of a download of `size` bytes to a file."""
    file, report = directory / "poem.txt", directory / "report.json"
    with serving(Source(size)) as port, getting(report, "-o", file, str(port)):
        pass
    assert file.stat().st_size == size
    file.unlink()
    return figures(report)


@pytest.mark.machine
def test_download_to_a_file_is_linear_with_flat_memory(tmp_path: Path) -> None:
    """1 GB to a file takes as much memory as 1 MB, and time in proportion."""
    start, _ = to_file(MEGABYTE, tmp_path)
    tenth_peak, tenth_seconds = to_file(GIGABYTE // 10, tmp_path)
    peak, seconds = to_file(GIGABYTE, tmp_path)
    print(f"1 GB: {seconds:.2f} s of processor time, {(peak - start) / 1e6:.1f} MB over the start;")
    print(f"0.1 GB: {tenth_seconds:.2f} s, {(tenth_peak - start) / 1e6:.1f} MB")
    assert peak - start <= 32 * MEGABYTE
    assert seconds <= 15 * tenth_seconds


def wants_new_keys(sock: socket.socket, context: ssl.SSLContext, updates: int) -> None:
    """Send so many KeyUpdates and no poem, and read no answer until the client goes."""
    with contextlib.suppress(ConnectionResetError):
        sock.sendall(key_updates(shake(sock, context), updates))
    gone = select.poll()
    gone.register(sock, select.POLLRDHUP)
    gone.poll(PATIENCE * 1000)


@pytest.mark.machine
def test_flood_of_key_updates_costs_no_memory(certificates: Certificates, tmp_path: Path) -> None:
    """A server that has each of its KeyUpdates answered, and takes no answer, costs no memory, and
    only the time of a server that is silent.
    """
    peaks = []
    for updates in (1, 150_000):  # of 27 bytes each
        handler = partial(wants_new_keys, context=certificates.server_context("good"))
        report = tmp_path / f"{updates}.json"
        with serving(partial(handler, updates=updates)) as port:
            done = run(
                [*CENSUS, "get", "--timeout", "5", certificates.trusting(port)],
                env={"CENSUS": str(report)},
            )
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"timed out: nothing for 5 s after 0 bytes" in done.stderr
        peaks.append(figures(report)[0])
    assert peaks[1] - peaks[0] <= MEGABYTE


@pytest.mark.machine
def test_download_to_an_unread_pipe_takes_flat_memory(tmp_path: Path) -> None:
    """A pipe that is not read holds the server up, and costs no memory."""
    report = tmp_path / "report.json"
    start, _ = to_file(MEGABYTE, tmp_path)
    source = Source(GIGABYTE)
    looks = [-1]

    def held_up() -> bool:
        """Whether no byte has left in a while."""
        looks.append(source.sent)
        return source.sent > 0 and len(set(looks[-10:])) == 1

    with serving(source) as port, getting(report, str(port)) as process:
        assert process.stdout is not None
        assert eventually(held_up)
        held = source.sent
        received = 0
        while data := os.read(process.stdout.fileno(), MEGABYTE):
            received += len(data)
    peak, seconds = figures(report)
    print(f"held up at {held} bytes; {(peak - start) / 1e6:.1f} MB over the start, {seconds:.2f} s")
    assert held < GIGABYTE // 2
    assert received == GIGABYTE
    assert peak - start <= 32 * MEGABYTE


LIBRARY = """
import sys
from twisted.internet import task
from twisted.internet.endpoints import TCP4ClientEndpoint
from poetry import get_poem, send_poem

async def main(reactor, port, size):
    poem = await get_poem(TCP4ClientEndpoint(reactor, "127.0.0.1", int(port)))
    assert len(poem) == int(size)

task.react(lambda *arguments: main(*arguments), sys.argv[1:])
"""


def seconds_of(command: Command) -> float:
    """Processor time of a command, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, timeout=PATIENCE, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def seconds_to_get(command: Command, size: int) -> float:
    """Processor time to fetch a poem with a program that is given its port and its size."""
    with serving(Source(size)) as port:
        return seconds_of((*command, str(port), str(size)))


@pytest.mark.machine
def test_get_poem_is_linear() -> None:
    """The library's `get_poem` takes time in proportion to the poem."""
    tenth, seconds = (
        seconds_to_get((sys.executable, "-c", LIBRARY), size * MEGABYTE) for size in (20, 200)
    )
    print(f"200 MB: {seconds:.2f} s of processor time; 20 MB: {tenth:.2f} s")
    assert seconds <= 15 * tenth


@pytest.mark.machine
@pytest.mark.evidence
def test_naive_client_is_quadratic() -> None:
    """The tutorial's client adds bytes to bytes: quadratic, and soon several times dearer."""
    size = 25 * MEGABYTE
    naive, ours = (
        seconds_to_get(command, size)
        for command in ((*NAIVE, "get"), (sys.executable, "-c", LIBRARY))
    )
    print(f"25 MB: naive {naive:.2f} s of processor time, get_poem {ours:.2f} s")
    assert naive > 2 * ours


def test_many_slow_servers_are_fetched_at_once() -> None:
    """100 servers, of which none ends before all have begun, are fetched at the same time."""
    barrier = threading.Barrier(100)

    def slow(sock: socket.socket, text: bytes) -> None:
        sock.sendall(text[:10])
        barrier.wait(PATIENCE)
        whole(sock, text[10:])

    poems = [poem(1_000 + number) for number in range(100)]
    with contextlib.ExitStack() as stack:
        handlers = [partial(slow, text=text) for text in poems]
        ports = [str(stack.enter_context(serving(handler))) for handler in handlers]
        done = poetry("get", *ports)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"".join(poems)


class Flaky:
    """Fails as `handler` does for the first `failures` clients; then sends the poem."""

    def __init__(self, handler: Handler, failures: int) -> None:
        self.handler = handler
        self.failures = failures
        self.visits = 0

    def __call__(self, sock: socket.socket) -> None:
        self.visits += 1
        (self.handler if self.visits <= self.failures else sends)(sock)


RETRIED = {
    "to a file": (resets, ["-o", "{file}"], b""),
    "stalled, to a file": (stalls, ["--timeout", "2", "-o", "{file}"], b""),
    "nothing written": (resets_first, [], POEM),
    "nothing written to a device": (resets_first, ["-o", "/dev/null"], b""),
    "empty": (nothing, [], POEM),
}


@pytest.mark.parametrize("case", RETRIED)
def test_retry_starts_again(tmp_path: Path, case: str) -> None:
    """A download is tried again before its first output or to a file, with a line."""
    handler, options, expected = RETRIED[case]
    file = tmp_path / "poem.txt"
    flaky = Flaky(handler, 1)
    words = [option.format(file=file) for option in options]
    with serving(flaky) as port:
        done = poetry("get", "--retries", "1", *words, str(port))
    print(done.stderr.decode())
    assert done.returncode == 0
    assert done.stdout == expected
    assert done.stderr.count(b"\n") == 1
    assert flaky.visits == 2
    if str(file) in words:
        assert file.read_bytes() == POEM
    assert len(names(tmp_path)) == (str(file) in words)


@pytest.mark.parametrize("options", [[], ["-o", "/dev/null"]])
def test_output_prevents_a_retry(options: list[str]) -> None:
    """A download whose output cannot be taken back is not tried again."""
    flaky = Flaky(resets, 1)
    with serving(flaky) as port:
        done = poetry("get", "--retries", "5", *options, str(port))
        assert_error(done, str(port), "truncated")
    assert flaky.visits == 1
    assert POEM.startswith(done.stdout)
