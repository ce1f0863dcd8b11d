"""The tutorial's Twisted client, made again: self.poem += data, until the connection ends.

tutorial_client.py HOST:PORT...
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.interfaces import IAddress, IConnector
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.python.failure import Failure

reactor: Any = installed


class PoetryProtocol(Protocol):
    factory: Any = None
    poem = b""

    def dataReceived(self, data: bytes) -> None:
        self.poem += data

    def connectionLost(self, reason: Failure | None = None) -> None:  # noqa: ARG002
        self.factory.finished(self.number, self.poem)

    number = 0


class PoetryClientFactory(ClientFactory):
    protocol = PoetryProtocol

    def __init__(self, count: int) -> None:
        self.count = count
        self.begun = 0
        self.poems: dict[int, bytes] = {}

    def buildProtocol(self, addr: IAddress | None) -> PoetryProtocol:  # noqa: ARG002
        built = PoetryProtocol()
        built.factory = self
        built.number = self.begun
        self.begun += 1
        return built

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:  # noqa: ARG002
        print("Failed to connect to:", connector.getDestination(), file=sys.stderr)
        self.finished(-len(self.poems) - 1, b"")

    def finished(self, number: int, poem: bytes) -> None:
        self.poems[number] = poem
        if len(self.poems) == self.count:
            reactor.stop()


def main(*addresses: str) -> None:
    factory = PoetryClientFactory(len(addresses))
    for address in addresses:
        host, _, port = address.rpartition(":")
        reactor.connectTCP(host, int(port), factory)
    reactor.run()
    for _, poem in sorted(factory.poems.items()):
        sys.stdout.buffer.write(poem)


if __name__ == "__main__":
    main(*sys.argv[1:])
