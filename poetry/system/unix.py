"""Unix sockets: paths that are none, and sockets that a server left behind."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import UNIXClientEndpoint, UNIXServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from zope.interface import implementer

LONGEST = 107 if sys.platform == "linux" else 103
"""Bytes of a socket's path: `sun_path` less its NUL (unix(7), and unix(4) of BSD and macOS)."""


def path_of(endpoint: Any) -> str | None:
    """Where the socket of a Unix endpoint is; None: it is another endpoint."""
    if isinstance(endpoint, UNIXServerEndpoint):
        return os.fsdecode(endpoint._address)
    if isinstance(endpoint, UNIXClientEndpoint):
        return os.fsdecode(endpoint._path)
    return None


def check_path(endpoint: Any) -> None:
    """Refuse a Unix socket that cannot be: Twisted's client would wait for ever, and not say why.

    @raise ValueError: where its path is too long.
    """
    size = len(os.fsencode(path_of(endpoint) or ""))
    if size > LONGEST:
        raise ValueError(f"its path has {size} bytes, and a Unix socket's at most {LONGEST}")


@implementer(IStreamServerEndpoint)
class TakingOver:
    """Listens on a Unix socket, and takes over one on which nobody answers any more.

    Twisted's lock names the process that has the socket. After a crash any other process may have
    that number, our own included: in a container it is 1 again.
    """

    def __init__(self, endpoint: IStreamServerEndpoint, path: str) -> None:
        """@param path: where the endpoint's socket is."""
        self._endpoint = endpoint
        self._path = path

    def listen(self, factory: Factory) -> Deferred[IListeningPort]:  # type: ignore[override]
        """Listen.

        @return: fails with CannotListenError where somebody answers there.
        """

        def listen() -> Any:
            try:
                take_over(self._path)
            except OSError as error:
                raise CannotListenError(None, self._path, error) from error
            return self._endpoint.listen(factory)

        return maybeDeferred(listen)


def take_over(path: str) -> None:
    """Remove a socket on which nobody answers, and its lock.

    @raise OSError: where somebody does, nobody can tell, or it is no socket.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            raise OSError(errno.EADDRINUSE, "a file that is no socket is there")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            refused = probe.connect_ex(path)
        if refused in (0, errno.EAGAIN):
            raise OSError(errno.EADDRINUSE, "a server answers on it")
        if refused != errno.ECONNREFUSED:
            raise OSError(refused, os.strerror(refused))
        Path(path).unlink()
    Path(f"{path}.lock").unlink(missing_ok=True)
