"""A server that is told to stop lets its readers finish, and resets those that take too long.

python step4_stop.py PORT POEM
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from step0_tutorial import PoetryFactory, reactor
from step3_kill import ResetsUnlessSent
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

GRACE = 30.0
"""Seconds that a stop waits for readers."""


class Counted(ResetsUnlessSent):
    def makeConnection(self, transport: Any) -> None:
        self.factory.readers.add(self)
        super().makeConnection(transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self.factory.readers.discard(self)
        self.factory.readerLeft()


class Poems(PoetryFactory):
    protocol = Counted
    port: Any = None

    def __init__(self, poem: bytes) -> None:
        super().__init__(poem)
        self.readers: set[Any] = set()
        self.stopping = False
        self.gone: Deferred[None] = Deferred()

    def listening(self, port: Any) -> None:
        self.port = port

    def stop(self) -> Deferred[None]:
        """Take no new reader; fire when the last one has gone."""
        self.port.stopListening()
        reactor.callLater(GRACE, self.abort)
        self.stopping = True
        self.readerLeft()
        return self.gone

    def readerLeft(self) -> None:
        if self.stopping and not self.readers:
            self.gone.callback(None)

    def abort(self) -> None:
        for reader in list(self.readers):
            reader.transport.abortConnection()


def serve(factory_class: type[Poems], **listening: Any) -> None:
    """Listen on the port, say so, and run until told to stop."""
    number, poem = sys.argv[1:]
    factory = factory_class(Path(poem).read_bytes())
    port = reactor.listenTCP(int(number), factory, interface="127.0.0.1", **listening)
    factory.listening(port)
    reactor.addSystemEventTrigger("before", "shutdown", factory.stop)
    print(f"Serving {poem} on 127.0.0.1:{port.getHost().port}", flush=True)
    reactor.run()


if __name__ == "__main__":
    serve(Poems)
