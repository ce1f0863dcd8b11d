"""Poems that come from files: read at the start, and again on a reload."""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from time import time
from typing import IO, NamedTuple

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.threads import deferToThread
from twisted.logger import Logger

from poetry.errors import EmptyPoem
from poetry.protocol import PoetryServerFactory
from poetry.system.features import NOT_BLOCKING
from poetry.wire.poem import Poem

ENDLESS = 256 * 1024 * 1024
"""Bytes after which what has no size (a pipe, a device) is taken to have no end either."""

SETTLED = 1.0
"""Seconds after a change from which on the next one has another time: a kernel's clock for files
ticks every few milliseconds, and other file systems' every second."""

Version = tuple[int, int, int, int]
"""Of a file: its device, inode, size in bytes and time of change in nanoseconds."""

_log = Logger()


class Text(NamedTuple):
    """A poem as it was read: `path` and `version` where it can be read again."""

    poem: bytes
    name: str
    path: Path | None = None
    version: Version | None = None


class PoemFactory(PoetryServerFactory):
    """A poem as it is served: with a name, and with what logs and reloading need.

    @ivar name: what logs and metrics call the poem.
    @ivar path: the file to read again on a reload; None: there is none.
    @ivar version: of that file, as it was read.
    @ivar address: where it is to be served, as text.
    @ivar listener: where it is served, once it is.
    """

    listener = ""

    def __init__(
        self,
        poem: bytes,
        name: str,
        path: Path | None = None,
        version: Version | None = None,
        address: str = "",
    ) -> None:
        super().__init__(poem)
        self.name = name
        self.path = path
        self.version = version
        self.address = address


def read_at_start(word: str | None) -> Text:
    """The poem that a word of the command line names: `-` is standard input, None the sample.

    TERM ends the process meanwhile, which would otherwise wait for as long as a pipe is silent.

    @raise EmptyPoem: where it is empty.
    @raise MemoryError: where it does not fit into memory.
    @raise OSError: where it cannot be read.
    """
    if word is None:
        return Text((files("poetry") / "sample.txt").read_bytes(), "sample.txt")
    with _heeding_term():
        if word == "-":
            if sys.stdin is None:
                raise OSError(errno.EBADF, "standard input is closed")
            return Text(_read_all(sys.stdin.buffer), "-")
        with Path(word).open("rb") as file:
            poem, version = _read_all(file), _version(os.fstat(file.fileno()))
        return Text(poem, Path(word).name, Path(word).absolute(), version)


class Reloads:
    """Reads the files of poems again, in a thread, one reload at a time.

    @ivar at: when that was last done, in seconds since the epoch.
    @ivar well: whether all of them could be.
    """

    def __init__(self, factories: Iterable[PoetryServerFactory]) -> None:
        self.at = time()
        self.well = True
        self._served: dict[Path, list[PoemFactory]] = {}
        self._one = DeferredLock()
        for factory in factories:
            if isinstance(factory, PoemFactory) and factory.path is not None:
                self._served.setdefault(factory.path, []).append(factory)

    def reload(self) -> Deferred[None]:
        """Replace each poem whose file has changed; keep those that cannot be read, and log it.

        @return: fires with None when all are read.
        """
        return self._one.run(lambda: Deferred.fromCoroutine(self._reload()))

    async def _reload(self) -> None:
        well = True
        for path, factories in self._served.items():
            shares = any(factory.shares for factory in factories)
            try:
                fresh = await deferToThread(_read_again, path, factories[0].version, shares)
            except (EmptyPoem, MemoryError, OSError) as error:
                well = False
                _log.error(
                    "kept the old {poem}: {reason}",
                    event="reload_failed",
                    poem=str(path),
                    reason=describe(error),
                )
                continue
            if fresh is not None:
                for factory in factories:
                    factory.replace(fresh.poem)
                    factory.version = fresh.version
        self.at, self.well = time(), well
        if well:
            _log.info("read the poems again", event="reloaded")


class Fresh(NamedTuple):
    """A poem that was read again."""

    poem: Poem
    version: Version | None


def _read_again(path: Path, version: Version | None, shares: bool) -> Fresh | None:
    """The poem in a regular file, ready to be sent; None: it has not changed."""
    # Not blocking: it may have become a FIFO.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | NOT_BLOCKING)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        if version is not None and _version(status) == version:
            return None
        poem = Poem(_read_all(file))
    if shares:
        poem.share()
    return Fresh(poem, _version(status))


def _read_all(file: IO[bytes]) -> bytes:
    """All of a file, or of what has no size if it ends at all."""
    try:
        has_size = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:  # it is none of the system's
        has_size = False
    poem = file.read(-1 if has_size else ENDLESS + 1)
    if not poem:
        raise EmptyPoem
    if not has_size and len(poem) > ENDLESS:
        size = ENDLESS >> 20
        raise OSError(errno.EFBIG, f"it does not end: more than {size} MiB, and no regular file")
    return poem


def _version(status: os.stat_result) -> Version | None:
    """What tells that a file has not changed since; None: it may have changed just now."""
    if time() - status.st_mtime < SETTLED:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def _heeding_term() -> Iterator[None]:
    """Let TERM end the process, with 0 as ever: nothing else listens to it before a reactor runs.

    As process 1 of a container it would not even hear it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def describe(error: Exception) -> str:
    """What was wrong with a poem's file, in a few words without its name."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    return "it is empty, and there is no empty poem"
