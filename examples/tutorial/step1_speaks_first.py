"""A reader that speaks first gets the whole poem: end our half of the stream, and wait for theirs.

python step1_speaks_first.py PORT POEM
"""

from __future__ import annotations

from typing import Any

from step0_tutorial import PoetryFactory, PoetryProtocol, serve


class HalfCloses(PoetryProtocol):
    transport: Any

    def connectionMade(self) -> None:
        self.transport.write(self.factory.poem)
        self.transport.loseWriteConnection()


class Poems(PoetryFactory):
    protocol = HalfCloses


if __name__ == "__main__":
    serve(Poems)
