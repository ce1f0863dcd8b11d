"""Readers that know how the poem ended for them, and behave as they are told.

python readers.py PORT POEM [options]

    whole       all of the poem, and a clean end
    truncated   a clean end before the last byte: the reader takes a part for the whole
    reset       an error: the reader knows that it has not everything
    waiting     nothing came any more
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import ssl
from collections import Counter
from contextlib import suppress
from pathlib import Path

FIRST = 4096
"""Bytes that a reader takes before it rests."""


class Readers:
    """A number of readers that all come at once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.poem = options.poem.read_bytes()
        self.tls = ssl.create_default_context(cafile=options.tls) if options.tls else None
        self.beginning = options.count
        self.begun = asyncio.Event()

    def knock(self) -> socket.socket:
        """Begin to connect, and do not wait."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", self.options.port))
        return sock

    async def connect(
        self, sock: socket.socket
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Wait for the connection, and for a server that is just starting."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.sock_connect(sock, ("127.0.0.1", self.options.port))
            except ConnectionRefusedError:
                sock.close()
                await asyncio.sleep(0.1)
                sock = self.knock()
            else:
                name = "localhost" if self.tls else None
                return await asyncio.open_connection(
                    sock=sock, ssl=self.tls, server_hostname=name, limit=FIRST
                )

    async def rest(self) -> None:
        """What a reader does in the middle of the poem."""
        self.beginning -= 1
        if not self.beginning:
            self.begun.set()
            for number, process in (
                (signal.SIGKILL, self.options.kill),
                (signal.SIGTERM, self.options.stop),
            ):
                if process is not None:
                    os.kill(process, number)
        if self.options.kill or self.options.stop:
            await self.begun.wait()
        await asyncio.sleep(self.options.rest)

    async def read(self, sock: socket.socket) -> int:
        """Read a poem to its end; give its size in bytes."""
        received = 0
        reader, writer = await self.connect(sock)
        try:
            if self.options.speak:
                writer.write(b"GET / HTTP/1.0\r\n\r\n")
            if self.options.half_close:
                writer.write_eof()
            while chunk := await reader.read(FIRST if not received else 1 << 20):
                if not self.poem.startswith(chunk, received):
                    raise ValueError("these bytes are not the poem's")
                if not received:
                    await self.rest()
                received += len(chunk)
        finally:
            writer.close()
            with suppress(OSError):  # it is told below
                await writer.wait_closed()
        return received

    async def end(self, sock: socket.socket) -> str:
        """Read a poem; say how that ended."""
        try:
            received = await asyncio.wait_for(self.read(sock), self.options.patience)
        except asyncio.TimeoutError:
            return "waiting"
        except OSError:
            return "reset"
        return "whole" if received == len(self.poem) else "truncated"

    async def all(self) -> Counter[str]:
        """Let them all read; give how many ended in which way."""
        stalled = [await self.connect(self.knock()) for _ in range(self.options.stalled)]
        at_once = [self.knock() for _ in range(self.options.count)]
        try:
            return Counter(await asyncio.gather(*[self.end(sock) for sock in at_once]))
        finally:
            for _, writer in stalled:
                writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Read a poem, in numbers and in odd ways.")
    parser.add_argument("port", type=int)
    parser.add_argument("poem", type=Path, help="the file that is served")
    parser.add_argument("--count", type=int, default=20, help="how many readers (20)")
    parser.add_argument("--speak", action="store_true", help="send something first")
    parser.add_argument("--half-close", action="store_true", help="end the own half first")
    parser.add_argument("--rest", type=float, default=0, help="seconds, in the middle of the poem")
    parser.add_argument("--stalled", type=int, default=0, help="others, that stop reading, before")
    parser.add_argument("--kill", type=int, help="a process to kill in the middle of the poem")
    parser.add_argument("--stop", type=int, help="a process to stop (TERM) then")
    parser.add_argument("--tls", metavar="FILE", help="the certificate to trust")
    parser.add_argument("--patience", type=float, default=10, help="seconds to wait (10)")
    ends = asyncio.run(Readers(parser.parse_args()).all())
    print(", ".join(f"{count} {end}" for end, count in sorted(ends.items())))


if __name__ == "__main__":
    main()
