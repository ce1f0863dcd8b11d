"""The fast poetry server of the Twisted introduction, part 11: one write, then loseConnection.

python step0_tutorial.py PORT POEM
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.protocol import Factory, Protocol

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


def serve(factory_class: type[PoetryFactory]) -> None:
    """Listen on the port, say so, and run."""
    number, poem = sys.argv[1:]
    factory = factory_class(Path(poem).read_bytes())
    port = reactor.listenTCP(int(number), factory, interface="127.0.0.1")
    print(f"Serving {poem} on 127.0.0.1:{port.getHost().port}", flush=True)
    reactor.run()


if __name__ == "__main__":
    serve(PoetryFactory)
