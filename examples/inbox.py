"""Take poems from whoever brings one, and keep the newest hundred as files.

python inbox.py PORT DIRECTORY
"""

import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import react
from twisted.python.failure import Failure

from poetry import PoetryServerFactory, PoetryService


class Inbox(PoetryServerFactory):
    """Takes poems, as it has none of its own."""

    max_bytes = 1_000_000
    max_poems = 100

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        directory.mkdir(exist_ok=True)

    def poemReceived(self, poem: bytes) -> None:
        """Give the poem its name when all of it is in the file."""
        part = self.directory / f"{sha256(poem).hexdigest()}.part"
        part.write_bytes(poem)
        part.replace(part.with_suffix(".txt"))
        files = sorted(self.directory.glob("*.txt"), key=lambda path: path.stat().st_mtime_ns)
        for old in files[: -self.max_poems]:
            old.unlink()

    def poemFailed(self, reason: Failure) -> None:
        print(f"not received: {reason.getErrorMessage()}", flush=True)


async def serve(reactor: Any, number: str, directory: str) -> None:
    endpoint = serverFromString(reactor, f"tcp:{number}:interface=127.0.0.1:backlog=4096")
    service = PoetryService([(endpoint, Inbox(Path(directory)))], max_connections=100)
    service.startService()
    await service.whenListening()
    print(f"Taking poems on {service.addresses[0]}", flush=True)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    await Deferred()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    react(serve, sys.argv[1:])
