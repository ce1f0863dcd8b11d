"""The limit of open files, how many connections it allows, and descriptors given by name."""

from __future__ import annotations

import errno
import os
import re

from poetry.system.features import SELECTABLE, resource

RESERVED = 48
"""Descriptors reserved for standard streams, the reactor, files and metrics."""

LEAST = 24
"""Fewest descriptors to serve with: 16 are open while one poem is read."""

_DESCRIPTOR = re.compile(
    r"/dev/(?:(?P<name>stdin|stdout|stderr)|fd/(?P<fd>\d+))"
    r"|/proc/(?:self|thread-self|(?P<process>\d+))/fd/(?P<number>\d+)"
)
_STANDARD = {"stdin": 0, "stdout": 1, "stderr": 2}
_DIGITS = 9
"""Digits of a descriptor's number: it is a C int."""


def hint_of_limit(number: int | None) -> str:
    """Return what to do about an error of that number if descriptors are lacking, or ""."""
    return "; raise the limit (ulimit -n)" if number in (errno.EMFILE, errno.ENFILE) else ""


def given_descriptor(path: str) -> int | None:
    """Return the descriptor that a path such as /dev/fd/3 names; None: the path names a file.

    @raise OSError: if it was not given to this process: it is closed, or one that the process has
        opened itself, which does not survive exec(2) (PEP 446).
    """
    named = _DESCRIPTOR.fullmatch(path)
    if named is None or named["process"] not in (None, str(os.getpid())):
        return None
    if named["name"]:
        number = _STANDARD[named["name"]]
    else:
        number = int((named["fd"] or named["number"])[:_DIGITS])
    if not os.get_inheritable(number):  # which raises, if it is closed
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return number


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

    @raise OSError: as `raise_limit` does.
    """
    for_listeners = 4 * listeners  # each has its socket twice, an epoll, and the file of a poem
    return max(1, raise_limit() - RESERVED - for_listeners)
