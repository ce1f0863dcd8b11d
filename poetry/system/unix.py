"""Unix sockets: checks of their paths, and removal of sockets that a server left behind."""

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
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from zope.interface import implementer

from poetry.system.endpoint_strings import argument_of

LONGEST = 107 if sys.platform == "linux" else 103
"""Bytes of a socket's path: `sun_path` less its NUL (unix(7), and unix(4) of BSD and macOS)."""


def path_in_text(text: str) -> str:
    """Return the path in the endpoint string of a Unix socket, such as `unix:/run/poem:mode=660`.

    @param text: one that Twisted accepts.
    """
    return argument_of(text, "address") or argument_of(text, "path", 0) or ""


def path_of_endpoint(endpoint: Any) -> str | None:
    """Return the path that a Unix client endpoint connects to; None: it is another endpoint.

    `_path` is private in Twisted, and there is no public name for it.
    """
    return os.fsdecode(endpoint._path) if isinstance(endpoint, UNIXClientEndpoint) else None


def check_path(path: str) -> None:
    """Refuse a path that no Unix socket can have: Twisted's client would wait for ever.

    @raise ValueError: if the path is too long.
    """
    size = len(os.fsencode(path))
    if size > LONGEST:
        raise ValueError(f"its path has {size} bytes, and a Unix socket's at most {LONGEST}")


@implementer(IStreamServerEndpoint)
class UnixEndpoint:
    """A Unix server endpoint that replaces a stale socket, one on which no server answers.

    Twisted does so too, unless the process that its lock names is alive. But after a crash another
    process may have that number, our own included: in a container it is 1 again.
    """

    def __init__(self, endpoint: IStreamServerEndpoint, path: str) -> None:
        """@param path: of the endpoint's socket."""
        self._endpoint = endpoint
        self._path = path

    def listen(self, factory: Factory) -> Deferred[IListeningPort]:  # type: ignore[override]
        """Listen on the socket (IStreamServerEndpoint).

        @return: fails with CannotListenError if a server answers on it.
        """

        def listen() -> Any:
            try:
                remove_stale(self._path)
            except OSError as error:
                raise CannotListenError(None, self._path, error) from error
            return self._endpoint.listen(factory)

        return maybeDeferred(listen)


def remove_stale(path: str) -> None:
    """Remove a socket on which no server answers, and its lock.

    @raise OSError: if a server answers, that cannot be checked, or it is no socket.
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
