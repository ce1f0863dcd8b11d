"""A poem is in memory for as long as somebody reads it, and no longer."""

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
    """Only what nobody refers to is freed: cycles have to wait."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def whole(_: Server, client: Client) -> None:
    """A reader takes it all."""
    assert wait(get_poem(client())) == LONG


def reset_midway(_: Server, client: Client) -> None:
    """A reader has enough."""
    assert isinstance(wait_error(get_poem(client(), max_bytes=1_000_000)), PoemError)


def stopped(server: Server, client: Client) -> None:
    """The server has no time for more."""
    reading = get_poem(client())
    until(lambda: any(connection.size for connection in server.connections))
    for connection in list(server.connections):
        connection.stop()
    assert isinstance(wait_error(reading), PoemError)


ENDS = pytest.mark.parametrize("end", [whole, reset_midway, stopped])


def freed(server: Server, listen: str, end: Callable[[Any], None]) -> bool:
    """Whether a poem is gone as soon as its only reader has ended and it is replaced."""
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
def test_freed_over_tcp(end: Callable[[Server, Client], None]) -> None:
    """However a reader over TCP ends, the poem that it had goes with it."""
    server = Server()

    def read(port: Any) -> None:
        end(server, lambda: clientFromString(reactor, f"tcp:127.0.0.1:{port.getHost().port}"))

    assert freed(server, "tcp:0:interface=127.0.0.1", read)


@pytest.mark.usefixtures("no_collection")
@ENDS
def test_freed_over_tls(certificates: Certificates, end: Callable[[Server, Client], None]) -> None:
    """However a reader over TLS ends, the poem that it had goes with it."""
    server = Server()

    def read(port: Any) -> None:
        address = certificates.trusting(port.getHost().port)
        end(server, lambda: clientFromString(reactor, address))

    assert freed(server, certificates.listen("good"), read)


@pytest.mark.usefixtures("no_collection")
def test_freed_where_the_reader_has_gone() -> None:
    """A reader that is gone before it is accepted leaves no poem in the traceback of its error."""
    server = Server()

    def read(port: Any) -> None:
        with reader(port.getHost().port) as gone:
            reset(gone)

    assert freed(server, "tcp:0:interface=127.0.0.1", read)
    assert server.outcomes == ["truncated"]
