"""How many connections a process may have: each takes a descriptor, and so do other things."""

from __future__ import annotations

from poetry.system.features import SELECTABLE, resource

RESERVED = 48
"""Descriptors kept back from readers: standard streams, the reactor's, files, metrics."""

LEAST = 24
"""Descriptors without which hardly anything works: 16 are open while one poem is read."""


def highest_limit() -> int:
    """What the limit of open files can be raised to: RLIMIT_NOFILE's hard value, where there is
    one, or what the reactor can wait for.
    """
    if resource is None:
        return SELECTABLE
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return SELECTABLE if hard == resource.RLIM_INFINITY else min(hard, SELECTABLE)


def raise_limit() -> int:
    """Raise the soft limit of open files (RLIMIT_NOFILE) as far as it goes.

    @return: the limit.
    """
    most = highest_limit()
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def most_connections(listeners: int = 1) -> int:
    """How many the highest limit allows beside the listeners.

    Out of descriptors, Twisted accepts and closes at once, which reads as an empty poem.
    """
    return max(1, highest_limit() - RESERVED - 3 * listeners)  # its socket, poem and drain
