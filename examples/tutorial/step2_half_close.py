"""A reader that ends its own half first gets the whole poem: the end of its half is not the end.

python step2_half_close.py PORT POEM
"""

from __future__ import annotations

from step0_tutorial import PoetryFactory, serve
from step1_speaks_first import HalfCloses
from twisted.internet.interfaces import IHalfCloseableProtocol
from zope.interface import implementer


@implementer(IHalfCloseableProtocol)
class WaitsForBoth(HalfCloses):
    sent = False
    heard = False

    def writeConnectionLost(self) -> None:
        self.sent = True
        self.closeIfDone()

    def readConnectionLost(self) -> None:
        self.heard = True
        self.closeIfDone()

    def closeIfDone(self) -> None:
        if self.sent and self.heard:
            self.transport.loseConnection()


class Poems(PoetryFactory):
    protocol = WaitsForBoth


if __name__ == "__main__":
    serve(Poems)
