"""Socket options and queues."""

from __future__ import annotations

import errno
import os
import socket
import sys
from contextlib import ExitStack
from time import sleep
from types import SimpleNamespace

import pytest

from poetry.system import features
from poetry.system.features import EPOLL, fcntl, termios
from poetry.wire import kernel
from poetry.wire.kernel import acknowledged, unacknowledged
from poetry.wire.pages import LARGE, collapse
from tests.ends import reset, tcp_pair
from tests.loop import until


@pytest.mark.parametrize("permitted", [False, True])
def test_close_is_abortive_or_graceful(*, permitted: bool) -> None:
    """A close can be made abortive and graceful again until the socket is closed."""
    with tcp_pair() as (reader, sender):
        sender.sendall(b"abc")
        kernel.make_close_abortive(sender)
        if permitted:
            kernel.make_close_graceful(sender)
        sender.close()
        assert reader.recv(3) == b"abc"
        if permitted:
            assert reader.recv(1) == b""
        else:
            with pytest.raises(ConnectionResetError):
                reader.recv(1)


def test_unacknowledged_bytes_are_counted() -> None:
    """Unacknowledged bytes are counted, and are none once the peer's kernel has them."""
    with tcp_pair() as (reader, sender):
        sender.setblocking(False)
        sent = sender.send(bytes(50_000_000))
        assert 0 < unacknowledged(sender) <= sent
        received = 0
        while received < sent:
            received += len(reader.recv(1 << 20))
        until(lambda: unacknowledged(sender) == 0)


def test_acknowledged_bytes_are_counted() -> None:
    """Of a TCP connection, and not of a Unix socket, the kernel counts what the peer has."""
    with tcp_pair() as (one, other):
        before = acknowledged(one)
        one.sendall(b"poem")
        until(lambda: not unacknowledged(one))
        assert before is not None
        assert acknowledged(one) == before + 4
        del other
    with ExitStack() as stack:
        ends = [stack.enter_context(end) for end in socket.socketpair()]
        assert acknowledged(ends[0]) is None


def test_unacknowledged_bytes_are_none_where_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel does not say how much is queued, the count is 0."""

    def refuse(*_: object) -> bytes:
        raise OSError(25, "Inappropriate ioctl for device")

    monkeypatch.setattr("fcntl.ioctl", refuse)
    with socket.socket() as handle:
        assert unacknowledged(handle) == 0


def test_unix_socket_has_no_abortive_close() -> None:
    """A Unix socket stays as it is."""
    sender, reader = socket.socketpair()
    with sender, reader:
        kernel.reset(sender)
        sender.sendall(b"abc")
        assert reader.recv(3) == b"abc"


def test_refused_socket_option_is_ignored() -> None:
    """On macOS a socket with both ends shut down takes no option; here a closed one stands in."""
    with tcp_pair() as (_, sender):
        sender.close()
        kernel.make_close_abortive(sender)
        kernel.make_close_graceful(sender)


def test_unread_input_is_discarded_before_a_close() -> None:
    """After its input is discarded, however much, a close is an end and no reset."""
    with tcp_pair() as (reader, sender):
        reader.sendall(bytes(100_000))
        until(lambda: readable(sender) == 100_000)
        sender.setblocking(False)
        kernel.discard(sender)
        assert readable(sender) == 0
        kernel.discard(sender)
        sender.close()
        assert reader.recv(1) == b""


def test_discarding_input_is_bounded() -> None:
    """A flood ends at the size of a receive buffer."""
    asked: list[int] = []

    def recv_into(into: bytearray, *_: object) -> int:
        asked.append(len(into))
        return len(into)

    kernel.discard(SimpleNamespace(recv_into=recv_into))  # type: ignore[arg-type]
    assert sum(asked) == 6 * 1024 * 1024


def readable(handle: socket.socket) -> int:
    """Bytes that have come and are not read."""
    return int.from_bytes(fcntl.ioctl(handle.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.skipif(not EPOLL, reason="asked of Linux alone")
def test_accept_queue_is_counted() -> None:
    """The accept queue has the connections that are made and not accepted."""
    with socket.create_server(("127.0.0.1", 0), backlog=5) as server, ExitStack() as stack:
        assert kernel.accept_queue(server) == 0
        for count in range(1, 4):
            stack.enter_context(socket.create_connection(server.getsockname(), 20))
            while kernel.accept_queue(server) < count:
                sleep(0)
        stack.enter_context(server.accept()[0])
        assert kernel.accept_queue(server) == 2


@pytest.mark.parametrize("error", [ImportError, OSError])
def test_reset_without_ctypes_fails(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python without ctypes, or linked statically, has no reset but an abortive close."""

    def refuse(_: object) -> None:
        raise error

    features.c_library.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", refuse)
    with tcp_pair() as (_, sender):
        assert not kernel.reset(sender)
    assert not collapse(-1, 2 * LARGE)
    features.c_library.cache_clear()


def test_unix_reader_that_closes_while_it_is_looked_at_has_not_got_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its end empties the queue and leaves an error: the error is asked for last."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.send(b"poem")

        def close_meanwhile(_: object) -> int:
            theirs.close()
            return 0

        monkeypatch.setattr(kernel, "unacknowledged", close_meanwhile)
        with pytest.raises(ConnectionResetError):
            kernel.is_acknowledged(ours)


def test_end_of_the_peer_is_seen_without_reading() -> None:
    """An end or a reset is seen without reading; silence is no end."""
    with tcp_pair() as (reader, sender):
        assert not kernel.peer_has_ended(sender)
        reader.close()
        until(lambda: kernel.peer_has_ended(sender))
    with socket.socket() as unconnected, pytest.raises(OSError, match="not connected"):
        kernel.peer_has_ended(unconnected)


def test_acknowledgement_survives_an_unreachable_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that TCP survives is none until the kernel gives the connection up."""
    with tcp_pair() as (reader, sender):
        assert kernel.is_acknowledged(sender)
        soft = SimpleNamespace(
            getsockopt=lambda level, option, *size: (
                sender.getsockopt(level, option, *size) if size else errno.EHOSTUNREACH
            ),
            fileno=sender.fileno,
        )
        monkeypatch.setattr(kernel, "unacknowledged", lambda _: 1)
        assert not kernel.is_acknowledged(soft)  # type: ignore[arg-type]
        reset(reader)
        until(lambda: kernel.has_hung_up(sender))
        with pytest.raises(OSError, match=os.strerror(errno.EHOSTUNREACH)):
            kernel.is_acknowledged(soft)  # type: ignore[arg-type]
        with pytest.raises(ConnectionResetError):
            kernel.is_acknowledged(sender)
        with pytest.raises(ConnectionResetError):  # which the call before has taken from the socket
            kernel.is_acknowledged(sender)


def test_closing_of_a_unix_socket_is_not_told() -> None:
    """Only TCP tells that the kernel has given a connection up."""
    ours, other = socket.socketpair()
    with ours, other:
        ours.sendall(b"unread")
        assert not kernel.is_acknowledged(ours)
