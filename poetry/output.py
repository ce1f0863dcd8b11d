"""Where a poem is written: standard output without blocking, and files that appear when whole."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.main import CONNECTION_LOST
from twisted.python.failure import Failure


class Output(FileDescriptor):
    """A pipe, a terminal or an open file, as a consumer that never blocks the reactor on a pipe.

    @ivar used: whether anything was written.
    @ivar closed: fires with None when all is written and `loseConnection` was called, or fails with
        the OSError of the write, BrokenPipeError where the reader went away.
    """

    connected = 1
    used = False

    def __init__(self, reactor: Any, descriptor: int) -> None:
        """@raise OSError: where it is not open."""
        super().__init__(reactor)
        self.closed: Deferred[None] = Deferred()
        self._descriptor = _own_description(descriptor)
        self._error: OSError | None = None

    def fileno(self) -> int:
        """For the reactor."""
        return self._descriptor

    def write(self, data: bytes) -> None:
        """Take some more: IConsumer."""
        self.used = True
        super().write(data)

    def writeSomeData(self, data: bytes) -> int | BaseException:
        """Write what there is room for."""
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._error = error
            return CONNECTION_LOST

    def connectionLost(self, reason: Failure) -> None:
        """All is written, or no more can be."""
        unwritten = self._error is not None or not self.disconnecting or self.producer is not None
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        os.close(self._descriptor)
        if unwritten:
            self.closed.errback(self._error or BrokenPipeError(errno.EPIPE, "closed"))
        else:
            self.closed.callback(None)


def _own_description(descriptor: int) -> int:
    """A descriptor that need not block, without making another process's share of it non-blocking.

    A regular file is shared instead, for its position.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        with suppress(OSError):
            return os.open(f"/dev/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.dup(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that takes its name only if the block succeeds; an old one stays until then.

    What is no regular file (a FIFO, /dev/null) is written as it is.

    @raise OSError: where it cannot be written.
    """
    if path.exists() and not path.is_file():
        # Not blocking: nobody may ever read a FIFO.
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.set_blocking(descriptor, True)
        with os.fdopen(descriptor, "wb") as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    part = target.with_name(f".poetry-{token_hex(6)}.part")
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
        if target.exists():
            shutil.copymode(target, part)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
