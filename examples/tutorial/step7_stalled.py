"""A reader that takes nothing for too long is reset, and its place is free for others.

python step7_stalled.py PORT POEM
"""

from __future__ import annotations

from step4_stop import serve
from step5_burst import BACKLOG
from step6_descriptors import MakesRoom, PoemsWithinLimits
from twisted.internet.interfaces import IPullProducer
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import implementer

CHUNK = 65536
"""Bytes that are handed over at a time."""

IDLE = 2.0
"""Seconds in which a reader has to take a chunk; a real server waits for a minute."""


@implementer(IPullProducer)
class SendsInChunks(MakesRoom, TimeoutMixin):
    offset = 0

    def connectionMade(self) -> None:
        self.setTimeout(IDLE)
        self.transport.registerProducer(self, streaming=False)

    def resumeProducing(self) -> None:
        """The kernel took the last chunk: hand over the next one."""
        self.resetTimeout()
        chunk = self.factory.poem[self.offset : self.offset + CHUNK]
        self.offset += len(chunk)
        self.transport.write(chunk)
        if self.offset == len(self.factory.poem):
            self.transport.unregisterProducer()
            self.transport.loseWriteConnection()

    def stopProducing(self) -> None:
        """The connection is lost: there is nothing to give back."""

    def timeoutConnection(self) -> None:
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.setTimeout(None)
        super().connectionLost(reason)


class Patient(PoemsWithinLimits):
    protocol = SendsInChunks


if __name__ == "__main__":
    serve(Patient, backlog=BACKLOG)
