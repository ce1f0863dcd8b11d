"""Outputs of a download: a file that appears when whole, or a stream such as a pipe."""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, TextIO

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.protocols.basic import FileSender
from twisted.python.failure import Failure

from poetry.download.files import AtomicFile, OutputError, Spool, output_errors
from poetry.download.location import Location
from poetry.download.visible import VisibleControls
from poetry.system.features import NOT_BLOCKING, ONLY_SOCKETS
from poetry.system.streams import reopened

STANDARD_OUTPUT = "standard output"

MOMENT = 1.0
"""Seconds after the deadline in which what arrived in time may still be written."""


class Sink(Protocol):
    """An output of a download. Each of its errors is an `OutputError`.

    @ivar size: bytes written since the start, or the last restart.
    @ivar consumer: what holds the sender back while it is full; None: the sink is never full.
    """

    @property
    def size(self) -> int:
        """See above."""

    @property
    def consumer(self) -> IConsumer | None:
        """See above."""

    def write(self, data: bytes) -> object:
        """Write a chunk."""

    def restart(self) -> bool:
        """Discard what was written, for a new attempt; return whether that is possible."""

    def finish(self, *, whole: bool) -> Awaitable[None]:
        """Complete the output; a file appears only if it is `whole`."""

    def close(self) -> None:
        """Discard what is not finished, and close what is open."""


class Destination(Sink, Protocol):
    """A sink to which whole spools can be copied."""

    def copy(self, spool: Spool) -> Awaitable[None]:
        """Copy a whole spool."""


def is_standard_output(path: str) -> bool:
    """Check whether a path is standard output, by any of its names."""
    return path == "-" or _is_open_as(path, sys.__stdout__)


def _is_open_as(path: str, stream: TextIO | None) -> bool:
    try:
        return stream is not None and os.path.samestat(Path(path).stat(), os.fstat(stream.fileno()))
    except OSError:  # no such file, or a stream without a descriptor
        return False


def open_sink(
    reactor: Any,
    path: str | None,
    note: Callable[[str], object],
    max_time: float | None = None,
    *,
    terminal: bool = False,
) -> Destination:
    """Open standard output (None), a file that appears when it is whole, or a special file.

    @param note: is called with what cannot be kept of an old file, in one line.
    @param max_time: seconds after which what is not written is discarded; None: any. A regular
        file never waits.
    @param terminal: make control characters visible.
    @raise OutputError: if it cannot be opened.
    """
    if path is None:
        with output_errors(STANDARD_OUTPUT):
            out = sys.stdout
            controls = VisibleControls(out.encoding) if terminal else None
            return make_output(reactor, out.fileno(), STANDARD_OUTPUT, max_time, controls)
    with output_errors(path), ExitStack() as stack:
        location = Location(path)
        stack.callback(location.close)
        if _is_open_as(path, sys.stderr):
            return make_output(reactor, sys.stderr.fileno(), path, max_time)
        if location.descriptor is not None:
            return make_output(reactor, location.descriptor, path, max_time)
        found = location.found
        if found is None or stat.S_ISREG(found.st_mode):
            file = AtomicFile(path, location, note)
            stack.pop_all()
            return file
        descriptor = _open_to_write(location, found)
        kind = ThreadedOutput if ONLY_SOCKETS else Output
        output = kind(reactor, descriptor, path, max_time)
        if not os.path.samestat(found, os.fstat(descriptor)):
            output.close()
            raise FileExistsError(errno.EEXIST, "something else was put there meanwhile")
        return output


def _open_to_write(location: Location, found: os.stat_result) -> int:
    """Open what is no regular file, without waiting for the reader of a FIFO."""
    try:
        return location.open(location.name, os.O_WRONLY | NOT_BLOCKING)
    except OSError as error:
        if error.errno == errno.ENXIO and stat.S_ISFIFO(found.st_mode):
            raise OSError(error.errno, "nobody reads from this FIFO yet") from error
        raise


def make_output(
    reactor: Any,
    descriptor: int,
    place: str,
    max_time: float | None = None,
    controls: VisibleControls | None = None,
) -> Output:
    """Make an output for a descriptor, which other processes may share.

    @raise OSError: if the descriptor is not open.
    """
    own = reopened(descriptor)
    regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    kind = Output if not ONLY_SOCKETS and (own is not None or regular) else ThreadedOutput
    return kind(reactor, os.dup(descriptor) if own is None else own, place, max_time, controls)


class Output(FileDescriptor):
    """A sink for a pipe, a terminal, a device or an open file, to which a poem goes as it comes.

    No write blocks: the description is our own and does not block, or it is of a regular file.

    @ivar size: bytes passed to `write`.
    @ivar closed: fires with None when everything is written after `loseConnection`; fails with
        `OutputError`, whose reason is a BrokenPipeError if the reader went away.
    """

    reactor: Any
    connected = 1
    size = 0
    _unwritten = 0  # bytes
    _write_pending = False

    def __init__(
        self,
        reactor: Any,
        descriptor: int,
        place: str,
        max_time: float | None = None,
        controls: VisibleControls | None = None,
    ) -> None:
        """@param descriptor: is closed in the end.

        @param place: the name of the output in errors.
        @param max_time: seconds after which what is not written is discarded; None: any.
        @param controls: makes control characters visible; None: they stay as they are.
        """
        super().__init__(reactor)
        self.closed: Deferred[None] = Deferred()
        self._descriptor = descriptor
        self._place = place
        self._error: Exception | None = None
        self._controls = controls
        self._timer: Any = None
        if max_time is not None:
            late = f"timed out: not all was taken within {max_time:g} s"
            self._timer = reactor.callLater(max_time, self._deadline_passed, TimeoutError(late))

    @property
    def consumer(self) -> IConsumer:
        """This output: it pauses its producer while its buffer is full."""
        return self

    def fileno(self) -> int:
        """The descriptor that the reactor waits for."""
        return self._descriptor

    def write(self, data: bytes) -> None:
        """Write a chunk (IConsumer).

        @raise OutputError: if the reactor cannot wait for room.
        """
        self.size += len(data)
        self._write(data if self._controls is None else self._controls.convert(data))

    def _write(self, data: bytes) -> None:
        self._unwritten += len(data)
        with output_errors(self._place):
            super().write(data)

    def startWriting(self) -> None:
        """Wait for room in the output."""
        super().startWriting()  # type: ignore[no-untyped-call]
        self._write_pending = True

    def stopWriting(self) -> None:
        """Stop waiting for room; if the reactor refuses, close without it."""
        self._write_pending = False
        try:
            super().stopWriting()  # type: ignore[no-untyped-call]
        except Exception as refused:
            self._error = self._error or refused
            self.reactor.callLater(0, self._end)

    def _end(self) -> None:
        if self.connected:
            self.connectionLost(Failure(CONNECTION_LOST))

    def writeSomeData(self, data: bytes) -> int | BaseException:
        """Write as much as there is room for."""
        try:
            written = os.write(self._descriptor, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._error = error
            return CONNECTION_LOST
        self._unwritten -= written
        return written

    async def copy(self, spool: Spool) -> None:
        """Copy a whole spool, as there is room."""
        try:
            await FileSender().beginFileTransfer(spool, self)
        except (CancelledError, OutputError):
            raise
        except Exception:  # a FileSender reports only that the output is gone
            await self.closed
        self._flush_controls()

    def _flush_controls(self) -> None:
        if self._controls is not None:
            self._write(self._controls.convert(b"", last=True))

    def restart(self) -> bool:
        """Return whether nothing is written yet: what is written cannot be discarded."""
        return not self.size

    async def finish(self, *, whole: bool) -> None:
        """Wait until everything is written, also if the poem is not whole.

        On a terminal an error is next: it has a line of its own.
        """
        self._flush_controls()
        if not whole and self._controls is not None and self._controls.in_a_line:
            self._write(b"\n")
        self.unregisterProducer()  # if its connection could not be closed
        with output_errors(self._place):
            self.loseConnection()
        await self.closed

    def _deadline_passed(self, late: TimeoutError) -> None:
        """Abort at once if the reader does not read, else after a moment for the rest."""
        if self._write_pending and not _wait_for_room(self._descriptor, 0):
            self._give_up(late)
        else:
            self._timer = self.reactor.callLater(MOMENT, self._give_up, late)

    def _give_up(self, late: TimeoutError) -> None:
        self._error = late
        self.connectionLost(Failure(CONNECTION_LOST))

    def close(self) -> None:
        """Discard what is not written, and close the descriptor."""
        if not self.closed.called:
            self.closed.addErrback(lambda _: None)
            self.connectionLost(Failure(CONNECTION_DONE))

    def connectionLost(self, reason: Failure) -> None:
        """Close the descriptor, and fire `closed`."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if isinstance(reason.value, OutputError):  # a write failed
            self._error = self._error or reason.value.reason
        finished = self.disconnecting and self.producer is None and not self._unwritten
        if self._error is None and not finished:
            self._error = BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        self._close_descriptor()
        if self._error is not None:
            self.closed.errback(OutputError(self._place, self._error))
        else:
            self.closed.callback(None)

    def _close_descriptor(self) -> None:
        try:
            os.close(self._descriptor)
        except OSError as refused:  # an error of an earlier write, as for a quota (close(2))
            self._error = self._error or refused


class ThreadedOutput(Output):
    """An output whose writes may block: each is done in a thread.

    It is for what other processes share and cannot be reopened (a socket, a pipe or terminal of
    another user), as O_NONBLOCK would be set for them as well; and for what a reactor cannot wait
    for (Windows).
    """

    _busy = False
    _result: int | BaseException | None = None

    def startWriting(self) -> None:
        """Begin to write in the next iteration of the reactor, unless that has begun."""
        if not self._busy:
            self._busy = True
            self.reactor.callLater(0, self._write_next)

    def stopWriting(self) -> None:
        """Do nothing: the reactor does not watch this output."""

    def writeSomeData(self, data: bytes) -> int | BaseException:
        """Return the result of the write that a thread has done; else begin one, and return 0."""
        result, self._result = self._result, None
        if result is not None:
            return result
        self._busy = self._write_pending = True
        try:
            self.reactor.callInThread(self._writeInThread, data)
        except RuntimeError as error:  # no thread can be started
            self._write_pending = False
            self._error = OSError(errno.EAGAIN, str(error))
            return CONNECTION_LOST
        return 0

    def _writeInThread(self, data: bytes) -> None:
        result = super().writeSomeData(data)
        if result == 0:  # another process that shares it has set O_NONBLOCK
            _wait_for_room(self._descriptor)
        self.reactor.callFromThread(self._written, result)

    def _written(self, result: int | BaseException) -> None:
        self._write_pending = False
        if self.connected:
            self._result = result
            self._write_next()
        else:
            self._close_descriptor()

    def _write_next(self) -> None:
        """Write the next chunk, if there is one."""
        self._busy = False
        if not self.connected:
            return
        gone = self.doWrite()
        if gone is not None:
            self.connectionLost(Failure(gone))
        elif self.dataBuffer:
            self.startWriting()

    def _close_descriptor(self) -> None:
        if not self._write_pending:  # else the thread might write to another file of that number
            super()._close_descriptor()


def _wait_for_room(descriptor: int, milliseconds: int | None = None) -> bool:
    """Wait until there is room to write, or for some milliseconds.

    @return: whether there is room; True if the system cannot tell.
    """
    try:
        writable = select.poll()
        writable.register(descriptor, select.POLLOUT)
        return bool(writable.poll(milliseconds))
    except (AttributeError, OSError):  # Windows has no poll
        return True
