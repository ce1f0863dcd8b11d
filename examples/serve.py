"""Serve a poem until told to stop, over TCP or over TLS.

python serve.py PORT POEM [CERTIFICATE KEY]
"""

import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import react

from poetry import PoetryServerFactory, PoetryService


async def serve(reactor: Any, number: str, poem: str, certificate: str = "", key: str = "") -> None:
    where = f"{number}:interface=127.0.0.1:backlog=4096"
    tls = f"ssl:{where}:certKey={certificate}:privateKey={key}"
    endpoint = serverFromString(reactor, tls if certificate else f"tcp:{where}")
    service = PoetryService([(endpoint, PoetryServerFactory(Path(poem).read_bytes()))])
    service.startService()
    await service.whenListening()
    print(f"Serving {poem} on {service.addresses[0]}", flush=True)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    await Deferred()  # the reactor runs until TERM or INT; readers in flight then have 30 s


if __name__ == "__main__":
    if len(sys.argv) not in (3, 5):
        sys.exit(__doc__)
    react(serve, sys.argv[1:])
