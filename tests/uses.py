"""Uses of the library, right and wrong, for type checkers; nothing runs them.

A wrong one bears a `type: ignore`, and one that nothing needs is an error in itself.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true, reportIncompatibleVariableOverride=false

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IListeningPort,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

import poetry
from poetry import (
    EmptyPoem,
    PoemError,
    PoemFactory,
    PoemTruncated,
    PoetryClientFactory,
    PoetryProtocol,
    PoetryServerFactory,
    PoetryService,
    get_poem,
    serve_poem,
)

version: str = poetry.__version__
names: list[str] = poetry.__all__


def misspell() -> None:
    from poetry import get_pome  # type: ignore[attr-defined]  # noqa: F401

    print(poetry.get_pome)  # type: ignore[attr-defined]


class Counter(PoetryProtocol):
    factory: CountingClient | CountingServer

    def connectionMade(self) -> None:
        self.factory.count += 1
        super().connectionMade()


class CountingClient(PoetryClientFactory):
    protocol = Counter
    count = 0


class CountingServer(PoetryServerFactory):
    protocol = Counter
    count = 0
    max_bytes = 1_000_000

    def poemReceived(self, poem: bytes) -> None:
        print(poem.decode())

    def poemFailed(self, reason: Failure) -> None:
        if isinstance(reason.value, PoemTruncated):
            print(reason.value.received + 1)


class Unread(PoetryServerFactory):
    protocol = Protocol  # type: ignore[assignment]
    max_bytes = "1M"  # type: ignore[assignment]

    def poemFailed(self, reason: str) -> None:  # type: ignore[override]
        print(reason)


class Prose(PoetryClientFactory):
    protocol = str  # type: ignore[assignment]

    def poemReceived(self, poem: str) -> None:  # type: ignore[override]
        print(poem)


def observe(protocol: PoetryProtocol) -> None:
    print(protocol.outcome, protocol.size + 1)
    print(protocol.outcom)  # type: ignore[attr-defined]


async def fetch(endpoint: IStreamClientEndpoint) -> bytes:
    fetched: Deferred[bytes] = get_poem(endpoint, timeout=1, max_bytes=1)
    get_poem(endpoint, timeout="5s")  # type: ignore[arg-type]
    get_poem(endpoint, retries=1)  # type: ignore[call-arg]
    try:
        return await fetched
    except PoemTruncated as error:
        print(error.seconds)  # type: ignore[attr-defined]
        return bytes(error.received)
    except PoemError as error:
        return error.outcome.encode()


async def serve(endpoint: IStreamServerEndpoint) -> IListeningPort:
    serve_poem(endpoint, "text")  # type: ignore[arg-type]
    factory = CountingServer(b"a poem")
    factory.observers = [observe]
    service = PoetryService([(endpoint, factory)], idle_timeout=1.5, grace=0)
    stopped: Deferred[None] = service.stopService()
    await stopped
    print(service.adresses)  # type: ignore[attr-defined]
    PoetryService([endpoint])  # type: ignore[list-item]
    PoetryService([(endpoint, CountingClient())])  # type: ignore[list-item]
    PoetryService([(endpoint, factory)], max_connection=1)  # type: ignore[call-arg]
    served: Deferred[bytes] = serve_poem(endpoint, None)  # type: ignore[assignment]
    print(served)
    return await serve_poem(endpoint, b"a poem", max_connections=1)


class NamedFile(PoemFactory):
    """A factory of a poem in a file."""


def from_file() -> NamedFile:
    return NamedFile.from_file("poem.txt")


def receive(client: PoetryClientFactory) -> Deferred[bytes]:
    client.poem = None
    client.poem = "text"  # type: ignore[assignment]
    client.protocol = Counter
    error: ValueError = EmptyPoem()
    print(error)
    return client.received
