"""Where a poem is kept: files that appear when whole, and spools."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from tempfile import SpooledTemporaryFile
from typing import IO

SPOOL_BYTES = 1024 * 1024
"""Bytes of a poem that is not yet due that stay in memory; the rest goes to a temporary file."""


class Unwritten(Exception):
    """It could not be written: `place` is at fault, for `reason`."""

    def __init__(self, place: str, reason: Exception) -> None:
        super().__init__(place, reason)
        self.place = place
        self.reason = reason


@contextmanager
def blaming(place: str) -> Iterator[None]:
    """Whatever goes wrong in the block, `place` is at fault."""
    try:
        yield
    except Exception as reason:
        raise Unwritten(place, reason) from reason


def status_of(path: str) -> os.stat_result | None:
    """Of the file, or of what a link points to; None: there is none yet."""
    try:
        return Path(path).stat()
    except FileNotFoundError:
        return None


class _File:
    """A sink that can start again, and that holds nobody back."""

    consumer = None
    size = 0

    def __init__(self, file: IO[bytes], place: str) -> None:
        self.file = file
        self._place = place

    def write(self, data: bytes) -> None:
        """Take some more."""
        self.size += len(data)
        with blaming(self._place):
            self.file.write(data)

    async def copy(self, file: IO[bytes]) -> None:
        """Take all that is left in a file."""
        with blaming(self._place):
            shutil.copyfileobj(file, self.file)

    def restart(self) -> bool:
        """Empty the file."""
        self.size = 0
        with blaming(self._place):
            self.file.seek(0)
            self.file.truncate()
        return True

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # of what was still to be written, and is given up
            self.file.close()


class Spool(_File):
    """Holds a poem that is not yet due; finished, it can be read from its start."""

    def __init__(self) -> None:
        file = SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 (`close` does)
        super().__init__(file, "temporary file")

    async def finish(self, *, whole: bool) -> None:  # noqa: ARG002
        """Go to the start."""
        with blaming(self._place):
            self.file.seek(0)


class AtomicFile(_File):
    """A file that takes its name only when it is finished and whole; an old one stays until then.

    @raise OSError: where it cannot be made.
    """

    def __init__(self, path: str, note: Callable[[str], object]) -> None:
        if path.rpartition("/")[2] in ("", ".", ".."):  # `name/` is not `name`
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        self._note = note
        self._target = os.path.realpath(path)
        self._part = Path(self._target).with_name(f".poetry-{token_hex(6)}.part")
        old = status_of(self._target)
        mode = 0o666 if old is None else _permissions(old)
        descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        super().__init__(os.fdopen(descriptor, "wb"), path)

    async def finish(self, *, whole: bool) -> None:
        """Give the file its name, if it is whole: only when the disk has it."""
        if not whole:
            return
        with blaming(self._place):
            self.file.flush()
            if (old := status_of(self._target)) is not None:
                self._belong_as(old)
            os.fsync(self.file.fileno())
            self.file.close()
            self._part.replace(self._target)

    def _belong_as(self, old: os.stat_result) -> None:
        """Keep whose the file was, where that can be, and what they may do with it."""
        descriptor = self.file.fileno()
        new = os.fstat(descriptor)
        if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
            try:
                os.fchown(descriptor, old.st_uid, old.st_gid)
            except OSError as error:
                with suppress(OSError):
                    os.fchown(descriptor, -1, old.st_gid)
                self._note(f"{self._place}: its owner cannot be kept: {error.strerror}")
        if hasattr(os, "fchmod"):  # Windows has no such permissions
            os.fchmod(descriptor, _permissions(old))

    def close(self) -> None:
        """Leave no file that is not finished."""
        super().close()
        self._part.unlink(missing_ok=True)


def _permissions(status: os.stat_result) -> int:
    """What may be done with a file; never as whom (setuid): what comes from a network stays it."""
    return status.st_mode & 0o777
