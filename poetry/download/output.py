"""Where a poem is written: a file, or what takes it as it comes."""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Any, Protocol, TextIO

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.protocols.basic import FileSender
from twisted.python.failure import Failure

from poetry.download.files import AtomicFile, Unwritten, blaming, status_of
from poetry.system.features import NOT_BLOCKING, ONLY_SOCKETS
from poetry.system.streams import own_description

STANDARD_OUTPUT = "standard output"

MOMENT = 1.0
"""Seconds that what came in time has to be written, where it had to wait for what did not."""


class Sink(Protocol):
    """What a poem is written to. Whatever goes wrong with it is an `Unwritten`.

    @ivar size: bytes written since the start, or the last restart.
    @ivar consumer: what holds the sender back, where anything does.
    """

    @property
    def size(self) -> int:
        """See above."""

    @property
    def consumer(self) -> IConsumer | None:
        """See above."""

    def write(self, data: bytes) -> object:
        """Take some more."""

    def copy(self, file: IO[bytes]) -> Awaitable[None]:
        """Take all that is left in a file."""

    def restart(self) -> bool:
        """Take back what was written; whether that can be."""

    def finish(self, *, whole: bool) -> Awaitable[None]:
        """All is written; a file that is not `whole` is given up."""

    def close(self) -> None:
        """Give up what is not finished, and keep nothing open."""


def is_standard_output(path: str) -> bool:
    """Whether who writes there writes to standard output, by whatever name."""
    return path == "-" or _is_open_as(path, sys.__stdout__)


def _is_open_as(path: str, stream: TextIO | None) -> bool:
    try:
        return stream is not None and os.path.samestat(Path(path).stat(), os.fstat(stream.fileno()))
    except OSError:  # there is no such file, or the stream has none
        return False


def open_sink(
    reactor: Any, path: str | None, note: Callable[[str], object], max_time: float | None = None
) -> Sink:
    """Standard output (None), a file that appears when it is whole, or what is no regular file.

    @param note: is told, in one line, what cannot be kept of an old file.
    @param max_time: seconds after which what is not taken is given up; None: any. A regular file
        takes all at once.
    @raise Unwritten: where it cannot be written.
    """
    if path is None:
        with blaming(STANDARD_OUTPUT):
            descriptor = own_description(sys.stdout.fileno())
            return Output(reactor, descriptor, STANDARD_OUTPUT, max_time)
    with blaming(path):
        if _is_open_as(path, sys.stderr):
            return Output(reactor, own_description(sys.stderr.fileno()), path, max_time)
        old = status_of(path)
        if old is None or stat.S_ISREG(old.st_mode):
            return AtomicFile(path, note)
        # Not blocking: nobody may ever read a FIFO.
        descriptor = os.open(path, os.O_WRONLY | NOT_BLOCKING)
        return Output(reactor, descriptor, path, max_time)


class Output(FileDescriptor):
    """A Sink for a pipe, a terminal, a device or an open file. A full pipe blocks no reactor.

    @ivar closed: fires with None when all is written and `loseConnection` was called, or fails with
        `Unwritten`, for a BrokenPipeError where the reader went away.
    """

    connected = 1
    size = 0

    def __init__(
        self, reactor: Any, descriptor: int, place: str, max_time: float | None = None
    ) -> None:
        """@param descriptor: is closed in the end.

        @param place: what errors call it.
        @param max_time: seconds after which it is given up if it is stuck; None: any.
        """
        super().__init__(reactor)
        self.closed: Deferred[None] = Deferred()
        self._descriptor = descriptor
        self._place = place
        self._error: OSError | None = None
        self._clock = reactor
        self._timer: Any = None
        if max_time is not None:
            late = f"timed out: not all was taken within {max_time:g} s"
            self._timer = reactor.callLater(max_time, self._look, TimeoutError(late))

    @property
    def consumer(self) -> IConsumer:
        """Itself: it pauses who writes more than it has room for."""
        return self

    def fileno(self) -> int:
        """For the reactor."""
        return self._descriptor

    def write(self, data: bytes) -> None:
        """Take some more: IConsumer."""
        self.size += len(data)
        super().write(data)

    def startWriting(self) -> None:
        """Have the reactor tell when there is room. Where it cannot, each write waits for some."""
        if ONLY_SOCKETS:
            self._clock.callLater(0, self._writeWaiting)
        else:
            super().startWriting()  # type: ignore[no-untyped-call]

    def _writeWaiting(self) -> None:
        if not self.connected:
            return
        gone = self.doWrite()
        if gone is not None:
            self.connectionLost(Failure(gone))
        elif self.dataBuffer:
            self.startWriting()

    def writeSomeData(self, data: bytes) -> int | BaseException:
        """Write what there is room for."""
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._error = error
            return CONNECTION_LOST

    async def copy(self, file: IO[bytes]) -> None:
        """Take all that is left in a file, as there is room."""
        try:
            await FileSender().beginFileTransfer(file, self)
        except CancelledError:
            raise
        except Exception:  # all that a FileSender says is that the output is gone
            await self.closed

    def restart(self) -> bool:
        """What is out is out."""
        return not self.size

    async def finish(self, *, whole: bool) -> None:  # noqa: ARG002
        """Wait until all is out, which what is not whole is as well."""
        self.loseConnection()
        await self.closed

    def _look(self, late: TimeoutError) -> None:
        """Time is up: give up what nobody takes; what is taken has a moment for the rest."""
        if self in self._clock.getWriters() and not _has_room(self._descriptor):
            self._give_up(late)
        else:
            self._timer = self._clock.callLater(MOMENT, self._give_up, late)

    def _give_up(self, late: TimeoutError) -> None:
        self._error = late
        self.connectionLost(Failure(CONNECTION_LOST))

    def close(self) -> None:
        """Give up what is not out."""
        if not self.closed.called:
            self.closed.addErrback(lambda _: None)
            self.connectionLost(Failure(CONNECTION_DONE))

    def connectionLost(self, reason: Failure) -> None:
        """All is written, or no more can be."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        unwritten = self._error is not None or not self.disconnecting or self.producer is not None
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        os.close(self._descriptor)
        if unwritten:
            broken = BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            self.closed.errback(Unwritten(self._place, self._error or broken))
        else:
            self.closed.callback(None)


def _has_room(descriptor: int) -> bool:
    """Whether the next write takes something."""
    writable = select.poll()
    writable.register(descriptor, select.POLLOUT)
    return bool(writable.poll(0))
