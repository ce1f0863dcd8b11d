"""Where a poem is written: a file, or an output that takes it as it comes."""

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
"""Seconds that what came in time has to be written, where it had to wait for what did not."""


class Sink(Protocol):
    """What a poem is written to. Each of its errors is an `OutputError`.

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

    def restart(self) -> bool:
        """Take back what was written; give whether that is possible."""

    def finish(self, *, whole: bool) -> Awaitable[None]:
        """Complete the output; a file that is not `whole` is given up."""

    def close(self) -> None:
        """Give up what is not finished, and keep nothing open."""


class Destination(Sink, Protocol):
    """A sink that spooled poems end up in."""

    def copy(self, spool: Spool) -> Awaitable[None]:
        """Copy a whole spool."""


def is_standard_output(path: str) -> bool:
    """Tell whether a path is standard output, by any of its names."""
    return path == "-" or _is_open_as(path, sys.__stdout__)


def _is_open_as(path: str, stream: TextIO | None) -> bool:
    try:
        return stream is not None and os.path.samestat(Path(path).stat(), os.fstat(stream.fileno()))
    except OSError:  # there is no such file, or the stream has none
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

    @param note: is told, in one line, what cannot be kept of an old file.
    @param max_time: seconds after which what is not taken is given up; None: any. A regular file
        takes all at once.
    @param terminal: control characters are made visible.
    @raise OutputError: where it cannot be written.
    """
    if path is None:
        with output_errors(STANDARD_OUTPUT):
            out = sys.stdout
            controls = VisibleControls(out.encoding) if terminal else None
            return output_to(reactor, out.fileno(), STANDARD_OUTPUT, max_time, controls)
    with output_errors(path), ExitStack() as stack:
        if _is_open_as(path, sys.stderr):
            return output_to(reactor, sys.stderr.fileno(), path, max_time)
        location = Location(path)
        stack.callback(location.close)
        if location.descriptor is not None:
            return output_to(reactor, location.descriptor, path, max_time)
        found = location.found
        if found is None or stat.S_ISREG(found.st_mode):
            file = AtomicFile(path, location, note)
            stack.pop_all()
            return file
        # Not blocking: nobody may ever read a FIFO.
        descriptor = location.open(location.name, os.O_WRONLY | NOT_BLOCKING)
        kind = ThreadedOutput if ONLY_SOCKETS else Output
        output = kind(reactor, descriptor, path, max_time)
        if not os.path.samestat(found, os.fstat(descriptor)):
            output.close()
            raise FileExistsError(errno.EEXIST, "something else was put there meanwhile")
        return output


def output_to(
    reactor: Any,
    descriptor: int,
    place: str,
    max_time: float | None = None,
    controls: VisibleControls | None = None,
) -> Output:
    """Make an output of a descriptor, which other processes may share.

    @raise OSError: where the descriptor is not open.
    """
    own = reopened(descriptor)
    regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    kind = Output if not ONLY_SOCKETS and (own is not None or regular) else ThreadedOutput
    return kind(reactor, os.dup(descriptor) if own is None else own, place, max_time, controls)


class Output(FileDescriptor):
    """A sink for a pipe, a terminal, a device or an open file, which take a poem as it comes.

    No write blocks: the description is our own, and the reactor tells when there is room; or it is
    of a regular file.

    @ivar size: bytes given to it.
    @ivar closed: fires with None when all is written and `loseConnection` was called, or fails with
        `OutputError`, for a BrokenPipeError where the reader went away.
    """

    connected = 1
    size = 0
    _waits = False

    def __init__(
        self,
        reactor: Any,
        descriptor: int,
        place: str,
        max_time: float | None = None,
        controls: VisibleControls | None = None,
    ) -> None:
        """@param descriptor: is closed in the end.

        @param place: what errors call it.
        @param max_time: seconds after which it is given up if it is stuck; None: any.
        @param controls: makes control characters visible.
        """
        super().__init__(reactor)
        self.closed: Deferred[None] = Deferred()
        self._descriptor = descriptor
        self._place = place
        self._error: Exception | None = None
        self._clock = reactor
        self._controls = controls
        self._timer: Any = None
        if max_time is not None:
            late = f"timed out: not all was taken within {max_time:g} s"
            self._timer = reactor.callLater(max_time, self._look, TimeoutError(late))

    @property
    def consumer(self) -> IConsumer:
        """Itself: it pauses its producer while its buffer is full."""
        return self

    def fileno(self) -> int:
        """The descriptor that the reactor waits for."""
        return self._descriptor

    def write(self, data: bytes) -> None:
        """Take some more: IConsumer.

        @raise OutputError: where the reactor cannot wait for room.
        """
        self.size += len(data)
        self._write(data if self._controls is None else self._controls.part(data))

    def _write(self, data: bytes) -> None:
        with output_errors(self._place):
            super().write(data)

    def startWriting(self) -> None:
        """Wait for room."""
        super().startWriting()  # type: ignore[no-untyped-call]
        self._waits = True

    def stopWriting(self) -> None:
        """Wait no longer. Where that is refused the reactor has lost track: end without it."""
        self._waits = False
        try:
            super().stopWriting()  # type: ignore[no-untyped-call]
        except Exception as refused:
            self._error = self._error or refused
            self._clock.callLater(0, self._end)

    def _end(self) -> None:
        if self.connected:
            self.connectionLost(Failure(CONNECTION_LOST))

    def writeSomeData(self, data: bytes) -> int | BaseException:
        """Write what there is room for."""
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._error = error
            return CONNECTION_LOST

    async def copy(self, spool: Spool) -> None:
        """Copy a whole spool, as there is room."""
        try:
            await FileSender().beginFileTransfer(spool, self)
        except (CancelledError, OutputError):
            raise
        except Exception:  # all that a FileSender says is that the output is gone
            await self.closed
        self._end_of_poem()

    def _end_of_poem(self) -> None:
        if self._controls is not None:
            self._write(self._controls.part(b"", last=True))

    def restart(self) -> bool:
        """Take nothing back: what is written is out."""
        return not self.size

    async def finish(self, *, whole: bool) -> None:  # noqa: ARG002
        """Wait until everything is written, also of a poem that is not whole."""
        self._end_of_poem()
        self.unregisterProducer()  # of a connection that the reactor could not let go
        with output_errors(self._place):
            self.loseConnection()
        await self.closed

    def _look(self, late: TimeoutError) -> None:
        """End at the deadline: at once if nobody reads, else with a moment for the rest."""
        if self._waits and not _has_room(self._descriptor):
            self._give_up(late)
        else:
            self._timer = self._clock.callLater(MOMENT, self._give_up, late)

    def _give_up(self, late: TimeoutError) -> None:
        self._error = late
        self.connectionLost(Failure(CONNECTION_LOST))

    def close(self) -> None:
        """Give up what is not written."""
        if not self.closed.called:
            self.closed.addErrback(lambda _: None)
            self.connectionLost(Failure(CONNECTION_DONE))

    def connectionLost(self, reason: Failure) -> None:
        """Close the descriptor, and fire `closed`, whatever fails meanwhile."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if isinstance(reason.value, OutputError):  # of a write by a producer that had to go on
            self._error = self._error or reason.value.reason
        if self._error is None and (not self.disconnecting or self.producer is not None):
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
        except OSError as refused:  # what was written, as for a quota (close(2))
            self._error = self._error or refused


class ThreadedOutput(Output):
    """An output whose writes may block: a thread does each of them.

    To keep it from blocking would keep it from blocking for them as well. So it is for a socket, a
    pipe or terminal of another user, and for whatever a reactor cannot wait for (Windows).
    """

    _busy = False
    _result: int | BaseException | None = None

    def startWriting(self) -> None:
        """Begin in the reactor's next turn, unless it has begun."""
        if not self._busy:
            self._busy = True
            self._clock.callLater(0, self._turn)

    def stopWriting(self) -> None:
        """Do nothing: no write is waited for."""

    def writeSomeData(self, data: bytes) -> int | BaseException:
        """Give the result of the write that a thread has done; else begin one, and give 0."""
        result, self._result = self._result, None
        if result is not None:
            return result
        self._busy = self._waits = True
        try:
            self._clock.callInThread(self._writeInThread, data)
        except RuntimeError as error:  # no thread can be started
            self._waits = False
            self._error = OSError(errno.EAGAIN, str(error))
            return CONNECTION_LOST
        return 0

    def _writeInThread(self, data: bytes) -> None:
        result = super().writeSomeData(data)
        if result == 0:  # others who share it have made it not block
            _wait_for_room(self._descriptor)
        self._clock.callFromThread(self._written, result)

    def _written(self, result: int | BaseException) -> None:
        self._waits = False
        if self.connected:
            self._result = result
            self._turn()
        else:
            self._close_descriptor()

    def _turn(self) -> None:
        """Write some more, if there is more."""
        self._busy = False
        if not self.connected:
            return
        gone = self.doWrite()
        if gone is not None:
            self.connectionLost(Failure(gone))
        elif self.dataBuffer:
            self.startWriting()

    def _close_descriptor(self) -> None:
        if not self._waits:  # else the number could become another file's meanwhile
            super()._close_descriptor()


def _has_room(descriptor: int) -> bool:
    """Tell whether the next write takes something; yes, where the system cannot tell."""
    return _poll(descriptor, 0)


def _wait_for_room(descriptor: int) -> None:
    """Wait until the next write takes something."""
    _poll(descriptor, None)


def _poll(descriptor: int, milliseconds: int | None) -> bool:
    try:
        writable = select.poll()
        writable.register(descriptor, select.POLLOUT)
        return bool(writable.poll(milliseconds))
    except (AttributeError, OSError):  # Windows has no poll
        return True
