"""Where a poem is kept: files that appear when whole, and spools."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from secrets import token_hex
from tempfile import SpooledTemporaryFile
from typing import IO

from poetry.download.access import Access
from poetry.download.location import Location
from poetry.system.features import NOT_BLOCKING

SPOOL_BYTES = 1024 * 1024
"""Bytes of a poem that is not yet due that stay in memory; the rest goes to a temporary file."""

NOT_SYNCED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EROFS})
"""What fsync(2) fails with where a file system has none; of all else the disk lost something."""


class OutputError(Exception):
    """An error of what a poem is written to: `place` failed, for `reason`."""

    def __init__(self, place: str, reason: Exception) -> None:
        super().__init__(place, reason)
        self.place = place
        self.reason = reason


@contextmanager
def output_errors(place: str) -> Iterator[None]:
    """Turn each error in the block into an `OutputError` of `place`."""
    try:
        yield
    except Exception as reason:
        raise OutputError(place, reason) from reason


class _File:
    """A sink that can start again, and that is never full."""

    consumer = None
    size = 0

    def __init__(self, file: IO[bytes], place: str) -> None:
        self.file = file
        self._place = place

    def write(self, data: bytes) -> None:
        """Take some more."""
        self.size += len(data)
        with output_errors(self._place):
            self.file.write(data)

    def restart(self) -> bool:
        """Empty the file."""
        self.size = 0
        with output_errors(self._place):
            self.file.seek(0)
            self.file.truncate()
        return True

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # of what was still to be written, and is given up
            self.file.close()


class Spool(_File):
    """A temporary file for a poem that is not yet due; once finished, it is read from its start."""

    def __init__(self) -> None:
        file = SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 (`close` does)
        super().__init__(file, "temporary file")
        self._read = 0
        self._error: OSError | None = None

    async def finish(self, *, whole: bool) -> None:  # noqa: ARG002
        """Go to the start."""
        with output_errors(self._place):
            self.file.seek(0)

    def read(self, size: int = -1) -> bytes:
        """Read some of the poem; `check` raises the error of a read that was refused."""
        try:
            data = self.file.read(size)
        except OSError as error:
            self._error = error
            return b""
        self._read += len(data)
        return data

    def check(self) -> None:
        """Check that all that was written was read: a refused read looks like an end.

        @raise OutputError: where it is not.
        """
        with output_errors(self._place):
            if self._error is not None:
                raise self._error
            if self._read != self.size:
                raise OSError(errno.EIO, f"it gave {self._read:,} bytes of {self.size:,}")


class AtomicFile(_File):
    """A file that takes its name only when it is finished and whole; an old one stays until then.

    @raise OSError: where it cannot be made.
    """

    def __init__(self, path: str, location: Location, note: Callable[[str], object]) -> None:
        """@param path: what errors call it.

        @param location: is closed in the end.
        @param note: is told, in one line, what cannot be kept of an old file.
        """
        self._note = note
        self._location = location
        self._part: str | None = location.beside(f".poetry-{token_hex(6)}.part")
        old = self._old_access()
        mode = 0o666 if old is None else old.mode_to_begin_with
        descriptor = location.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        super().__init__(os.fdopen(descriptor, "wb"), path)

    def _old_access(self) -> Access | None:
        """Read the access of the file that has the name now; None: there is none."""
        status = self._location.status()
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        try:
            descriptor = self._location.open(self._location.name, os.O_RDONLY | NOT_BLOCKING)
        except OSError:  # it may not be read, but replaced
            return Access(status, None)
        try:
            return Access.of(descriptor)
        finally:
            with suppress(OSError):  # nothing was written to it
                os.close(descriptor)

    async def copy(self, spool: Spool) -> None:
        """Copy a whole spool."""
        with output_errors(self._place):
            shutil.copyfileobj(spool, self.file)
        self.size += spool.size

    async def finish(self, *, whole: bool) -> None:
        """Give the file its name, if it is whole: only when the disk has it."""
        if not whole:
            return
        with output_errors(self._place):
            self.file.flush()
            old = self._old_access()
            if old is not None and (lost := old.give_to(self.file.fileno())):
                self._note(f"{self._place}: {lost}")
            self._sync()
            self.file.close()
            assert self._part is not None
            self._location.replace(self._part)
            self._part = None

    def _sync(self) -> None:
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            if error.errno not in NOT_SYNCED:
                raise

    def close(self) -> None:
        """Remove the file if it is not finished."""
        super().close()
        if self._part is not None:
            try:
                self._location.remove(self._part)
            except OSError as error:
                self._note(f"{self._place}: {self._part} is left there: {error.strerror}")
            self._part = None
        self._location.close()
