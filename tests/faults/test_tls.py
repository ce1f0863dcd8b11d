"""Over TLS the promise is the same: close_notify after the last byte, and at no other time."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from OpenSSL import SSL

from tests.certificates import Certificates
from tests.conftest import PoemFile
from tests.faults.key_updates import key_updates, shake
from tests.faults.readers import (
    PAUSES,
    PLAIN,
    SPEAKS,
    STALLED,
    Crowd,
    Habit,
    poem,
    read_all,
    refuses,
)
from tests.processes import PATIENCE, SERVE, eventually, running

LONG = 10_000_000
SIZES = (3_000, 200_000, 1_000_000, LONG)
READERS = 20

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)

SLOW = ["--num-bytes", "1000", "--delay", "0.01"]

HABITS = {
    "plain": PLAIN,
    "speaks first": SPEAKS,
    "floods": Habit(says=bytes(2_000_000)),
    "tiny buffer": Habit(receive_buffer=4096, segment=536),
}


@contextmanager
def serving_sizes(
    poem_file: PoemFile, certificates: Certificates, sizes: Sequence[int], *options: str
) -> Iterator[dict[int, str]]:
    """A server of poems of these sizes, which logs no traceback; give the address by size."""
    listen = ["-l", certificates.listen("good")] * len(sizes)
    command = [*SERVE, *options, *listen, *map(poem_file, sizes)]
    with running(command, listeners=len(sizes)) as server:
        yield dict(zip(sizes, server.addresses, strict=True))
        assert "Traceback" not in server.stderr


@pytest.fixture(scope="module")
def addresses(poem_file: PoemFile, certificates: Certificates) -> Iterator[dict[int, str]]:
    """A server for readers that only read: the address by size."""
    with serving_sizes(poem_file, certificates, SIZES) as addresses:
        yield addresses


@pytest.fixture(scope="module")
def slow_addresses(poem_file: PoemFile, certificates: Certificates) -> Iterator[dict[int, str]]:
    """The same of a slow server."""
    with serving_sizes(poem_file, certificates, [30_000], *SLOW) as addresses:
        yield addresses


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("size", [3_000, 200_000, 1_000_000])
@pytest.mark.parametrize("habit", HABITS)
def test_every_reader_is_whole(
    addresses: dict[int, str],
    certificates: Certificates,
    habit: str,
    size: int,
    version: ssl.TLSVersion,
) -> None:
    """Over TLS too, whatever a reader says, it has the poem and a close_notify."""
    assert addresses[size].startswith("tls:127.0.0.1:")
    context = certificates.context(version)
    ends = read_all(addresses[size], poem(size), HABITS[habit], count=READERS, context=context)
    assert ends == {"whole": READERS}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)]
)
def test_killed_or_impatient_server_resets(
    poem_file: PoemFile, certificates: Certificates, number: int, code: int
) -> None:
    """A killed server and one whose grace runs out end TLS without close_notify."""
    command = [*SERVE, "--grace", "0.2", "-l", certificates.listen("good"), poem_file(LONG)]
    context = certificates.context()
    with (
        running(command) as server,
        Crowd(server.addresses[0], poem(LONG), PAUSES, count=50, context=context) as crowd,
    ):
        crowd.run(until=crowd.begun)
        server.signal(number)
        assert server.wait() == code
        crowd.resume()
        ends = crowd.run()
        print(dict(ends))
        assert ends == {"reset": 50}


def test_stop_serves_readers_in_flight(poem_file: PoemFile, certificates: Certificates) -> None:
    """A stop waits for TLS readers in flight."""
    context = certificates.context()
    with (
        running([*SERVE, "-l", certificates.listen("good"), poem_file(LONG)]) as server,
        Crowd(server.addresses[0], poem(LONG), PAUSES, count=READERS, context=context) as crowd,
    ):
        crowd.run(until=crowd.begun)
        server.signal(signal.SIGTERM)
        assert eventually(lambda: refuses(server.addresses[0]))
        crowd.resume()
        assert crowd.run() == {"whole": READERS}
        assert server.wait() == 0
        assert "Traceback" not in server.stderr


def test_idle_reader_is_reset(poem_file: PoemFile, certificates: Certificates) -> None:
    """A TLS reader that takes nothing is reset, and one that never begins its handshake."""
    command = [*SERVE, "--idle-timeout", "1", "-l", certificates.listen("good"), poem_file(LONG)]
    context = certificates.context()
    with (
        running(command) as server,
        Crowd(server.addresses[0], poem(LONG), PAUSES, count=5, context=context) as stopped,
        Crowd(server.addresses[0], poem(LONG), Habit(takes=0), count=5) as silent,
    ):
        stopped.run(until=stopped.begun)
        assert stopped.run() == {"reset": 5}
        ends = silent.run()
        assert ends["empty"] + ends["reset"] == 5
        assert "Traceback" not in server.stderr


@pytest.mark.machine
@pytest.mark.parametrize("size", [LONG, 10 * LONG])
def test_memory_of_stalled_readers(
    poem_file: PoemFile, certificates: Certificates, size: int
) -> None:
    """200 stalled TLS readers cost the server at most 200 kB each, however long the poem."""
    context = certificates.context()
    with running([*SERVE, "-l", certificates.listen("good"), poem_file(size)]) as server:
        read_all(server.addresses[0], poem(size), context=context)
        before = server.resident()
        with Crowd(server.addresses[0], poem(size), STALLED, count=200, context=context) as crowd:
            crowd.run(until=crowd.begun)
            assert len(crowd.received) == 200
            each = (server.resident() - before) / 200
            print(f"{each:.0f} bytes a reader of {size} bytes")
            assert each <= 200_000  # 138 to 178 kB in twelve runs on one machine


def end_early(
    address: str,
    version: ssl.TLSVersion,
    end: Callable[[SSL.Connection], object],
    poem: bytes,
) -> str:
    """End one's own side after the first bytes; give how the rest ended, in the words of `readers`.

    This needs pyOpenSSL: Python's own `ssl` cannot read on after it has sent a close_notify.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(PATIENCE), 0))
        reader = SSL.Connection(context, sock)
        reader.set_connect_state()
        received = reader.recv(65536)
        end(reader)
        try:
            while True:
                received += reader.recv(65536)
        except SSL.ZeroReturnError:
            return "whole" if received == poem else "truncated"
        except SSL.WantReadError:
            return "waiting"
        except SSL.Error:
            return "reset"


def half_close(reader: SSL.Connection) -> None:
    """End one's side of the TCP stream, and not that of TLS."""
    reader.sock_shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("end", [SSL.Connection.shutdown, half_close])
@pytest.mark.parametrize("size", [*SIZES, 30_000])
def test_early_end_of_the_reader_is_no_clean_end(
    request: pytest.FixtureRequest,
    size: int,
    end: Callable[[SSL.Connection], object],
    version: ssl.TLSVersion,
) -> None:
    """A reader that ends its own side in the middle never has a part with a clean end."""
    server = "addresses" if size in SIZES else "slow_addresses"
    address = request.getfixturevalue(server)[size]
    ends = Counter(end_early(address, version, end, poem(size)) for _ in range(READERS))
    print(dict(ends))
    assert set(ends) <= {"whole", "reset"}


@pytest.mark.machine
def test_flood_of_key_updates_costs_no_memory(
    poem_file: PoemFile, certificates: Certificates
) -> None:
    """A reader that has each of its KeyUpdates answered, and takes no answer, is read no further:
    it costs the server no more memory, and others are served.
    """
    context = certificates.context()
    with running([*SERVE, "-l", certificates.listen("good"), poem_file(LONG)]) as server:
        read_all(server.addresses[0], poem(LONG), context=context)
        before = server.resident()
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock:
            updates = key_updates(shake(sock, certificates.context()), 150_000)  # of 27 bytes each
            sock.setblocking(False)
            for _ in range(20):
                with contextlib.suppress(BlockingIOError):
                    updates = updates[sock.send(updates) :]
                ends = read_all(server.addresses[0], poem(LONG), context=context)
                assert ends == {"whole": 1}
            each = server.resident() - before
            assert each <= 2_000_000


def plain_bytes(port: int) -> None:
    """Speak HTTP to a TLS port."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(65536):
                pass


def distrust(port: int) -> None:
    """Refuse the server's certificate."""
    context = ssl.create_default_context()
    with (
        socket.create_connection(("127.0.0.1", port), PATIENCE) as sock,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        context.wrap_socket(sock, server_hostname="127.0.0.1")


def hang_up(port: int) -> None:
    """Connect, and close before the handshake."""
    socket.create_connection(("127.0.0.1", port), PATIENCE).close()


def end_tls(port: int) -> None:
    """Send a close_notify in the middle of the handshake."""
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="a.test")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.sendall(outgoing.read() + b"\x15\x03\x03\x00\x02\x01\x00")
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(65536):
                pass


@pytest.mark.parametrize("disturb", [plain_bytes, distrust, hang_up, end_tls])
def test_failed_handshake_is_a_log_line(
    poem_file: PoemFile, certificates: Certificates, disturb: Callable[[int], None]
) -> None:
    """A peer with which TLS does not come up costs a log line, and no more."""
    context = certificates.context()
    command = [*SERVE, "--log-level", "debug", "-l", certificates.listen("good")]
    with running([*command, poem_file(LONG)]) as server:
        idle = server.sockets()
        before = len(server.stderr)
        disturb(server.port)
        assert eventually(lambda: server.sockets() == idle)
        assert eventually(lambda: server.stderr[before:].endswith("\n"), 5)
        print(server.stderr[before:])
        assert server.stderr[before:].count("\n") == 1
        assert "Traceback" not in server.stderr
        ends = read_all(server.addresses[0], poem(LONG), context=context)
        assert ends == {"whole": 1}
        assert server.stop() == 0
