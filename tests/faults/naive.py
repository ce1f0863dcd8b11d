"""The tutorial's server and client as programs: what the promise is measured against.

python naive.py serve FILE...    one listener a file, announced as `poetry serve` does
python naive.py get PORT         print the poem when it is complete
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.interfaces import ITransport
from twisted.internet.protocol import ClientFactory, Protocol, ServerFactory, connectionDone
from twisted.python.failure import Failure


class NaiveServer(Protocol):
    factory: Any
    transport: ITransport

    def connectionMade(self) -> None:
        self.transport.write(self.factory.poem)
        self.transport.loseConnection()


class NaiveServerFactory(ServerFactory):
    protocol = NaiveServer
    noisy = False

    def __init__(self, poem: bytes) -> None:
        self.poem = poem


class NaiveClient(Protocol):
    poem = b""

    def dataReceived(self, data: bytes) -> None:
        self.poem += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        sys.stdout.buffer.write(self.poem)
        reactor.stop()


class NaiveClientFactory(ClientFactory):
    protocol = NaiveClient
    noisy = False


def main(command: str, *arguments: str) -> None:
    if command == "serve":
        for name in arguments:
            factory = NaiveServerFactory(Path(name).read_bytes())
            host: Any = reactor.listenTCP(0, factory, interface="127.0.0.1").getHost()
            print(f"Serving {name} on 127.0.0.1:{host.port}", flush=True)
    else:
        reactor.connectTCP("127.0.0.1", int(arguments[0]), NaiveClientFactory())
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
