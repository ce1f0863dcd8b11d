"""A poem in memory, and how any number of sockets get it without a copy for each."""

from __future__ import annotations

import fcntl
import os
import socket
import weakref

TURN = 2 * 1024 * 1024
"""Most bytes for one reader in a reactor turn, so that a fast one starves nobody: nginx's
sendfile_max_chunk. A 10 MB poem costs as much CPU with 4 MiB, or without a limit; with 512 KiB 1.1
to 1.6 times as much (measured)."""

SHARED = 256 * 1024
"""Bytes from which on sendfile(2) costs less CPU than send(2): as much at 100 kB, 0.9 times at
300 kB, 0.6 to 0.7 times at 10 MB with several readers at once (measured)."""


class Poem:
    """The bytes of a poem, as sockets are sent them.

    A long one is also kept in an unnamed file in memory (memfd_create(2), Linux). Its pages are
    what sendfile(2) hands to the network: nothing is copied for a reader, and a reader of 10 MB
    that stalls takes about 100 kB of the machine's memory where a copy in its send buffer takes
    4.2 MB (measured). For that a long poem is in memory twice.

    @ivar data: the poem.
    @ivar view: the same, to cut without a copy.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.view = memoryview(data)
        self._shares = len(data) >= SHARED
        self._file: int | None = None

    def send(self, to: socket.socket, offset: int, limit: int, flags: int = 0) -> int:
        """Give the kernel what it has room for, from `offset` on and up to `limit` bytes.

        @return: how many bytes it took.
        @raise OSError: as from send(2): EAGAIN (BlockingIOError) where it has no room.
        """
        self.share()
        if self._file is None:
            return to.send(self.view[offset : offset + limit], flags)
        count = min(limit, len(self.data) - offset)
        return os.sendfile(to.fileno(), self._file, offset, count)

    def share(self) -> None:
        """Make the file of a long poem, unless that is done, or do without where there is none."""
        if not self._shares:
            return
        self._shares = False
        try:
            descriptor = os.memfd_create("poem", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except (AttributeError, OSError):
            return
        self._close = weakref.finalize(self, os.close, descriptor)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(self.data)
            # It can never change under a reader.
            seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        except OSError:
            self._close()
        else:
            self._file = descriptor

    def retire(self) -> None:
        """No new reader gets it: give the file up. Those in flight get the rest from the bytes."""
        self._shares = False
        if self._file is not None:
            self._file = None
            self._close()
