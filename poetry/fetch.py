"""What `poetry get` does with its addresses: retries, order, files, standard output."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, NamedTuple

from twisted.internet import error as errors
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.protocols.basic import FileSender

from poetry.client import download
from poetry.errors import EmptyPoem, PoemMismatch, PoemTimedOut, PoemTruncated
from poetry.output import Output, atomic_file

SPOOL_BYTES = 1024 * 1024
"""Bytes of a poem that is not yet due that stay in memory; the rest goes to a temporary file."""

TRANSIENT = (PoemTruncated, EmptyPoem, PoemTimedOut, ConnectError, DNSLookupError)
"""What another try may mend."""

Source = tuple[str, IStreamClientEndpoint]


class Wanted(NamedTuple):
    """What is wanted of each address; `timeout` in seconds, `sha256` hexadecimal."""

    timeout: float
    max_bytes: int | None
    retries: int
    sha256: str | None


class Fetcher:
    """Fetches poems at the same time. Each method gives whether all of them arrived."""

    def __init__(
        self,
        reactor: Any,
        wanted: Wanted,
        advance: Callable[[int], object],
        note: Callable[[str], object],
        complain: Callable[[str], object],
    ) -> None:
        """@param advance: is told the bytes of each part that arrived.

        @param note: is told what a user may want to know, in one line.
        @param complain: is told each failure, in one line.
        """
        self._reactor = reactor
        self._wanted = wanted
        self._advance = advance
        self._note = note
        self._complain = complain

    async def to_stdout(self, sources: Sequence[Source]) -> bool:
        """One poem streams as it arrives; several are spooled, and printed in order when whole."""

        async def send(spool: IO[bytes]) -> None:
            try:
                await FileSender().beginFileTransfer(spool, output)
            except CancelledError:
                raise
            except Exception:  # all that a FileSender says is that the output is gone
                await output.closed

        try:
            output = Output(self._reactor, sys.stdout.fileno())
            if len(sources) == 1:
                arrived = await self._attempt(sources[0][0], self._fetch(sources[0], output))
            else:
                arrived = await self._in_order(sources, send)
            output.loseConnection()
            await output.closed
        except BrokenPipeError:
            return False  # `head` has enough: nothing to complain of
        except OSError as error:
            return self._failed("standard output", error)
        return arrived

    async def to_file(self, sources: Sequence[Source], path: Path) -> bool:
        """Several poems into one file, in order; no file unless all arrived."""

        async def append(spool: IO[bytes]) -> None:
            shutil.copyfileobj(spool, file)

        try:
            with atomic_file(path) as file:
                if not await self._in_order(sources, append):
                    raise _Incomplete
        except _Incomplete:
            return False
        except OSError as error:
            return self._failed(str(path), error)
        return True

    async def to_files(self, sources: Sequence[Source], paths: Sequence[Path]) -> bool:
        """Each poem into a file of its own; no file for one that did not arrive."""

        async def save(source: Source, path: Path) -> None:
            with atomic_file(path) as file:
                await self._fetch(source, file)

        jobs = [
            self._attempt(source[0], save(source, path), str(path))
            for source, path in zip(sources, paths, strict=True)
        ]
        with _started(jobs) as started:
            return all([await job for job in started])

    async def _in_order(
        self, sources: Sequence[Source], deliver: Callable[[IO[bytes]], Awaitable[object]]
    ) -> bool:
        async def spool(source: Source, file: IO[bytes]) -> None:
            await self._fetch(source, file)
            file.seek(0)

        with ExitStack() as stack:
            files = [stack.enter_context(SpooledTemporaryFile(SPOOL_BYTES)) for _ in sources]
            jobs = [
                self._attempt(source[0], spool(source, file), "temporary file")
                for source, file in zip(sources, files, strict=True)
            ]
            started = stack.enter_context(_started(jobs))
            complete = True
            for job, file in zip(started, files, strict=True):
                if await job:
                    await deliver(file)
                    file.close()
                else:
                    complete = False
            return complete

    async def _fetch(self, source: Source, sink: Any) -> None:
        """Download into a file or the `Output`, with the retries that are wanted."""
        address, _ = source
        retries = self._wanted.retries
        for attempt in count(1):  # pragma: no branch (it has no end)
            try:
                await self._fetch_once(source, sink)
            except TRANSIENT as error:
                if attempt > retries or not _restarted(sink):
                    raise
                from twisted.application.internet import backoffPolicy

                delay = backoffPolicy()(attempt)
                self._note(
                    f"{address}: {explain(error)}; retry {attempt} of {retries} in {delay:.1f} s"
                )
                await deferLater(self._reactor, delay)
            else:
                return

    async def _fetch_once(self, source: Source, sink: Any) -> None:
        wanted = self._wanted
        digest = sha256()

        def write(data: bytes) -> None:
            sink.write(data)
            if wanted.sha256 is not None:
                digest.update(data)
            self._advance(len(data))

        await download(
            source[1],
            write,
            timeout=wanted.timeout,
            max_bytes=wanted.max_bytes,
            output=sink if isinstance(sink, Output) else None,
            clock=self._reactor,
        )
        if not isinstance(sink, Output):
            sink.flush()
        if wanted.sha256 not in (None, digest.hexdigest()):
            raise PoemMismatch(str(wanted.sha256), digest.hexdigest())

    async def _attempt(
        self, address: str, work: Coroutine[Any, Any, None], place: str | None = None
    ) -> bool:
        """Do the work; say what went wrong, with `place` if it was ours."""
        try:
            await work
        except DNSLookupError as error:
            return self._failed(address, error)
        except OSError as error:
            return place is not None and self._failed(place, error)
        except CancelledError:
            raise
        except errors.ConnectingCancelledError as error:
            raise CancelledError from error
        except Exception as error:
            return self._failed(address, error)
        return True

    def _failed(self, subject: str, error: Exception) -> bool:
        self._complain(f"{subject}: {explain(error)}")
        return False


class _Incomplete(Exception):
    """Not all poems arrived, and that has been said."""


@contextmanager
def _started(jobs: Sequence[Coroutine[Any, Any, bool]]) -> Iterator[list[Deferred[bool]]]:
    """Run coroutines at the same time, and none beyond the block."""
    started = [Deferred.fromCoroutine(job) for job in jobs]
    try:
        yield started
    finally:
        for job in started:
            job.addErrback(lambda _: None)  # it was cancelled, or the block has failed before it
            job.cancel()


def _restarted(sink: Any) -> bool:
    """Take back what was written, where that can be."""
    if isinstance(sink, Output):
        return not sink.used
    sink.seek(0)
    sink.truncate()
    return True


def explain(error: Exception) -> str:
    """What was wrong, in a few words, and what to do about it where that is known."""
    if isinstance(error, DNSLookupError):
        return f"no such host ({error})"
    if isinstance(error, errors.ConnectionRefusedError):
        return "connection refused: is a server running there?"
    if isinstance(error, errors.TimeoutError):
        return "no connection in time: nothing answers there"
    if isinstance(error, ConnectError):
        return f"no connection: {' '.join(map(str, error.args)) or error}"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if type(error).__name__ == "VerificationError":
        return "refused: the server's certificate is for another name"
    if type(error).__module__ == "OpenSSL.SSL" and error.args and error.args[0]:
        return f"refused: TLS failed: {'; '.join(str(e[-1]) for e in error.args[0])}"
    return str(error)
