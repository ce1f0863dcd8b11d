"""Files for downloads: those that appear only when whole, and spools."""

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
"""Bytes from which on a spool is on disk rather than in memory."""

NO_FSYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EROFS})
"""Errors of fsync(2) on a file system that has none; any other error means lost data."""


class OutputError(Exception):
    """An output failed: `place` is its name, `reason` the error."""

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
    """A sink that can restart, and never holds the sender back."""

    consumer = None
    size = 0

    def __init__(self, file: IO[bytes], place: str) -> None:
        self.file = file
        self._place = place

    def write(self, data: bytes) -> None:
        """Write a chunk."""
        self.size += len(data)
        with output_errors(self._place):
            self.file.write(data)

    def restart(self) -> bool:
        """Empty the file, for a new attempt; always possible."""
        self.size = 0
        with output_errors(self._place):
            self.file.seek(0)
            self.file.truncate()
        return True

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # of the last write, whose data is discarded anyway
            self.file.close()


class Spool(_File):
    """A temporary file for a poem that has to wait for those before it."""

    def __init__(self) -> None:
        file = SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 (`close` does)
        super().__init__(file, "temporary file (TMPDIR)")
        self._read = 0
        self._error: OSError | None = None

    async def finish(self, *, whole: bool) -> None:  # noqa: ARG002
        """Rewind to the start, to be read."""
        with output_errors(self._place):
            self.file.seek(0)

    def read(self, size: int = -1) -> bytes:
        """Read some of the poem; if that fails, return nothing, and let `check` raise the error."""
        try:
            data = self.file.read(size)
        except OSError as error:
            self._error = error
            return b""
        self._read += len(data)
        return data

    def check(self) -> None:
        """Check that everything written was read: a failed read looks like the end.

        @raise OutputError: if it was not.
        """
        with output_errors(self._place):
            if self._error is not None:
                raise self._error
            if self._read != self.size:
                raise OSError(errno.EIO, f"it gave {self._read:,} bytes of {self.size:,}")


class AtomicFile(_File):
    """A file that gets its name only when finished and whole; an old file stays until then.

    @raise OSError: if it cannot be created.
    """

    def __init__(self, path: str, location: Location, note: Callable[[str], object]) -> None:
        """@param path: the name of the file in errors.

        @param location: is closed by `close`.
        @param note: is called with what cannot be kept of an old file, in one line.
        """
        self._note = note
        self._location = location
        self._part: str | None = location.beside(f".poetry-{token_hex(6)}.part")
        old = self._old_access()
        mode = 0o666 if old is None else old.initial_mode
        descriptor = location.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        super().__init__(os.fdopen(descriptor, "wb"), path)

    def _old_access(self) -> Access | None:
        """Read the access of the file that has the name now; None: no regular file has it."""
        status = self._location.status()
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        try:
            descriptor = self._location.open(self._location.name, os.O_RDONLY | NOT_BLOCKING)
        except OSError:  # not readable, but it can be replaced
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
        """Rename a `whole` file to its name, once its bytes are on disk."""
        if not whole:
            return
        with output_errors(self._place):
            self.file.flush()
            old = self._old_access()
            if old is not None and (lost := old.apply_to(self.file.fileno())):
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
            if error.errno not in NO_FSYNC:
                raise

    def close(self) -> None:
        """Remove the file if it is not finished."""
        super().close()
        if self._part is not None:
            try:
                self._location.remove(self._part)
            except FileNotFoundError:
                pass  # somebody else has removed it
            except OSError as error:
                self._note(f"{self._place}: {self._part} is left there: {error.strerror}")
            self._part = None
        self._location.close()
