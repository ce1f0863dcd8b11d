"""The tutorial's fast poetry server, made again: one write, then loseConnection.

tutorial_server.py PORT POEM [CERTIFICATE KEY]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import DefaultOpenSSLContextFactory

reactor: Any = installed


class PoetryProtocol(Protocol):
    factory: Any = None

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self.factory.poem)
        self.transport.loseConnection()


class PoetryFactory(Factory):
    protocol = PoetryProtocol

    def __init__(self, poem: bytes) -> None:
        self.poem = poem


def main(port: str, poem: str, certificate: str = "", key: str = "") -> None:
    factory = PoetryFactory(Path(poem).read_bytes())
    if certificate:
        context = DefaultOpenSSLContextFactory(key, certificate)
        reactor.listenSSL(int(port), factory, context, interface="127.0.0.1")
    else:
        reactor.listenTCP(int(port), factory, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
