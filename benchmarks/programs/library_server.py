"""This package as a library: a factory alone, or a service whose protocol is a subclass.

library_server.py bare|subclass PORT POEM
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.endpoints import TCP4ServerEndpoint

from poetry import PoetryProtocol, PoetryServerFactory, PoetryService

reactor: Any = installed


class Mine(PoetryProtocol):
    """Somebody's own."""


def main(way: str, port: str, poem: str) -> None:
    factory = PoetryServerFactory(Path(poem).read_bytes())
    if way == "bare":
        reactor.listenTCP(int(port), factory, interface="127.0.0.1", backlog=4096)
    else:
        factory.protocol = Mine
        endpoint = TCP4ServerEndpoint(reactor, int(port), 4096, "127.0.0.1")
        PoetryService([(endpoint, factory)]).startService()
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
