"""Standard streams that perhaps nobody reads: writing to them never waits."""

from __future__ import annotations

import errno
import os
import select
import stat
from contextlib import suppress

from poetry.system.features import NOT_BLOCKING

PIECE = getattr(select, "PIPE_BUF", 4096)
"""Bytes at a time: what a pipe that polls as writable takes at once (pipe(7)); on Windows any."""


def reopened(descriptor: int) -> int | None:
    """Open a pipe, a terminal or a device once more, as a description that never blocks.

    The flag that keeps writes from blocking belongs to the open file description, which other
    processes share: to set it there would be an error of theirs.

    @return: a descriptor; None: there is none to be had. A regular file is shared for its position;
        a socket, and a pipe or terminal of another user, cannot be opened again; nor can anything
        where there is no /dev/fd.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        with suppress(OSError):
            return os.open(f"/dev/fd/{descriptor}", os.O_WRONLY | NOT_BLOCKING)
    return None


class LossyStream:
    """A stream that never waits: a write that there is no room for is dropped whole.

    @ivar dropped: how many writes were, and nobody was told of yet.
    @ivar error: what the last write failed with; None: there was no room, or nothing is wrong.
    """

    error: OSError | None = None

    def __init__(self, descriptor: int) -> None:
        """@param descriptor: of a file, a pipe, a terminal or a socket; others may share it.

        @raise OSError: where it is not open.
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
        """Write a text, now or as soon as there is room, or drop it."""
        if self.flush():
            self._rest = text.encode("utf-8", "backslashreplace")
            before = len(self._rest)
            self.flush()
            if len(self._rest) < before:
                return
            self._rest = b""
        self.dropped += 1

    def flush(self) -> bool:
        """Write the rest of the last write; give whether all of it is out."""
        while self._rest:
            try:
                if self._poll is not None and not self._poll.poll(0):
                    return False
                written = os.write(self._descriptor, self._rest[: self._piece])
            except BlockingIOError:
                return False
            except OSError as error:  # nobody will ever read it
                self.error = error
                return False
            self._rest = self._rest[written:]
        return True

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)


def say(descriptor: int, text: str) -> None:
    """Write some text now, all of it.

    @raise OSError: where it cannot be written: EAGAIN where there is no room.
    """
    stream = LossyStream(descriptor)
    try:
        stream.write(text)
        if stream.dropped:
            raise stream.error or BlockingIOError(errno.EAGAIN, "nobody reads it")
    finally:
        stream.close()
