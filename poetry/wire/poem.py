"""A poem in memory, and how any number of sockets get it without a copy for each."""

from __future__ import annotations

import errno
import os
import socket
import weakref

from poetry.errors import EmptyPoem
from poetry.system.features import UNIX, fcntl, resource
from poetry.wire.kernel import FULL, call_failed
from poetry.wire.pages import collapse

SHARED = 256 * 1024
"""Bytes from which on sendfile(2) costs less CPU than send(2): as much at 100 kB, 0.9 times at
300 kB, 0.6 to 0.7 times at 10 MB with several readers at once (measured)."""


class Poem:
    """The bytes of a poem, as sockets are sent them.

    A long one is also kept in an unnamed file in memory (memfd_create(2), Linux), from its second
    reader on. Its pages are what sendfile(2) hands to the network: nothing is copied for a reader,
    and a reader of 10 MB that stalls takes about 100 kB of the machine's memory where a copy in its
    send buffer takes 4.2 MB (measured). For that a long poem is in memory twice.

    A Unix socket gets a copy: it costs the same there, the buffers are small, and after a large
    sendfile(2) the kernel would not show the progress of a slow reader.

    @ivar data: the poem.
    @ivar view: the same, to cut without a copy.
    @ivar shared: whether `share` was called: a reload then shares the next poem too, and after
        `retire` it keeps the bytes from getting a file again.
    """

    def __init__(self, data: bytes) -> None:
        """@raise TypeError: for anything but bytes.

        @raise EmptyPoem: for `b""`.
        """
        if not isinstance(data, bytes):
            raise TypeError(f"a poem is bytes or None, not {type(data).__name__}")
        if not data:
            raise EmptyPoem("a poem has at least one byte; None is for a side that has none")
        self.data = data
        self.view = memoryview(data)
        self.shared = False
        self._readers = 0
        self._file: int | None = None

    def send(self, to: socket.socket, offset: int, limit: int, flags: int = 0) -> int:
        """Hand the kernel up to `limit` bytes from `offset` on.

        @param flags: as of send(2), where it is send(2).
        @return: how many bytes it took; 0 where it has no room.
        @raise OSError: where the connection is broken.
        """
        file = self._file_for(to, offset)
        try:
            if file is not None:
                count = min(limit, len(self.data) - offset)
                return os.sendfile(to.fileno(), file, offset, count)
            return to.send(self.view[offset : offset + limit], flags)
        except OSError as error:
            if call_failed(error) and error.errno in FULL:
                return 0
            raise

    def _file_for(self, to: socket.socket, offset: int) -> int | None:
        """Return the file to send to a socket; None: send the bytes, as to the first reader."""
        if len(self.data) < SHARED or to.family == UNIX:
            return None
        if offset == 0:
            self._readers += 1
        if self._readers > 1:
            self.share()
        return self._file

    def share(self) -> None:
        """Make the file of a long poem, once: a service does so before the first reader."""
        if not self.shared:
            self.shared = True
            if len(self.data) >= SHARED:
                self._file = _in_memory(self.data)
            if self._file is not None:
                self._close = weakref.finalize(self, os.close, self._file)

    def retire(self) -> None:
        """Close the file: from now on readers are sent the bytes."""
        self.shared = True
        if self._file is not None:
            self._file = None
            self._close()


def _in_memory(data: bytes) -> int | None:
    """Make a file in memory that can never change; None if the system has none."""
    try:
        descriptor = os.memfd_create("poem", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (AttributeError, OSError):
        return None
    try:
        if 2 * descriptor > resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
            raise OSError(errno.EMFILE, "descriptors are scarce, and readers need them more")
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        collapse(descriptor, len(data))
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        # Try sendfile now, and not in the middle of a transfer.
        probe, other = socket.socketpair()
        with probe, other:
            os.sendfile(probe.fileno(), descriptor, 0, 1)
    except (AttributeError, OSError):
        os.close(descriptor)
        return None
    return descriptor
