"""Writes to standard streams that never block, even if the stream is not read."""

from __future__ import annotations

import errno
import os
import select
import stat
from contextlib import suppress

from poetry.system.features import NOT_BLOCKING, fcntl

PIECE = getattr(select, "PIPE_BUF", 4096)
"""Bytes per write(2): a writable pipe has room for as many (pipe(7)); any number on Windows."""


def reopened(descriptor: int) -> int | None:
    """Open a pipe, a terminal or a device again, as a description of our own that never blocks.

    O_NONBLOCK belongs to the open file description. Other processes share this one, and do not
    expect EAGAIN from it.

    @return: a descriptor; None: it cannot be opened again, as a socket, a pipe or terminal of
        another user, and anything on a system without /dev/fd; or it must not be, as a regular
        file, whose position is shared, and what is open for reading only.
    """
    if fcntl is not None:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        if flags & os.O_ACCMODE == os.O_RDONLY:
            return None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        with suppress(OSError):
            return os.open(f"/dev/fd/{descriptor}", os.O_WRONLY | NOT_BLOCKING)
    return None


class LossyStream:
    """A stream that never blocks: a write for which there is no room is dropped whole.

    @ivar dropped: writes that were dropped; callers reset it when they have reported them.
    @ivar error: the error of the last write that failed; None: there was only no room, if anything.
    """

    error: OSError | None = None

    def __init__(self, descriptor: int) -> None:
        """@param descriptor: of a file, a pipe, a terminal or a socket; others may share it.

        @raise OSError: if it is not open.
        """
        self.dropped = 0
        own = reopened(descriptor)
        self._descriptor = os.dup(descriptor) if own is None else own
        # A shared terminal with room for one byte blocks a write of two.
        self._piece = 1 if own is None and os.isatty(descriptor) else PIECE
        self._rest = b""
        self._poll: select.poll | None = None
        if hasattr(select, "poll") and not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            self._poll = select.poll()
            self._poll.register(self._descriptor, select.POLLOUT)

    def write(self, text: str) -> None:
        """Write a text or drop it; what is left of a text that is begun is written later."""
        if self.flush():
            self._rest = text.encode("utf-8", "backslashreplace")
            before = len(self._rest)
            self.flush()
            if len(self._rest) < before:
                return
            self._rest = b""
        self.dropped += 1

    def flush(self) -> bool:
        """Write the rest of the last text; return whether nothing is left of it."""
        while self._rest:
            try:
                if self._poll is not None and not self._poll.poll(0):
                    return False
                written = os.write(self._descriptor, self._rest[: self._piece])
            except BlockingIOError:
                return False
            except OSError as error:  # it will never be read
                self.error = error
                return False
            self._rest = self._rest[written:]
        return True

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)


def write_now(descriptor: int, text: str) -> None:
    """Write a text to a descriptor without blocking.

    @raise OSError: if it cannot be written whole: EAGAIN if there is no room.
    """
    stream = LossyStream(descriptor)
    try:
        stream.write(text)
        if stream.dropped or not stream.flush():
            raise stream.error or BlockingIOError(errno.EAGAIN, "nobody reads it")
    finally:
        stream.close()
