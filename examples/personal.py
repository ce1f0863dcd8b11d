"""Serve a poem of its own to each reader.

python personal.py PORT
"""

import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import react

from poetry import PoetryProtocol, PoetryServerFactory, PoetryService


class Greeting(PoetryServerFactory):
    def getPoem(self, protocol: PoetryProtocol) -> bytes:
        """Called once for each connection."""
        return f"A poem for you at {protocol.transport.getPeer().host}.\n".encode()


async def serve(reactor: Any, number: str) -> None:
    endpoint = serverFromString(reactor, f"tcp:{number}:interface=127.0.0.1:backlog=4096")
    service = PoetryService([(endpoint, Greeting())])
    service.startService()
    await service.whenListening()
    print(f"Serving greetings on {service.addresses[0]}", flush=True)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    await Deferred()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    react(serve, sys.argv[1:])
