"""The same server as an asyncio.Protocol, on asyncio's own loop or on uvloop's.

asyncio_server.py asyncio|uvloop PORT POEM [CERTIFICATE KEY]
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from pathlib import Path
from typing import cast


class Poetry(asyncio.Protocol):
    poem = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        writer = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        writer.write(self.poem)
        writer.close()


async def serve(port: int, context: ssl.SSLContext | None) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Poetry, "127.0.0.1", port, ssl=context)
    await server.serve_forever()


def main(loop: str, port: str, poem: str, certificate: str = "", key: str = "") -> None:
    Poetry.poem = Path(poem).read_bytes()
    context = None
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
    if loop == "uvloop":
        import uvloop

        uvloop.run(serve(int(port), context))
    else:
        asyncio.run(serve(int(port), context))


if __name__ == "__main__":
    main(*sys.argv[1:])
