"""Sockets: the kernel takes a part at once, and the rest as it has room."""

from __future__ import annotations

import errno
import socket
import struct
import subprocess
import sys
from contextlib import ExitStack, suppress

import pytest

from poetry.wire.layers import handle_of
from poetry.wire.outgoing import SHORT
from tests.ends import (
    LONG,
    Server,
    ended_with_reset,
    listening,
    queued,
    reader,
)
from tests.loop import drain, turn_until_still, until


@pytest.mark.parametrize(
    ("size", "ended"), [(1, True), (SHORT, True), (SHORT + 1, True), (len(LONG), False)]
)
def test_poem_the_kernel_takes_at_once_has_no_producer(size: int, *, ended: bool) -> None:
    """A poem that the kernel takes at once is ended at once, without a producer for the rest."""
    server = Server(LONG[:size])
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        assert protocol.outgoing is not None
        assert protocol.outgoing.ended is ended
        assert (protocol.transport.producer is None) is ended
        assert drain(connection) == LONG[:size]


def test_data_and_end_are_one_packet() -> None:
    """The reader of a short poem is woken once."""
    server = Server(b"short")
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        until(lambda: not queued(protocol))
        info = handle_of(protocol.transport).getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)  # type: ignore[union-attr]
        assert struct.unpack_from("=I", info, DATA_SEGS_OUT)[0] == 1
        assert drain(connection) == b"short"


KILLED = """
import os, signal, sys
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from poetry import PoetryServerFactory, PoetryService
from poetry.serving import accepting
from poetry.wire.poem import Poem

def send(self, to, offset, limit, flags=0):
    to.send(self.view[offset : offset + int(sys.argv[2])])
    os.kill(os.getpid(), signal.SIGKILL)

def send_at_once(handle, poem):
    return 0 if sys.argv[1] == "full" else send(poem, handle, 0, len(poem.data))

Poem.send = send
accepting.send_at_once = send_at_once
factory = PoetryServerFactory(bytes(int(sys.argv[3])))
if sys.argv[1] != "bare factory":
    service = PoetryService([(TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"), factory)])
    service.startService()
    port = service.ports[0]
else:
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
print(port.getHost().port, flush=True)
reactor.run()
"""


@pytest.mark.parametrize("of", ["service", "full", "bare factory"])
@pytest.mark.parametrize(("taken", "size"), [(1, 3_000), (100, SHORT), (100, SHORT + 1)])
def test_process_killed_after_the_first_bytes_resets(of: str, taken: int, size: int) -> None:
    """A process killed however early, with bytes in the kernel, resets its reader."""
    command = [sys.executable, "-c", KILLED, of, str(taken), str(size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, ExitStack() as end:
        end.callback(server.kill)
        assert server.stdout is not None
        port = int(server.stdout.readline())
        with suppress(ConnectionResetError), reader(port) as connection:  # perhaps while connecting
            assert ended_with_reset(connection)


DATA_SEGS_OUT = 156  # of struct tcp_info, linux/tcp.h


def test_early_half_close_ends_after_the_last_byte() -> None:
    """A reader that half-closed in the middle of a poem ends as soon as all is sent."""
    server = Server(LONG)
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        turn_until_still(protocol)
        connection.shutdown(socket.SHUT_WR)
        turn_until_still(protocol)
        assert drain(connection) == LONG
        until(lambda: server.outcomes)
    assert server.outcomes == ["sent"]


def test_first_error_reaches_the_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of sending reaches the hooks unchanged."""
    server = Server(b"short")

    def refuse(*_: object) -> int:
        raise ConnectionResetError(errno.ECONNRESET, "the first")

    monkeypatch.setattr("poetry.wire.poem.Poem.send", refuse)
    with listening(server) as port, reader(port):
        until(lambda: server.results)
    assert "the first" in str(server.results[0])
