"""Sockets: at once what the kernel takes, and the rest as it has room."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from poetry.protocol import State
from poetry.wire.layers import handle_of
from poetry.wire.sender import SHORT
from tests.ends import (
    LONG,
    Server,
    listening,
    queued,
    reader,
)
from tests.loop import drain, turn_until_still, until


@pytest.mark.parametrize(
    ("size", "sender"), [(1, False), (SHORT, False), (SHORT + 1, False), (len(LONG), True)]
)
def test_only_what_is_left_has_a_sender(size: int, *, sender: bool) -> None:
    """A poem that the kernel takes at once is ended at once, without an object for it."""
    server = Server(LONG[:size])
    with listening(server) as port, reader(port) as connection:
        until(lambda: server.connections)
        (protocol,) = server.connections
        assert (protocol.sender is not None, protocol.state is State.ENDED) == (sender, not sender)
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


DATA_SEGS_OUT = 156  # of struct tcp_info, linux/tcp.h


def test_an_early_end_is_heard_once_more() -> None:
    """Who half-closed in the middle of a poem is let go as soon as all is sent."""
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


def test_the_first_error_is_the_one_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What sending fails with reaches the hooks unchanged."""
    server = Server(b"short")

    def refuse(*_: object) -> int:
        raise ConnectionResetError(errno.ECONNRESET, "the first")

    monkeypatch.setattr("poetry.wire.poem.Poem.send", refuse)
    with listening(server) as port, reader(port):
        until(lambda: server.told)
    assert "the first" in str(server.told[0])
