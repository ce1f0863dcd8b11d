"""Standard streams that nobody may be reading: they must hold nothing up."""

from __future__ import annotations

import errno
import os
import select
import stat
from contextlib import suppress

from poetry.system.features import NOT_BLOCKING

PIECE = getattr(select, "PIPE_BUF", 4096)
"""Bytes at a time: what a pipe that polls as writable takes at once (pipe(7)); on Windows any."""


def own_description(descriptor: int) -> int:
    """A descriptor that need not block, without making another process's share of it non-blocking.

    A regular file is shared instead, for its position, and so is what cannot be opened once more.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        with suppress(OSError):
            return os.open(f"/dev/fd/{descriptor}", os.O_WRONLY | NOT_BLOCKING)
    return os.dup(descriptor)


class LossyStream:
    """Takes text and never waits: what there is no room for is dropped, by whole writes.

    @ivar dropped: how many writes were, and nobody was told of yet.
    @ivar error: what the last write failed with; None: there was no room, or nothing is wrong.
    """

    error: OSError | None = None

    def __init__(self, descriptor: int) -> None:
        """@param descriptor: of a file, a pipe, a terminal or a socket; others may share it.

        @raise OSError: where it is not open.
        """
        self.dropped = 0
        self._descriptor = own_description(descriptor)
        self._rest = b""
        self._poll: select.poll | None = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(self._descriptor, select.POLLOUT)

    def write(self, text: str) -> None:
        """Write it all, now or as soon as there is room, or nothing of it."""
        if self.flush():
            self._rest = text.encode("utf-8", "backslashreplace")
            before = len(self._rest)
            self.flush()
            if len(self._rest) < before:
                return
            self._rest = b""
        self.dropped += 1

    def flush(self) -> bool:
        """Write what is left of the last write; say whether that is out."""
        while self._rest:
            try:
                if self._poll is not None and not self._poll.poll(0):
                    return False
                written = os.write(self._descriptor, self._rest[:PIECE])
            except BlockingIOError:
                return False
            except OSError as error:  # nobody will ever read it
                self.error = error
                return False
            self._rest = self._rest[written:]
        return True

    def close(self) -> None:
        """Give the descriptor up."""
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
