"""Downloads for `poetry get`: retries, the order of the poems, and error messages."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from hashlib import sha256
from itertools import count
from typing import Any, NamedTuple

from twisted.internet import error as errors
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from poetry.client import ConsumerGone, download, with_deadline
from poetry.download.files import OutputError, Spool
from poetry.download.output import STANDARD_OUTPUT, Destination, Sink, open_sink
from poetry.errors import (
    EmptyPoem,
    PoemMismatch,
    PoemTimedOut,
    PoemTruncated,
)
from poetry.system.descriptors import hint_of_limit
from poetry.system.endpoint_strings import TLS_TYPES, type_of
from poetry.text import is_of_openssl, text_of

TRANSIENT = (PoemTruncated, EmptyPoem, PoemTimedOut, ConnectError, DNSLookupError)
"""Errors after which another attempt may succeed."""

_TLS_HINTS = {
    "certificate verify failed": ": it has expired, or none of the authorities has signed it"
    " (--cacert FILE names another for tls:HOST:PORT)",
    "wrong version number": ": it speaks no TLS there",
}


class Source(NamedTuple):
    """The source of a poem: its endpoint, and its address as the user wrote it.

    @ivar report: is called with each event of the download, in one line.
    """

    address: str
    endpoint: IStreamClientEndpoint
    report: Callable[[str], object] = lambda _: None


class DownloadOptions(NamedTuple):
    """The options of each download.

    @ivar timeout: longest wait to connect, and between bytes, in seconds.
    @ivar max_time: longest time for all of it, in seconds; None: any.
    @ivar max_bytes: fail rather than accept more; None: any.
    @ivar retries: attempts after the first one.
    @ivar sha256: the digest that the poem must have, hexadecimal; None: any.
    @ivar text_only: fail rather than write NUL bytes to a terminal.
    """

    timeout: float
    max_time: float | None
    max_bytes: int | None
    retries: int
    sha256: str | None
    text_only: bool


class Fetcher:
    """Fetches poems concurrently. Each public method returns whether all of them arrived."""

    def __init__(
        self,
        reactor: Any,
        options: DownloadOptions,
        advance: Callable[[int], object],
        note: Callable[[str], object],
        complain: Callable[[str], object],
        wrote: Callable[[str], object] | None = None,
    ) -> None:
        """@param advance: is called with the size of each chunk that arrived, in bytes.

        @param note: is called with each note for the user, in one line.
        @param complain: is called with each failure, in one line.
        @param wrote: is called with what was written to a file, in one line; None: no report.
        """
        self._reactor = reactor
        self._options = options
        self._advance = advance
        self._note = note
        self._complain = complain
        self._wrote = wrote

    async def fetch(self, sources: Sequence[Source], path: str | None) -> bool:
        """Fetch all poems into one file, or to standard output (None).

        One poem is written as it arrives; several are spooled, and written in order when whole. A
        regular file appears only if all arrived.
        """
        return await self._report_output_error(self._fetch_into(sources, path))

    async def fetch_each(self, sources: Sequence[Source], paths: Sequence[str]) -> bool:
        """Fetch each poem into a file of its own."""
        jobs = [self.fetch([source], path) for source, path in zip(sources, paths, strict=True)]
        with _started(jobs) as started:
            return all([await job for job in started])

    async def _fetch_into(self, sources: Sequence[Source], path: str | None) -> bool:
        options = self._options
        opened = open_sink(
            self._reactor, path, self._note, options.max_time, terminal=options.text_only
        )
        with closing(opened) as sink:
            if len(sources) == 1:
                whole = await self._fetch_source(sources[0], sink)
            else:
                whole = await self._fetch_in_order(sources, sink)
                await sink.finish(whole=whole)
            if whole and path is not None and self._wrote is not None:
                self._wrote(f"Wrote {path}: {sink.size:,} bytes")
            return whole

    async def _fetch_in_order(self, sources: Sequence[Source], sink: Destination) -> bool:
        with ExitStack() as stack:
            spools = [stack.enter_context(closing(Spool())) for _ in sources]
            jobs = [
                self._report_output_error(self._fetch_source(source, spool))
                for source, spool in zip(sources, spools, strict=True)
            ]
            started = stack.enter_context(_started(jobs))
            whole = True
            for job, spool in zip(started, spools, strict=True):
                if await job:
                    await sink.copy(spool)
                    spool.check()
                else:
                    whole = False
                spool.close()
            return whole

    async def _fetch_source(self, source: Source, sink: Sink) -> bool:
        """Download before the deadline, finish the sink, and report an error of the source after
        what is written of its poem.

        @return: whether the whole poem was written.
        """
        work, max_time = self._download_with_retries(source, sink), self._options.max_time
        failure: Exception | None = None
        try:
            await with_deadline(work, max_time, self._reactor, lambda: sink.size)
        except (CancelledError, OutputError):
            raise
        except Exception as error:
            failure = error
        try:
            await sink.finish(whole=failure is None)
        finally:
            if failure is not None and not isinstance(failure, ConsumerGone):
                self._report_failure(source.address, failure)
        return failure is None

    async def _download_with_retries(self, source: Source, sink: Sink) -> None:
        """Download, and try again as often as the options allow."""
        retries = self._options.retries
        for attempt in count(1):  # pragma: no branch (it has no end)
            try:
                await self._download_once(source, sink)
            except TRANSIENT as error:
                if attempt > retries or not sink.restart():
                    raise
                from twisted.application.internet import backoffPolicy

                delay = backoffPolicy()(attempt)
                self._note(
                    f"{source.address}: {explain_fetch_failure(error).rstrip('.?')};"
                    f" retry {attempt} of {retries} in {delay:.1f} s"
                )
                await deferLater(self._reactor, delay)
            else:
                return

    async def _download_once(self, source: Source, sink: Sink) -> None:
        options = self._options
        digest = sha256()

        def write(data: bytes) -> None:
            if options.text_only and b"\0" in data:
                raise _NotText(shown=not sink.restart())
            sink.write(data)
            if options.sha256 is not None:
                digest.update(data)
            self._advance(len(data))

        await download(
            source.endpoint,
            write,
            timeout=options.timeout,
            max_bytes=options.max_bytes,
            consumer=sink.consumer,
            clock=self._reactor,
            report=source.report,
        )
        if options.sha256 not in (None, digest.hexdigest()):
            raise PoemMismatch(str(options.sha256), digest.hexdigest())

    async def _report_output_error(self, work: Coroutine[Any, Any, bool]) -> bool:
        """Await the work, and report an error of its output."""
        try:
            return await work
        except OutputError as error:
            if error.place == STANDARD_OUTPUT and isinstance(error.reason, BrokenPipeError):
                return False  # the reader has enough, as `head` does: no error
            return self._report_failure(error.place, error.reason)

    def _report_failure(self, subject: str, error: Exception) -> bool:
        self._complain(
            f"{subject}: {explain_fetch_failure(error)}{hint_of_silence(subject, error)}"
        )
        return False


class _NotText(Exception):
    """The poem has NUL bytes, as no text has; `shown`: whether some of it is on the terminal."""

    def __init__(self, *, shown: bool) -> None:
        super().__init__(shown)
        self.shown = shown

    def __str__(self) -> str:
        shown = "shown no further" if self.shown else "not shown"
        return f"{shown}: it is no text (NUL bytes); -o - prints it all the same, -o FILE keeps it"


@contextmanager
def _started(jobs: Sequence[Coroutine[Any, Any, bool]]) -> Iterator[list[Deferred[bool]]]:
    """Run coroutines concurrently, and cancel at the end of the block those that still run."""
    started = [Deferred.fromCoroutine(job) for job in jobs]
    try:
        yield started
    finally:
        for job in started:
            job.addErrback(lambda _: None)  # it was cancelled, or the block has failed before it
            job.cancel()


def hint_of_silence(address: str, error: Exception) -> str:
    """Return why a server that can be reached may say nothing, or ""."""
    if type(error) is not PoemTimedOut or error.received:  # or a deadline has passed
        return ""
    tls = "" if type_of(address) in {"unix", *TLS_TYPES} else "speak TLS (tls:HOST:PORT), "
    return f"; is it full, or does it {tls}wait for its client to speak?"


def explain_fetch_failure(error: Exception) -> str:
    """Describe an error in a few words, with what to do about it if that is known."""
    if isinstance(error, DNSLookupError):
        return f"no such host ({error})"
    if isinstance(error, errors.ConnectionRefusedError):
        return "connection refused: is a server running there?"
    if isinstance(error, errors.TimeoutError):
        return "no connection in time: nothing answers there"
    if isinstance(error, ConnectError):
        return f"no connection: {_no_connection(error)}"
    if isinstance(error, OSError):
        return f"{error.strerror or error}{hint_of_limit(error.errno)}"
    if type(error).__name__ == "VerificationError":
        return "refused: the server's certificate is for another name"
    if is_of_openssl(error):
        return f"refused: TLS failed: {_with_hint(text_of(error))}"
    return text_of(error)


def _with_hint(reason: str) -> str:
    """Add what OpenSSL's reason may mean, of which Twisted passes no more on."""
    return reason + next((hint for text, hint in _TLS_HINTS.items() if text in reason), "")


def _no_connection(error: ConnectError) -> str:
    if isinstance(error.args[0], Failure):  # all that Twisted passes on of a hang-up
        return error.args[0].getErrorMessage()
    return f"{error.args[0] or error}{hint_of_limit(error.osError)}"
