"""The location of a file: a name in a directory that is held open."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from poetry.system.descriptors import given_descriptor

MOST_LINKS = 40
"""Most symbolic links followed for one name, as in Linux (path_resolution(7))."""


class Location:
    """A name in a directory that is held open, for openat(2).

    Whatever is renamed or linked meanwhile, every operation is in that directory, and the path is
    looked up once.

    @ivar directory: a descriptor; None: the system has no openat(2), as Windows.
    @ivar name: the name in the directory; the whole path if that is None.
    @ivar found: the status of what had the name when it was looked up; None: nothing had.
    @ivar descriptor: the descriptor of this process that the path names; None: it names a file.
    """

    directory: int | None = None
    found: os.stat_result | None = None
    descriptor: int | None = None

    def __init__(self, path: str) -> None:
        """Look up a path, following symbolic links.

        @raise OSError: if there is no such directory, a link is not to be trusted, or the path
            names a descriptor that was not given to this process.
        """
        if os.open not in os.supports_dir_fd:
            self.name = os.path.realpath(path)
            self.found = self.status()
            return
        try:
            for _ in range(MOST_LINKS):
                target = self._look_up(path)
                if target is None:
                    return
                path = target
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        except BaseException:
            self.close()
            raise

    def _look_up(self, path: str) -> str | None:
        """Open the directory of a path, which is relative to the one that is open.

        @return: the target, if the path is a symbolic link.
        """
        self.descriptor = given_descriptor(path)
        parent, self.name = os.path.split(path)
        if self.descriptor is not None:
            return None
        if self.name in ("", ".", ".."):  # such as `name/`
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # O_PATH (Linux) needs no permission to list it.
        flags = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY
        parent_directory = os.open(parent or ".", flags, dir_fd=self.directory)
        self.close()
        self.directory = parent_directory
        self.found = self.status()
        if self.found is None or not stat.S_ISLNK(self.found.st_mode):
            return None
        self._check_link(self.found)
        return os.readlink(self.name, dir_fd=self.directory)

    def _check_link(self, link: os.stat_result) -> None:
        """Refuse a link that another user may have made to get a file elsewhere overwritten.

        Linux does so itself for sticky directories, where fs.protected_symlinks is set (proc(5)).
        """
        assert self.directory is not None
        directory = os.fstat(self.directory)
        ours = link.st_uid in (os.geteuid(), directory.st_uid)
        if directory.st_mode & stat.S_IWOTH or (directory.st_mode & stat.S_IWGRP and not ours):
            why = "a symbolic link, in a directory that others may write to, is not followed"
            raise PermissionError(errno.EACCES, why)

    def status(self) -> os.stat_result | None:
        """Return the status of what has the name now, without following links; None: nothing."""
        try:
            return os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def beside(self, name: str) -> str:
        """Return the path of another name in the directory."""
        return os.path.join(os.path.dirname(self.name), name)  # noqa: PTH118, PTH120

    def open(self, name: str, flags: int, mode: int = 0o666) -> int:
        """Open a name in the directory, unless it is a symbolic link."""
        flags |= getattr(os, "O_NOFOLLOW", 0)
        return os.open(name, flags, mode, dir_fd=self.directory)

    def replace(self, name: str) -> None:
        """Rename another file of the directory to this name."""
        here = self.directory
        os.replace(name, self.name, src_dir_fd=here, dst_dir_fd=here)

    def remove(self, name: str) -> None:
        """Remove another file of the directory."""
        os.unlink(name, dir_fd=self.directory)

    def close(self) -> None:
        """Close the directory."""
        if self.directory is not None:
            with suppress(OSError):  # nothing was written to it
                os.close(self.directory)
            self.directory = None
