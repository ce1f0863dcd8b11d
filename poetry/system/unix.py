"""Unix sockets: their paths, and what listens on them."""

from __future__ import annotations

import os
import sys
from typing import Any

from twisted.internet.endpoints import UNIXClientEndpoint, quoteStringArgument

from poetry.system.endpoint_strings import argument_of

LONGEST = 107 if sys.platform == "linux" else 103
"""Bytes of a socket's path: `sun_path` less its NUL (unix(7), and unix(4) of BSD and macOS)."""


def path_in_text(text: str) -> str:
    """Return the path in the endpoint string of a Unix socket, such as `unix:/run/poem:mode=660`.

    @param text: one that Twisted accepts.
    """
    return argument_of(text, "address") or argument_of(text, "path", 0) or ""


def unix_address(path: str | bytes) -> str:
    """Return the endpoint string of a Unix socket, for server and client."""
    return f"unix:{quoteStringArgument(os.fsdecode(path))}".replace("=", r"\=")


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


def unix_reactor(reactor: Any) -> Any:
    """Return what listens on Unix sockets in the place of a reactor, for Twisted's endpoints."""
    from poetry.system.unix_ports import UnixReactor  # Twisted's part of it is not for Windows

    return reactor if isinstance(reactor, UnixReactor) else UnixReactor(reactor)
