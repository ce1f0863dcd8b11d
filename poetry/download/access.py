"""Owner, permissions and attributes of a file, for the new file that replaces it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

CONTENT = frozenset({"security.capability", "security.evm", "security.ima"})
"""Extended attributes that go with the bytes of a file: signatures, and what it may do when it is
run, which what comes from a network never may (the same goes for setuid)."""

ACCESS_CONTROL = "system."
"""How the names of extended attributes begin that are access control lists (xattr(7), acl(5))."""


class Access(NamedTuple):
    """Owner, group, permissions and extended attributes of a file.

    @ivar attributes: its extended attributes; None: they cannot be read.
    """

    status: os.stat_result
    attributes: dict[str, bytes] | None

    @classmethod
    def of(cls, descriptor: int) -> Access:
        """Read them from an open file."""
        return cls(os.fstat(descriptor), _attributes(descriptor))

    @property
    def mode(self) -> int:
        """The permissions, without setuid and setgid: a download never runs as another user."""
        return self.status.st_mode & 0o777

    @property
    def mode_to_begin_with(self) -> int:
        """The permissions of the new file until its access control list is set."""
        plain = self.attributes is not None and not any(map(_is_list, self.attributes))
        return self.mode if plain else self.mode & 0o700

    def give_to(self, descriptor: int) -> str:
        """Give them to a new file.

        Nobody may do more with the new file than with the old one, whatever cannot be kept. The
        owner comes last: whoever gives a file away can change no more of it.

        @return: what cannot be kept, as a line for the user; empty: all is.
        @raise OSError: where the new file would be open to more people.
        """
        lost: dict[str, OSError] = {}
        mode = self.mode
        if os.fstat(descriptor).st_gid != self.status.st_gid:
            with _losing("group", lost):
                os.fchown(descriptor, -1, self.status.st_gid)
        if lost:  # then its group is among the others, and others are in the group
            both = mode & mode >> 3 & 0o007
            mode = mode & 0o700 | both << 3 | both
        self._give_attributes(descriptor, lost)
        if "access control list" in lost:
            mode &= 0o700
        now = Access.of(descriptor).mode
        if now != mode and hasattr(os, "fchmod"):  # Windows has no such permissions
            with _losing("permissions", lost, fatal=bool(now & ~mode)):
                os.fchmod(descriptor, mode)
        if os.fstat(descriptor).st_uid != self.status.st_uid:
            with _losing("owner", lost):
                os.fchown(descriptor, self.status.st_uid, -1)
        reasons = {error.strerror or str(error): None for error in lost.values()}
        return f"its {' and '.join(lost)} cannot be kept: {'; '.join(reasons)}" if lost else ""

    def _give_attributes(self, descriptor: int, lost: dict[str, OSError]) -> None:
        new = _attributes(descriptor) or {}
        if self.attributes is None:
            lost["access control list"] = OSError(errno.EACCES, "it cannot be read")
        old = self.attributes or {}
        for name in filter(_is_list, new.keys() - old.keys()):  # the directory gives its default
            with _losing("access control list", lost):
                os.removexattr(descriptor, name)
        for name, value in old.items():
            if new.get(name) != value:
                what = "access control list" if _is_list(name) else "extended attributes"
                with _losing(what, lost):
                    os.setxattr(descriptor, name, value)


def _is_list(name: str) -> bool:
    return name.startswith(ACCESS_CONTROL)


def _attributes(descriptor: int) -> dict[str, bytes] | None:
    """Read the extended attributes of an open file, except those that belong to its bytes."""
    if not hasattr(os, "listxattr"):  # Linux alone has them in Python
        return {}
    try:
        names = set(os.listxattr(descriptor)) - CONTENT
        return {name: os.getxattr(descriptor, name) for name in names}
    except OSError as error:
        return {} if error.errno in (errno.ENOTSUP, errno.ENOSYS) else None


@contextmanager
def _losing(what: str, lost: dict[str, OSError], *, fatal: bool = False) -> Iterator[None]:
    """Record that `what` cannot be kept, unless that is `fatal`."""
    try:
        yield
    except OSError as error:
        if fatal:
            raise
        lost[what] = error
