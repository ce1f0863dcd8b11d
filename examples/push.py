"""Bring a poem to a server that takes them, such as inbox.py.

python push.py HOST PORT POEM
"""

import sys
from pathlib import Path
from typing import Any

from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.task import react

from poetry import PoemError, send_poem


async def push(reactor: Any, host: str, port: str, poem: str) -> None:
    try:
        await send_poem(HostnameEndpoint(reactor, host, int(port)), Path(poem).read_bytes())
    except (PoemError, ConnectError, DNSLookupError) as error:
        sys.exit(f"{host}:{port}: {error}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    react(push, sys.argv[1:])
