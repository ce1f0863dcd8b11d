"""How many connections a process may have: each takes a descriptor, and so do other things."""

from __future__ import annotations

import sys

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

RESERVED = 48
"""Descriptors kept back from readers: standard streams, the reactor's, files, metrics."""

LEAST = 24
"""Descriptors without which hardly anything works: 16 are open while one poem is read."""


def raise_limit() -> int:
    """Raise the soft limit of open files (RLIMIT_NOFILE) to the hard one.

    @return: the limit.
    """
    if resource is None:
        return sys.maxsize
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def most_connections(listeners: int = 1) -> int:
    """How many the hard limit allows beside the listeners.

    Out of descriptors, Twisted accepts and closes at once, which reads as an empty poem.
    """
    if resource is None:
        return sys.maxsize
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(1, hard - RESERVED - 3 * listeners)  # its socket, poem and drain
