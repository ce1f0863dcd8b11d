"""Access to a file (owner, permissions, attributes), for the new file that replaces it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

CONTENT_ATTRIBUTES = frozenset({"security.capability", "security.evm", "security.ima"})
"""Extended attributes that belong to the bytes of a file, and are not kept: signatures, and
capabilities of a program, which a download must not have (nor setuid)."""

ACL_PREFIX = "system."
"""Prefix of the extended attributes that are access control lists (xattr(7), acl(5))."""


class Access(NamedTuple):
    """Owner, group, permissions and extended attributes of a file.

    @ivar attributes: the extended attributes; None: they cannot be read.
    """

    status: os.stat_result
    attributes: dict[str, bytes] | None

    @classmethod
    def of(cls, descriptor: int) -> Access:
        """Read the access of an open file."""
        return cls(os.fstat(descriptor), _attributes(descriptor))

    @property
    def mode(self) -> int:
        """Permissions without setuid and setgid: a download never runs as another user."""
        return self.status.st_mode & 0o777

    @property
    def initial_mode(self) -> int:
        """Permissions of the new file until its access control list is set."""
        plain = self.attributes is not None and not any(map(_is_acl, self.attributes))
        return self.mode if plain else self.mode & 0o700

    def apply_to(self, descriptor: int) -> str:
        """Apply this access to a new file.

        Whatever cannot be kept, the new file is open to no more users than the old one. The owner
        is set last: a process cannot change a file that belongs to another user.

        @return: what cannot be kept, as a line for the user; empty: everything is.
        @raise OSError: if the new file would be open to more users.
        """
        lost: dict[str, OSError] = {}
        mode = self.mode
        if os.fstat(descriptor).st_gid != self.status.st_gid:
            with _recording_loss("group", lost):
                os.fchown(descriptor, -1, self.status.st_gid)
        if lost:  # the old group now counts as others, and others may be in the new group
            both = mode & mode >> 3 & 0o007
            mode = mode & 0o700 | both << 3 | both
        self._apply_attributes(descriptor, lost)
        if "access control list" in lost:
            mode &= 0o700
        now = Access.of(descriptor).mode
        if now != mode and hasattr(os, "fchmod"):  # Windows has no such permissions
            with _recording_loss("permissions", lost, fatal=bool(now & ~mode)):
                os.fchmod(descriptor, mode)
        if os.fstat(descriptor).st_uid != self.status.st_uid:
            with _recording_loss("owner", lost):
                os.fchown(descriptor, self.status.st_uid, -1)
        reasons = {error.strerror or str(error): None for error in lost.values()}
        return f"its {' and '.join(lost)} cannot be kept: {'; '.join(reasons)}" if lost else ""

    def _apply_attributes(self, descriptor: int, lost: dict[str, OSError]) -> None:
        new = _attributes(descriptor) or {}
        if self.attributes is None:
            lost["access control list"] = OSError(errno.EACCES, "it cannot be read")
        old = self.attributes or {}
        for name in filter(_is_acl, new.keys() - old.keys()):  # from the directory's default
            with _recording_loss("access control list", lost):
                os.removexattr(descriptor, name)
        for name, value in old.items():
            if new.get(name) != value:
                what = "access control list" if _is_acl(name) else "extended attributes"
                with _recording_loss(what, lost):
                    os.setxattr(descriptor, name, value)


def _is_acl(name: str) -> bool:
    return name.startswith(ACL_PREFIX)


def _attributes(descriptor: int) -> dict[str, bytes] | None:
    """Read the extended attributes of an open file, except those that belong to its bytes."""
    if not hasattr(os, "listxattr"):  # Python has them on Linux only
        return {}
    try:
        names = set(os.listxattr(descriptor)) - CONTENT_ATTRIBUTES
        return {name: os.getxattr(descriptor, name) for name in names}
    except OSError as error:
        return {} if error.errno in (errno.ENOTSUP, errno.ENOSYS) else None


@contextmanager
def _recording_loss(what: str, lost: dict[str, OSError], *, fatal: bool = False) -> Iterator[None]:
    """Record in `lost` that `what` cannot be kept, if the block fails; raise if `fatal`."""
    try:
        yield
    except OSError as error:
        if fatal:
            raise
        lost[what] = error
