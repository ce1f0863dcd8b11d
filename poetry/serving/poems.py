"""Poems that come from files: read at the start, and again on a reload."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path
from threading import Thread
from time import time
from typing import IO, Any, NamedTuple

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from poetry.errors import EmptyPoem
from poetry.protocol import PoetryServerFactory
from poetry.system.features import NOT_BLOCKING
from poetry.wire.poem import Poem

ENDLESS = 256 * 1024 * 1024
"""Bytes after which what has no size (a pipe, a device) is taken to have no end either."""

_log = Logger()


class Text(NamedTuple):
    """A poem as it was read, its name, and the file to read it from again, where it has one."""

    poem: bytes
    name: str
    path: Path | None = None


class PoemFactory(PoetryServerFactory):
    """Sends a poem that has a name, and that a reload can replace.

    @ivar name: what logs and metrics call the poem.
    @ivar path: the file to read again on a reload; None: there is none.
    @ivar address: where to serve it, as text.
    @ivar listener: where it is served, once it is.
    """

    listener = ""

    def __init__(self, poem: bytes, name: str, path: Path | None = None, address: str = "") -> None:
        super().__init__(poem)
        self.name = name
        self.path = path
        self.address = address

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> PoemFactory:
        """Make a factory for the poem in a file, which `PoetryService.reload` reads again.

        @param path: of a file with at least one byte.
        @raise EmptyPoem: where it is empty.
        @raise OSError: where it cannot be read.
        """
        return cls(*_read_file(Path(path)))


def read_at_start(word: str | None) -> Text:
    """Read the poem that a word of the command line names: `-` is standard input, None the sample.

    @raise EmptyPoem: where it is empty.
    @raise MemoryError: where it does not fit into memory.
    @raise OSError: where it cannot be read.
    """
    if word is None:
        return Text((files("poetry") / "sample.txt").read_bytes(), "sample.txt")
    if word == "-":
        if sys.stdin is None:
            raise OSError(errno.EBADF, "standard input is closed")
        return Text(_read_all(sys.stdin.buffer), "-")
    return _read_file(Path(word))


def _read_file(path: Path) -> Text:
    with path.open("rb") as file:
        return Text(_read_all(file), printable(path.name), path.absolute())


def printable(name: str) -> str:
    """A file's name as text that can be written anywhere: bytes that are not UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class Reloads:
    """Reads the files of poems again, in a thread, one reload at a time.

    Nothing tells for sure that a file has not changed: a copy may keep size, time and inode, and
    files of /proc have neither size nor time. So each is read, and what was read is compared.

    @ivar at: when the poems were last read, in seconds since the epoch.
    @ivar well: whether all of them could be read.
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

        @return: fires with None when all are read. It never fails.
        """
        return self._one.run(lambda: Deferred.fromCoroutine(self._reload()))

    async def _reload(self) -> None:
        well = True
        for path, factories in self._served.items():
            shares = any(factory.sending and factory.sending.shared for factory in factories)
            old = factories[0].poem
            try:
                new = await in_daemon_thread(lambda: _read_again(path, old, shares))  # noqa: B023
            except Exception as error:  # RuntimeError: there is no room for a thread
                well = False
                _log.error(
                    "kept the old {poem}: {reason}",
                    event="reload_failed",
                    poem=printable(str(path)),
                    reason=describe(error),
                )
                continue
            if new is not None:
                for factory in factories:
                    factory.replace(new)
        self.at, self.well = time(), well
        if well:
            _log.info("read the poems again", event="reloaded")


def in_daemon_thread(work: Callable[[], Any]) -> Deferred[Any]:
    """Call `work` in a thread that the end of the process does not wait for.

    The reactor's own threads are waited for: a file system that does not answer would hold a stop
    up for as long.

    @return: fires with what `work` gives, or fails with what it raises.
    @raise RuntimeError: where no thread can be started.
    """
    from twisted.internet import reactor

    done: Deferred[Any] = Deferred()

    def run() -> None:
        try:
            result = work()
        except BaseException:
            result = Failure()
        reactor.callFromThread(done.callback, result)  # type: ignore[attr-defined]

    Thread(target=run, daemon=True).start()
    return done


def _read_again(path: Path, old: bytes | None, shares: bool) -> Poem | None:
    """Read the poem in a regular file, ready to be sent; None: it is the old one."""
    # Not blocking: it may have become a FIFO.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | NOT_BLOCKING)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        data = _read_all(file)
    if data == old:
        return None
    poem = Poem(data)
    if shares:
        poem.share()
    return poem


def _read_all(file: IO[bytes]) -> bytes:
    """Read all of a file, or of what has no size (a pipe, a device) if it ends at all."""
    try:
        has_size = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:  # an object in memory has no descriptor
        has_size = False
    poem = file.read(-1 if has_size else ENDLESS + 1)
    if not poem:
        raise EmptyPoem
    if not has_size and len(poem) > ENDLESS:
        size = ENDLESS >> 20
        raise OSError(errno.EFBIG, f"it does not end: more than {size} MiB, and no regular file")
    return poem


def describe(error: Exception) -> str:
    """Say what was wrong with a poem's file, in a few words without its name."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    if isinstance(error, EmptyPoem):
        return "it is empty, and there is no empty poem"
    return str(error) or type(error).__name__
