"""How `poetry get` treats its addresses: attempts, order, and the words for its errors."""

from __future__ import annotations

import os
import select
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from poetry.download.fetch import DownloadOptions, Fetcher, Source, explain_fetch_failure
from poetry.errors import PoemTooLong, PoemTruncated

CLEAN, RESET = error.ConnectionDone(), error.ConnectionLost()
REFUSED = error.ConnectionRefusedError(111, "Connection refused")


class Scripted:
    """An endpoint that takes the next step of its script: raise, or send and end."""

    def __init__(self, *script: Exception | tuple[bytes, Exception]) -> None:
        self.script = list(script)

    def connect(self, factory: Any) -> Deferred[Any]:
        """Fail, or bring a connection that has already ended."""
        step = self.script.pop(0)
        connected: Deferred[Any] = Deferred()
        if isinstance(step, Exception):
            connected.errback(step)
            return connected
        protocol = factory.buildProtocol(None)
        protocol.makeConnection(StringTransport())
        protocol.dataReceived(step[0])
        protocol.connectionLost(Failure(step[1]))
        connected.callback(protocol)
        return connected


class Never:
    """An endpoint to a black hole, which Twisted ends with an error of its own when cancelled."""

    def connect(self, factory: Any) -> Deferred[Any]:
        """Wait for ever."""
        del factory
        return Deferred(lambda it: it.errback(error.ConnectingCancelledError(None)))


class Fetching:
    """A `Fetcher` on a clock, with its notes and complaints."""

    def __init__(self, retries: int = 0, **options: Any) -> None:
        self.clock = MemoryReactorClock()
        self.advanced: list[int] = []
        self.notes: list[str] = []
        self.complaints: list[str] = []
        self.fetcher = Fetcher(
            self.clock,
            DownloadOptions(
                **{
                    "timeout": 30.0,
                    "max_time": None,
                    "max_bytes": None,
                    "sha256": None,
                    "text_only": False,
                    **options,
                },
                retries=retries,
            ),
            self.advanced.append,
            self.notes.append,
            self.complaints.append,
        )

    def fetch_each(self, *paths: Path, endpoints: list[Any]) -> list[bool | Failure]:
        """Begin to fetch; the result is in the list when all is done."""
        return self._begin(self.fetcher.fetch_each(sources_at(endpoints), [*map(str, paths)]))

    def fetch(self, path: Path, *, endpoints: list[Any]) -> list[bool | Failure]:
        """The same, all into one file."""
        return self._begin(self.fetcher.fetch(sources_at(endpoints), str(path)))

    def _begin(self, work: Coroutine[Any, Any, bool]) -> list[bool | Failure]:
        results: list[bool | Failure] = []
        self.done = Deferred.fromCoroutine(work)
        self.done.addBoth(results.append)
        return results


def sources_at(endpoints: list[Any]) -> list[Source]:
    return [Source(f"address {index}", each) for index, each in enumerate(endpoints)]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """The place of a poem, beside which no other file is left."""
    yield tmp_path / "poem.txt"
    assert {each.name for each in tmp_path.iterdir()} <= {"poem.txt"}


def test_retries_from_the_start(path: Path) -> None:
    """Each failure that may pass is tried again from the start, after a longer and longer wait."""
    fetching = Fetching(retries=4)
    endpoint = Scripted(
        REFUSED,
        (b"half", RESET),
        (b"", CLEAN),
        error.DNSLookupError("no results"),
        (b"a poem", CLEAN),
    )
    done = fetching.fetch_each(path, endpoints=[endpoint])
    for attempt in range(1, 5):
        assert not done
        assert len(fetching.notes) == attempt
        assert f"; retry {attempt} of 4 in " in fetching.notes[-1]
        fetching.clock.advance(60)
    assert done == [True]
    assert path.read_bytes() == b"a poem"
    assert fetching.complaints == []
    assert sum(fetching.advanced) == len(b"half" + b"a poem")
    assert fetching.notes[0].startswith("address 0: connection refused")
    assert fetching.notes[1].startswith("address 0: truncated after 4 bytes")


@pytest.mark.parametrize(
    ("retries", "script", "complaint"),
    [
        (0, [REFUSED], "connection refused: is a server running there?"),
        (1, [REFUSED, (b"half", RESET)], "truncated after 4 bytes: "),
        (9, [(b"a poem!", CLEAN)], "too long: more than 6 bytes"),
        (9, [(b"another", CLEAN)], "too long: more than 6 bytes"),
        (9, [(b"others", CLEAN)], "wrong digest: expected "),
        (9, [RuntimeError("nobody foresaw it")], "nobody foresaw it"),
    ],
)
def test_last_failure_is_a_complaint_without_a_file(
    path: Path, retries: int, script: list[Any], complaint: str
) -> None:
    """When the retries are used up, or do not help, there is a complaint and no file."""
    fetching = Fetching(retries, max_bytes=6, sha256=sha256(b"a poem").hexdigest())
    done = fetching.fetch_each(path, endpoints=[Scripted(*script)])
    fetching.clock.advance(60)
    assert done == [False]
    assert [each.startswith(f"address 0: {complaint}") for each in fetching.complaints] == [True]
    assert not path.exists()
    assert not fetching.clock.getDelayedCalls()


def test_cancel_ends_all_quietly(path: Path, tmp_path: Path) -> None:
    """A cancel ends all without a complaint."""
    fetching = Fetching(retries=1)
    paths = (path, *(tmp_path / name for name in "ab"))
    done = fetching.fetch_each(*paths, endpoints=[Never(), Never(), Scripted(REFUSED)])
    assert not done
    fetching.done.cancel()
    [failure] = done
    assert isinstance(failure, Failure)
    assert failure.check(CancelledError)
    assert fetching.complaints == []
    assert not fetching.clock.getDelayedCalls()


def test_max_time_bounds_all_attempts(path: Path) -> None:
    """With `max_time` the retries come to an end, even in a wait between two of them."""
    fetching = Fetching(retries=1_000, max_time=100)
    done = fetching.fetch_each(path, endpoints=[Scripted(*[(b"half", RESET)] * 1_000)])
    for _ in range(99):
        fetching.clock.advance(1)
    assert not done
    fetching.clock.advance(1)
    assert done == [False]
    assert fetching.complaints == ["address 0: timed out: not whole after 100 s and 0 bytes"]
    assert not fetching.clock.getDelayedCalls()


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A FIFO and its reader, which has read nothing yet."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    yield path, reader
    os.close(reader)


def fill(fifo: Path) -> None:
    """Write to a FIFO until it has no more room."""
    writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while os.write(writer, bytes(select.PIPE_BUF)):
            pass
    os.close(writer)


@pytest.mark.parametrize("count", [1, 2])
def test_max_time_bounds_the_writing(fifo: tuple[Path, int], count: int) -> None:
    """With `max_time` an output that is not read fails in time, and is blamed itself."""
    path, _ = fifo
    fill(path)
    fetching = Fetching(max_time=100, retries=9)
    done = fetching.fetch(path, endpoints=[Scripted((b"a poem", CLEAN)) for _ in range(count)])
    fetching.clock.advance(99)
    assert not done
    fetching.clock.advance(1)
    assert done == [False]
    assert fetching.complaints == [f"{path}: timed out: not all was taken within 100 s"]
    assert not fetching.clock.getDelayedCalls()
    assert not fetching.clock.getWriters()


def test_stuck_output_holds_up_no_other(fifo: tuple[Path, int], tmp_path: Path) -> None:
    """Files that can be written are, and only the output that is not read is blamed."""
    path, _ = fifo
    fill(path)
    fetching = Fetching(max_time=100)
    endpoints = [Scripted((b"a poem", CLEAN)) for _ in range(2)]
    done = fetching.fetch_each(path, tmp_path / "poem.txt", endpoints=endpoints)
    fetching.clock.advance(100)
    assert done == [False]
    assert fetching.complaints == [f"{path}: timed out: not all was taken within 100 s"]
    assert (tmp_path / "poem.txt").read_bytes() == b"a poem"


@pytest.mark.parametrize("read", [True, False])
def test_poems_in_time_are_written_after_the_deadline(
    fifo: tuple[Path, int], *, read: bool
) -> None:
    """Poems that had to wait for one that is late have a moment to be written."""
    path, reader = fifo
    fetching = Fetching(max_time=100)
    done = fetching.fetch(path, endpoints=[Never(), Scripted((b"a poem", CLEAN))])
    fetching.clock.advance(100)
    late = "address 0: timed out: not whole after 100 s and 0 bytes"
    assert (done, fetching.complaints) == ([], [late])
    while read and fetching.clock.getWriters():
        for writer in fetching.clock.getWriters():
            if (reason := writer.doWrite()) is not None:
                writer.connectionLost(Failure(reason))
    fetching.clock.advance(1)
    assert done == [False]
    assert fetching.complaints[1:] == (
        [] if read else [f"{path}: timed out: not all was taken within 100 s"]
    )
    assert os.read(reader, 100) == (b"a poem" if read else b"")
    assert not fetching.clock.getDelayedCalls()


def test_short_spool_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A poem that cannot be read from its temporary file leaves no file, and is a complaint."""
    monkeypatch.setattr("poetry.download.files.Spool.read", lambda *_: b"")
    fetching = Fetching()
    endpoints = [Scripted((poem, CLEAN)) for poem in (b"a poem", b"another")]
    assert fetching.fetch(path, endpoints=endpoints) == [False]
    assert fetching.complaints == ["temporary file (TMPDIR): it gave 0 bytes of 6"]
    assert not path.exists()


def test_blame_follows_the_failing_side(path: Path) -> None:
    """An error of connecting is the address's, of whatever type; one of writing is the file's."""
    fetching = Fetching()
    fetching.fetch_each(path, endpoints=[Scripted(OSError(19, "No such device"))])
    assert fetching.complaints == ["address 0: No such device"]
    fetching = Fetching(max_bytes=5)
    fetching.fetch_each(path, endpoints=[Scripted((b"a poem", CLEAN))])
    assert fetching.complaints == ["address 0: too long: more than 5 bytes"]


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (error.DNSLookupError("no results"), "no such host (DNS lookup failed: no results.)"),
        (REFUSED, "connection refused: is a server running there?"),
        (error.TimeoutError(), "no connection in time: nothing answers there"),
        (error.NoRouteError(113, "No route to host"), "no connection: No route to host"),
        (
            error.ConnectBindError(24, "Too many open files"),
            "no connection: Too many open files; raise the limit (ulimit -n)",
        ),
        (
            error.ConnectError(string=Failure(CLEAN)),
            "no connection: Connection was closed cleanly.",
        ),
        (error.ConnectError(), "no connection: An error occurred while connecting."),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(24, "Too many open files"), "Too many open files; raise the limit (ulimit -n)"),
        (OSError("odd"), "odd"),
        (PoemTooLong(1_000_000), "too long: more than 1,000,000 bytes"),
    ],
)
def test_explain_is_a_few_words(reason: Exception, words: str) -> None:
    """Each reason is a few words."""
    assert explain_fetch_failure(reason) == words


def test_explain_unwraps_errors_of_tls() -> None:
    """TLS's reasons are taken out of their lists; an error without a reason is named."""
    ssl = pytest.importorskip("OpenSSL.SSL", reason="needs twisted[tls]")
    failed = ssl.Error([("SSL routines", "", "bad length"), ("", "", "and more")])
    cut = PoemTruncated(4, Failure(failed))
    assert str(cut) == "truncated after 4 bytes: bad length; and more"
    assert explain_fetch_failure(failed) == "refused: TLS failed: bad length; and more"
    assert explain_fetch_failure(ssl.ZeroReturnError()) == "refused: TLS failed: ZeroReturnError"
    odd = ssl.SysCallError(-1, "Unexpected EOF")
    assert explain_fetch_failure(odd) == "refused: TLS failed: (-1, 'Unexpected EOF')"
