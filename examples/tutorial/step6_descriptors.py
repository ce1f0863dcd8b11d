"""A server without room for more readers lets them wait, instead of closing on them.

python step6_descriptors.py PORT POEM
"""

from __future__ import annotations

from resource import RLIMIT_NOFILE, getrlimit
from typing import Any

from step0_tutorial import reactor
from step4_stop import Counted, Poems, serve
from step5_burst import BACKLOG

SPARE = 32
"""Descriptors that are not for readers: the reactor's, the listening socket, standard streams."""


class MakesRoom(Counted):
    def makeConnection(self, transport: Any) -> None:
        super().makeConnection(transport)
        reactor.callLater(0, self.factory.acceptWhatFits)


class PoemsWithinLimits(Poems):
    protocol = MakesRoom

    def listening(self, port: Any) -> None:
        super().listening(port)
        self.acceptWhatFits()

    def readerLeft(self) -> None:
        super().readerLeft()
        self.acceptWhatFits()

    def acceptWhatFits(self) -> None:
        """Accept no more readers than there is room for; none while there is no room."""
        room = getrlimit(RLIMIT_NOFILE)[0] - SPARE - len(self.readers)
        if room > 0 and not self.stopping:
            self.port.numberAccepts = room
            self.port.startReading()
        else:
            self.port.stopReading()


if __name__ == "__main__":
    serve(PoemsWithinLimits, backlog=BACKLOG)
