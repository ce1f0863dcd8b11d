"""Servers that misbehave, in threads of the test: what a client must not be fooled by."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.faults.readers import reset as reset
from tests.processes import PATIENCE

Handler = Callable[[socket.socket], None]
"""Speaks with one client; the socket is closed when it returns."""


def _handle(handler: Handler, sock: socket.socket, context: ssl.SSLContext | None) -> None:
    with contextlib.suppress(OSError, threading.BrokenBarrierError), sock:
        sock.settimeout(PATIENCE)
        if context is None:
            handler(sock)
        else:
            with context.wrap_socket(sock, server_side=True) as tls:
                handler(tls)


def _accept(
    listener: socket.socket,
    handler: Handler,
    context: ssl.SSLContext | None,
    begun: list[threading.Thread],
) -> None:
    with contextlib.suppress(OSError):
        while True:
            sock, _ = listener.accept()
            thread = threading.Thread(target=_handle, args=(handler, sock, context))
            begun.append(thread)
            thread.start()


@contextmanager
def serving(handler: Handler, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Handle every client in a thread of its own until the block ends; gives the port."""
    begun: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        accepting = threading.Thread(target=_accept, args=(listener, handler, context, begun))
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in begun:
                thread.join()


@contextmanager
def black_hole() -> Iterator[int]:
    """A port that never answers a SYN: its queue is full, and no connection is accepted."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as listener,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@contextmanager
def closed_port() -> Iterator[int]:
    """A port that refuses every connection: bound, and not listening."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def stall(sock: socket.socket) -> None:
    """Do nothing until the client goes."""
    while sock.recv(65536):
        pass


def whole(sock: socket.socket, poem: bytes) -> None:
    """Send a poem as it should be sent."""
    sock.sendall(poem)
    if isinstance(sock, ssl.SSLSocket):
        sock.unwrap()
    else:
        sock.shutdown(socket.SHUT_WR)
        stall(sock)


def alerts(sock: socket.socket, context: ssl.SSLContext, part: bytes) -> None:
    """Send a part of a poem over TLS, and then a real fatal alert, as if the peer had erred."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            incoming.write(sock.recv(65536))
    tls.write(part)
    incoming.write(b"\x17\x03\x03\x00\x20" + b"A" * 32)
    with contextlib.suppress(ssl.SSLError):
        tls.read(1)
    sock.sendall(outgoing.read())
