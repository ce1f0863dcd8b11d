"""Twisted's own Quote of the Day with a longer quote.

qotd_server.py PORT POEM
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.protocol import Factory
from twisted.protocols.wire import QOTD

reactor: Any = installed


class Poem(QOTD):
    poem = b""

    def getQuote(self) -> bytes:
        return self.poem


def main(port: str, poem: str) -> None:
    Poem.poem = Path(poem).read_bytes()
    reactor.listenTCP(int(port), Factory.forProtocol(Poem), interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
