"""The same server as an asyncio.Protocol, on asyncio's own loop or on uvloop's.

With -log it logs each poem by `logging` in uvicorn's format, with the time.

asyncio_server.py asyncio|uvloop|asyncio-log|uvloop-log PORT POEM [CERTIFICATE KEY]
"""

from __future__ import annotations

import asyncio
import logging
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


class Logged(Poetry):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        host, port = transport.get_extra_info("peername")
        logging.info('%s:%d - "%s" %d', host, port, "poem", len(self.poem))


async def serve(protocol: type[Poetry], port: int, context: ssl.SSLContext | None) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", port, ssl=context)
    await server.serve_forever()


def main(way: str, port: str, poem: str, certificate: str = "", key: str = "") -> None:
    Poetry.poem = Path(poem).read_bytes()
    context = None
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
    loop, _, log = way.partition("-")
    if log:
        logging.basicConfig(format="%(asctime)s %(levelname)s:     %(message)s", level="INFO")
    run = asyncio.run
    if loop == "uvloop":
        import uvloop

        run = uvloop.run
    run(serve(Logged if log else Poetry, int(port), context))


if __name__ == "__main__":
    main(*sys.argv[1:])
