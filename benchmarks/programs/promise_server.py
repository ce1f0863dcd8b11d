"""The tutorial's server made to keep the promise for a short poem, and nothing else.

It has no hooks, books, logs or limits: with Twisted's connections the promise costs no less.

promise_server.py PORT POEM
"""

from __future__ import annotations

import socket
import struct
import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from zope.interface import implementer

reactor: Any = installed
ABORTIVE, GRACEFUL = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)


@implementer(IHalfCloseableProtocol)
class PromiseProtocol(Protocol):
    transport: Any
    factory: Any

    def connectionMade(self) -> None:
        handle = self.transport.getHandle()
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORTIVE)
        if handle.send(self.factory.poem) < len(self.factory.poem):
            self.transport.abortConnection()
            return
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, GRACEFUL)
        handle.shutdown(socket.SHUT_WR)

    def readConnectionLost(self) -> None:
        self.transport.connectionLost(connectionDone)

    def writeConnectionLost(self) -> None:
        pass


class PromiseFactory(Factory):
    protocol = PromiseProtocol

    def __init__(self, poem: bytes) -> None:
        self.poem = poem


def main(port: str, poem: str) -> None:
    factory = PromiseFactory(Path(poem).read_bytes())
    reactor.listenTCP(int(port), factory, interface="127.0.0.1", backlog=4096)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
