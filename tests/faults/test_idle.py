"""Readers that take nothing, little, or never go away; and readers that never stop talking."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from tests.certificates import Certificates
from tests.conftest import PoemFile
from tests.faults.conftest import NAIVE
from tests.faults.readers import PAUSES, Crowd, Habit, poem, read_all
from tests.processes import SERVE, eventually, running

LONG = 10_000_000

TAKES_NOTHING = Habit(takes=0)
STAYS = Habit(stays=True)


def test_idle_reader_is_reset(poem_file: PoemFile) -> None:
    """Readers that take nothing, from the start or from the middle on, are reset."""
    with (
        running([*SERVE, "--idle-timeout", "1", poem_file(LONG)]) as server,
        Crowd(server.addresses[0], poem(LONG), TAKES_NOTHING, count=20) as nothing,
        Crowd(server.addresses[0], poem(LONG), PAUSES, count=20) as stopped,
    ):
        stopped.run(until=stopped.begun)
        assert nothing.run() == {"reset": 20}
        assert stopped.run() == {"reset": 20}
        assert read_all(server.addresses[0], poem(LONG)) == {"whole": 1}
        assert "Traceback" not in server.stderr


@pytest.mark.evidence
def test_naive_server_keeps_an_idle_reader(poem_file: PoemFile) -> None:
    """The tutorial's server keeps a reader that takes nothing for ever."""
    with running([*NAIVE, "serve", poem_file(LONG)]) as server:
        ends = read_all(server.addresses[0], poem(LONG), TAKES_NOTHING, count=20, quiet=3)
    print("naive:", dict(ends))
    assert ends == {"waiting": 20}


def slowly(port: int, size: int, rate: int, count: int) -> list[bytes | str]:
    """The ends of `count` readers of `rate` bytes a second."""
    beats = 10
    socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    parts: list[list[bytes]] = [[] for _ in socks]
    ended: dict[int, bytes | str] = {}
    try:
        while len(ended) < count:
            for index in set(range(count)) - ended.keys():
                try:
                    data = socks[index].recv(rate // beats)
                except OSError as error:
                    ended[index] = f"{error} after {sum(map(len, parts[index]))} of {size} bytes"
                    continue
                parts[index].append(data)
                if not data:
                    ended[index] = b"".join(parts[index])
            time.sleep(1 / beats)
    finally:
        for sock in socks:
            sock.close()
    return [ended[index] for index in range(count)]


@pytest.mark.parametrize("rate", [750_000, pytest.param(250_000, marks=pytest.mark.machine)])
def test_slow_reader_is_whole(poem_file: PoemFile, rate: int) -> None:
    """Readers of 6 MB, at `rate` bytes a second, are whole with an idle timeout of a second."""
    size = 6_000_000
    with running([*SERVE, "--idle-timeout", "1", poem_file(size)]) as server:
        results = slowly(server.port, size, rate, 5)
    print([result if isinstance(result, str) else "whole" for result in results])
    assert results == [poem(size)] * 5


def test_slow_server_does_not_time_readers_out(poem_file: PoemFile) -> None:
    """The slow server's own delay is no idleness of a reader."""
    slow = ["--num-bytes", "1000", "--delay", "1.5", "--idle-timeout", "0.5"]
    with running([*SERVE, *slow, poem_file(3_000)]) as server:
        assert read_all(server.addresses[0], poem(3_000), count=5) == {"whole": 5}


@pytest.mark.machine
def test_whole_reader_that_stays_is_closed(poem_file: PoemFile, certificates: Certificates) -> None:
    """Readers that keep their end open after the last byte, talking or not, are closed."""
    plain, tls = "tcp:0:interface=127.0.0.1", certificates.listen("good")
    listeners = [(plain, 3_000), (plain, LONG), (tls, 3_000), (tls, LONG)]
    words = [word for address, _ in listeners for word in ("-l", address)]
    files = [poem_file(size) for _, size in listeners]

    with (
        running([*SERVE, *words, *files], listeners=len(listeners)) as server,
        contextlib.ExitStack() as stack,
    ):
        idle = server.sockets()
        for (kind, size), address in zip(listeners, server.addresses, strict=True):
            context = certificates.context() if kind == tls else None
            crowd = Crowd(address, poem(size), STAYS, count=5, context=context)
            assert stack.enter_context(crowd).run() == {"whole": 5}
        talker = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        assert server.sockets() > idle

        def gone() -> bool:
            with contextlib.suppress(OSError):
                talker.send(b"and another thing")
            return server.sockets() == idle

        assert eventually(gone)
        assert "Traceback" not in server.stderr


class Flood:
    """Senders that send without end, and read nothing."""

    def __init__(self, port: int, count: int) -> None:
        self.sent = 0
        self._socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
        self._threads = [threading.Thread(target=self._send, args=(s,)) for s in self._socks]

    def _send(self, sock: socket.socket) -> None:
        drop = bytes(65536)
        try:
            while True:
                self.sent += sock.send(drop)
        except OSError:
            sock.close()

    def __enter__(self) -> Flood:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for sock in self._socks:
            sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


def test_flood_of_input_costs_no_memory(poem_file: PoemFile) -> None:
    """Senders without end neither grow the memory nor starve the other readers."""
    size = 1_000_000
    with running([*SERVE, poem_file(size)]) as server:
        read_all(server.addresses[0], poem(size), count=100)
        before = server.resident()
        with Flood(server.port, 4) as flood:
            assert eventually(lambda: flood.sent > 1_000_000)
            ends = read_all(server.addresses[0], poem(size), count=100, at_once=50)
            grown = server.resident() - before
            print(dict(ends), f"{flood.sent} bytes flooded in, memory grown by {grown} bytes")
        assert ends == {"whole": 100}
        assert grown <= 2_000_000
