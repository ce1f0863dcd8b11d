"""Serve a poem, and fetch it, in one process."""

from typing import Any

from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.task import react

from poetry import get_poem, serve_poem


async def main(reactor: Any) -> None:
    here = serverFromString(reactor, "tcp:0:interface=127.0.0.1")
    port: Any = await serve_poem(here, b"So brief.")
    there = clientFromString(reactor, f"tcp:127.0.0.1:{port.getHost().port}")
    print(await get_poem(there))


react(main)
