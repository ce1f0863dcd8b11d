"""The limit of open files, and how many connections it allows."""

from __future__ import annotations

from poetry.system.features import SELECTABLE, resource

RESERVED = 48
"""Descriptors reserved for standard streams, the reactor, files and metrics."""

LEAST = 24
"""Fewest descriptors to serve with: 16 are open while one poem is read."""


def raise_limit() -> int:
    """Raise the soft limit of open files (RLIMIT_NOFILE) to its hard value, or to as many as the
    reactor can wait for.

    @return: the limit, also if it cannot be raised.
    @raise OSError: if the limit cannot be read.
    """
    if resource is None:
        return SELECTABLE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _usable(hard)
    if _usable(soft) < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError):  # ValueError: macOS has a lower one that it does not report
            return _usable(soft)
    return most


def _usable(limit: int) -> int:
    """Bound a limit, which may be infinite, by as many as a reactor can wait for."""
    return SELECTABLE if limit == resource.RLIM_INFINITY else min(limit, SELECTABLE)


def raise_connection_limit(listeners: int = 1) -> int:
    """Raise the limit of open files; return how many connections it allows beside the listeners.

    Out of descriptors, Twisted accepts and closes at once, which reads as an empty poem.
    """
    for_listeners = 4 * listeners  # each has its socket twice, an epoll, and the file of a poem
    return max(1, raise_limit() - RESERVED - for_listeners)
