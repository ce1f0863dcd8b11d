"""The tutorial's blocking client, made again: one address after the other, recv until empty.

blocking_client.py HOST:PORT...
"""

from __future__ import annotations

import socket
import sys


def get_poetry(address: str) -> bytes:
    host, _, port = address.rpartition(":")
    poem = b""
    with socket.create_connection((host, int(port))) as connection:
        while data := connection.recv(1024):
            poem += data
    return poem


def main(*addresses: str) -> None:
    for address in addresses:
        sys.stdout.buffer.write(get_poetry(address))


if __name__ == "__main__":
    main(*sys.argv[1:])
