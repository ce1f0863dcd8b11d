"""Features that systems other than Linux lack, if more than one line depends on them.

Tests run on Linux alone, and remove features to test their absence.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from functools import cache
from typing import Any

try:
    import fcntl
    import resource
    import termios
except ImportError:  # Windows
    fcntl = resource = termios = None  # type: ignore[assignment]

__all__ = [
    "AT_ONCE",
    "EPOLL",
    "HANGUP",
    "NOT_BLOCKING",
    "ONLY_SOCKETS",
    "SELECTABLE",
    "UNIX",
    "c_library",
]
__all__ += ["fcntl", "resource", "termios"]

EPOLL = hasattr(select, "epoll")
"""Whether the system has epoll, one descriptor to wait for many: only on Linux."""

HANGUP: int | None = getattr(signal, "SIGHUP", None)
"""SIGHUP, for a closed terminal and for a reload; None on Windows."""

NOT_BLOCKING: int = getattr(os, "O_NONBLOCK", 0)
"""The flag of open(2) for files that never block; 0 on Windows."""

UNIX: int | None = getattr(socket, "AF_UNIX", None)
"""The family of Unix sockets; None on Windows, where Python has none."""

ONLY_SOCKETS = sys.platform.startswith("win")
"""Whether a reactor can wait for sockets only, and not for pipes or a console."""

AT_ONCE = 1 if ONLY_SOCKETS else 100
"""Most connections accepted in a reactor turn. Twisted's own ports begin with as many."""

SELECTABLE = {"darwin": 1024, "win32": 512}.get(sys.platform, sys.maxsize)
"""Most descriptors that the reactor can wait for. On macOS and Windows Twisted's default is
select(2), and this is its FD_SETSIZE there."""


@cache
def c_library() -> Any:
    """Load the C library, for calls that Python does not offer.

    @return: None if it cannot be loaded: Python may lack ctypes, or be linked statically.
    """
    try:
        import ctypes  # it takes 10 ms to load, and is seldom needed

        return ctypes.CDLL(None)
    except (ImportError, OSError):
        return None
