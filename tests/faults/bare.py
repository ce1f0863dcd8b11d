"""A program that uses the library's bare factory, and stops its reactor at a bad moment.

    python bare.py FILE

On TERM the reactor stops, as in any Twisted program. Just before it drops its connections it
stands still, so that the readers take all that the kernel has: a FIN would reach them at once.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor

from poetry import PoetryServerFactory

STANDSTILL = 0.5
"""Seconds in which a reader on the same machine takes what the kernel holds."""


def main(name: str) -> None:
    factory = PoetryServerFactory(Path(name).read_bytes())
    host: Any = reactor.listenTCP(0, factory, interface="127.0.0.1").getHost()
    reactor.addSystemEventTrigger("before", "shutdown", time.sleep, STANDSTILL)
    print(f"Serving {name} on 127.0.0.1:{host.port}", flush=True)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
