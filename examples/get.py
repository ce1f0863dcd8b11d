"""Fetch a poem of at most a megabyte, and print it.

python get.py HOST PORT
"""

import sys
from typing import Any

from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.task import react

from poetry import PoemError, get_poem


async def get(reactor: Any, host: str, port: str) -> None:
    endpoint = HostnameEndpoint(reactor, host, int(port))
    try:
        poem = await get_poem(endpoint, timeout=10, max_time=60, max_bytes=1_000_000)
    except (PoemError, ConnectError, DNSLookupError) as error:
        sys.exit(f"{host}:{port}: {error}")
    sys.stdout.buffer.write(poem)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    react(get, sys.argv[1:])
