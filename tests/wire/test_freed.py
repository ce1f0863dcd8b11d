"""A poem is in memory for as long as it is read, and no longer."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.endpoints import clientFromString, serverFromString

from poetry import PoemError, get_poem
from tests.certificates import Certificates
from tests.ends import LONG, Server, reader
from tests.faults.bad import reset
from tests.loop import reactor, until, wait, wait_error

Client = Callable[[], Any]


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Keep the garbage collector off, so that only unreferenced objects are freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def whole(_: Server, client: Client) -> None:
    """Let a reader take the whole poem."""
    assert wait(get_poem(client())) == LONG


def reset_midway(_: Server, client: Client) -> None:
    """Let a reader reset in the middle."""
    assert isinstance(wait_error(get_poem(client(), max_bytes=1_000_000)), PoemError)


def stopped(server: Server, client: Client) -> None:
    """Let the server stop in the middle."""
    reading = get_poem(client())
    until(lambda: any(connection.size for connection in server.connections))
    for connection in list(server.connections):
        connection.stop()
    assert isinstance(wait_error(reading), PoemError)


ENDS = pytest.mark.parametrize("end", [whole, reset_midway, stopped])


def freed(server: Server, listen: str, end: Callable[[Any], None]) -> bool:
    """Whether a poem is freed as soon as its only reader has ended and it is replaced."""
    server.poem = LONG
    poem = weakref.ref(server.sending)
    port = wait(serverFromString(reactor, listen).listen(server))
    end(port)
    until(lambda: server.outcomes and not server.connections)
    wait(port.stopListening())
    server.poem = b"another"
    return poem() is None


@pytest.mark.usefixtures("no_collection")
@ENDS
def test_poem_is_freed_over_tcp(end: Callable[[Server, Client], None]) -> None:
    """However a reader over TCP ends, its poem is freed with it."""
    server = Server()

    def read(port: Any) -> None:
        end(server, lambda: clientFromString(reactor, f"tcp:127.0.0.1:{port.getHost().port}"))

    assert freed(server, "tcp:0:interface=127.0.0.1", read)


@pytest.mark.usefixtures("no_collection")
@ENDS
def test_poem_is_freed_over_tls(
    certificates: Certificates, end: Callable[[Server, Client], None]
) -> None:
    """However a reader over TLS ends, its poem is freed with it."""
    server = Server()

    def read(port: Any) -> None:
        address = certificates.trusting(port.getHost().port)
        end(server, lambda: clientFromString(reactor, address))

    assert freed(server, certificates.listen("good"), read)


@pytest.mark.usefixtures("no_collection")
def test_poem_is_freed_after_a_reset_before_accept() -> None:
    """A reader that has reset before it is accepted leaves no poem in its error's traceback."""
    server = Server()

    def read(port: Any) -> None:
        with reader(port.getHost().port) as gone:
            reset(gone)

    assert freed(server, "tcp:0:interface=127.0.0.1", read)
    assert server.outcomes == ["truncated"]
