"""What systems other than Linux lack, where more than a line depends on it.

Tests take it away; only Linux runs them.
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

__all__ = ["EPOLL", "HANGUP", "NOT_BLOCKING", "ONLY_SOCKETS", "SELECTABLE", "UNIX", "c_library"]
__all__ += ["fcntl", "resource", "termios"]

EPOLL = hasattr(select, "epoll")
"""Whether one descriptor can stand for many others: only on Linux."""

HANGUP: int | None = getattr(signal, "SIGHUP", None)
"""The signal of a terminal that is closed, and of a reload; not on Windows."""

NOT_BLOCKING: int = getattr(os, "O_NONBLOCK", 0)
"""The flag of open(2) that it must not block; not on Windows."""

UNIX: int | None = getattr(socket, "AF_UNIX", None)
"""The family of Unix sockets; Python has none on Windows."""

ONLY_SOCKETS = sys.platform.startswith("win")
"""Whether a reactor can wait for sockets alone: neither for pipes nor for a console."""

SELECTABLE = {"darwin": 1024, "win32": 512}.get(sys.platform, sys.maxsize)
"""Descriptors that the reactor can wait for: Twisted's default there is select, whose FD_SETSIZE
macOS and Python for Windows set so."""


@cache
def c_library() -> Any:
    """Load the C library, for calls that Python has no other way to; None where it cannot be
    loaded: Python may lack ctypes, or be linked statically.
    """
    try:
        import ctypes  # it takes 10 ms to load, and is seldom needed

        return ctypes.CDLL(None)
    except (ImportError, OSError):
        return None
