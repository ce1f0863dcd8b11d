"""Scrapers that misbehave: they hold up no poems, and keep no scraper out."""

from __future__ import annotations

import contextlib
import select
import socket
from contextlib import ExitStack
from time import monotonic

import pytest

from poetry.daemon.site import SCRAPES
from tests.conftest import PoemFile
from tests.deploy.tools import samples
from tests.faults.readers import poem, read_all
from tests.processes import PATIENCE, SERVE, eventually, running

pytest.importorskip("prometheus_client", reason="needs twisted-poetry[metrics]")

SHORT = 3_000
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: poem\r\n\r\n"


def connected(address: str) -> socket.socket:
    """A blocking connection to an announced address."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE)


def answers(address: str, requests: bytes) -> int:
    """How many answers come to so many requests in one piece, until the connection ends."""
    received, unsent, deadline = bytearray(), memoryview(requests), monotonic() + PATIENCE
    with connected(address) as sock, contextlib.suppress(ConnectionError):
        while monotonic() < deadline:
            readable, writable, _ = select.select([sock], [sock] if unsent else [], [], PATIENCE)
            if writable:
                unsent = unsent[sock.send(unsent[:65536]) :]
            if readable:
                received += (data := sock.recv(65536))
                if not data:
                    break
    return received.count(b"HTTP/1.1 200 ")


def is_cut(sock: socket.socket) -> bool:
    """Whether the server ends a connection that goes on with its header."""
    try:
        sock.sendall(b"x")
        return bool(select.select([sock], [], [], 0)[0])
    except ConnectionError:
        return True


def test_pipelined_requests_have_one_answer(poem_file: PoemFile) -> None:
    """Of 10,000 requests on one connection the first is answered, and then it is closed."""
    with running([*SERVE, "--metrics", "0", poem_file(SHORT)], listeners=2) as server:
        assert answers(server.addresses[1], REQUEST * 10_000) == 1
        assert read_all(server.addresses[0], poem(SHORT), count=10) == {"whole": 10}


def test_dripping_scrapers_keep_no_other_out(poem_file: PoemFile) -> None:
    """With all connections held by scrapers that never end a header, a scrape gets through."""
    with (
        running([*SERVE, "--metrics", "0", poem_file(SHORT)], listeners=2) as server,
        ExitStack() as stack,
    ):
        drips = [stack.enter_context(connected(server.addresses[1])) for _ in range(SCRAPES)]
        for drip in drips:
            drip.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        for _ in range(3):
            assert samples(server.addresses[1])["poetry_open_connections"] == 0


def test_dripping_scrapers_are_cut(poem_file: PoemFile) -> None:
    """However it drips, a connection to the metrics is cut."""
    with (
        running([*SERVE, "--metrics", "0", poem_file(SHORT)], listeners=2) as server,
        connected(server.addresses[1]) as drip,
    ):
        drip.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        assert eventually(lambda: is_cut(drip))
