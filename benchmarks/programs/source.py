"""What the clients are measured against: sendfile, so that the server is never the slow end.

Ends a poem as it should be ended (half-close, then wait for the reader), whatever the reader says.
Prints its ports. With a pace it is `count` slow servers: ten pieces each, `seconds` apart.

    source.py POEM [COUNT SECONDS]
"""

from __future__ import annotations

import selectors
import socket
import sys
import threading
import time
from pathlib import Path

PIECES = 10


def send(connection: socket.socket, poem: str, seconds: float) -> None:
    with connection, Path(poem).open("rb") as file:
        try:
            if seconds:
                text = file.read()
                size = -(-len(text) // PIECES)
                for start in range(0, len(text), size):
                    time.sleep(seconds)
                    connection.sendall(text[start : start + size])
            else:
                connection.sendfile(file)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        except OSError:
            pass  # the reader went away: its affair


def main(poem: str, count: str = "1", seconds: str = "0") -> None:
    selector = selectors.DefaultSelector()
    ports = []
    for _ in range(int(count)):
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        selector.register(listener, selectors.EVENT_READ, listener)
        ports.append(listener.getsockname()[1])
    print(*ports, flush=True)
    while True:
        for key, _ in selector.select():
            connection, _address = key.data.accept()
            arguments = (connection, poem, float(seconds))
            threading.Thread(target=send, args=arguments, daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
