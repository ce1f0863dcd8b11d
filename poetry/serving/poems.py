"""Poems from files: read at the start, and again on a reload."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Coroutine, Iterable
from importlib.resources import files
from pathlib import Path
from select import select
from time import time
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.logger import Logger

from poetry.errors import EmptyPoem
from poetry.protocol import PoetryServerFactory
from poetry.system.features import NOT_BLOCKING
from poetry.system.threads import in_daemon_thread
from poetry.text import printable
from poetry.wire.poem import Poem

if TYPE_CHECKING:
    from typing_extensions import Self

ENDLESS = 256 * 1024 * 1024
"""Most bytes read from what has no size (a pipe, a device), as it may be endless."""

CHUNK = 1024 * 1024
"""Bytes of what has no size to read at a time."""

_log = Logger()


class NamedPoem(NamedTuple):
    """A poem that was read, its name, and its file for a reload (None: it has none)."""

    poem: bytes
    name: str
    path: Path | None = None


class PoemFactory(PoetryServerFactory):
    """A factory of protocols that send a poem with a name; a reload can replace the poem.

    @ivar name: of the poem, in logs and metrics.
    @ivar path: the file to read again on a reload; None: there is none.
    @ivar address: the address to serve it on, as text.
    @ivar listener: where it is served, an address or several; "" until it is.
    """

    listener = ""

    def __init__(self, poem: bytes, name: str, path: Path | None = None, address: str = "") -> None:
        super().__init__(poem)
        self.name = name
        self.path = path
        self.address = address

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Make a factory for the poem in a file, which `PoetryService.reload` reads again.

        @param path: of a file with at least one byte.
        @raise EmptyPoem: if it is empty.
        @raise OSError: if it cannot be read.
        """
        return cls(*_read_file(Path(path)))


def read_at_start(argument: str | None) -> NamedPoem:
    """Read the poem of a POEM argument: a file, `-` (standard input), or None (the sample).

    @raise EmptyPoem: if it is empty.
    @raise MemoryError: if it does not fit into memory.
    @raise OSError: if it cannot be read.
    """
    if argument is None:
        return NamedPoem((files("poetry") / "sample.txt").read_bytes(), "sample.txt")
    if argument == "-":
        if sys.stdin is None:
            raise OSError(errno.EBADF, "standard input is closed")
        return NamedPoem(_read_all(sys.stdin.buffer), "-")
    return _read_file(Path(argument))


def _read_file(path: Path) -> NamedPoem:
    with path.open("rb") as file:
        return NamedPoem(_read_all(file), printable_name(path.name), path.absolute())


def printable_name(name: str) -> str:
    """Return a file's name in one line that can be encoded; other bytes are escaped."""
    return printable(os.fsencode(name).decode("utf-8", "backslashreplace"))


class Reloads:
    """Reads the files of poems again, in a thread, one reload at a time.

    Each file is read, and its bytes are compared: neither size, time nor inode prove that a file
    has not changed (a copy may keep them, and files of /proc have none).

    @ivar at: when the last reload ended, in seconds since the epoch; before the first, when this
        was made.
    @ivar well: whether it could read all files.
    """

    def __init__(self, factories: Iterable[PoetryServerFactory]) -> None:
        self.at = time()
        self.well = True
        self._served: dict[Path, list[PoemFactory]] = {}
        self._one = DeferredLock()
        for factory in factories:
            if isinstance(factory, PoemFactory) and factory.path is not None:
                self._served.setdefault(factory.path, []).append(factory)

    def run(self, read_again: Callable[[], Coroutine[Any, Any, bool]]) -> Deferred[None]:
        """Run a reload once those before it have ended.

        @param read_again: returns whether it could read all; its part for the poems is
            `read_poems`.
        @return: fires with None at its end. It fails only if it is cancelled.
        """

        async def reload() -> None:
            self.well = await read_again()
            self.at = time()

        return self._one.run(lambda: Deferred.fromCoroutine(reload()))

    async def read_poems(self) -> bool:
        """Replace each poem whose file has changed, and log a file that cannot be read.

        @return: whether all could be read.
        """
        well = True
        for path, factories in self._served.items():
            shares = any(factory.sending and factory.sending.shared for factory in factories)
            old = {factory.poem for factory in factories}
            try:
                new = await in_daemon_thread(lambda: _read_again(path, old, shares))  # noqa: B023
            except CancelledError:
                raise
            except Exception as error:  # RuntimeError: no thread can be started
                well = False
                _log.error(
                    "kept the old {poem}: {reason}",
                    event="reload_failed",
                    poem=printable_name(str(path)),
                    reason=explain_read_failure(error),
                )
                continue
            if new is not None:
                for factory in factories:
                    factory.replace(new)
        if well and self._served:
            _log.info("read the poems again", event="reloaded")
        elif well:
            _log.info("no poem came from a file: none was read again", event="reloaded")
        return well


def _read_again(path: Path, old: set[bytes | None], shares: bool) -> Poem | None:
    """Read the poem in a regular file again, off the reactor's thread.

    @param old: what its factories send now: more than one poem, if the file changed between them.
    @param shares: make the file in memory that connections share, too.
    @return: None: all send it already.
    """
    # Not blocking: the path may be a FIFO by now.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | NOT_BLOCKING)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        data = _read_all(file)
    if old == {data}:
        return None
    poem = Poem(data)
    if shares:
        poem.share()
    return poem


def _read_all(file: IO[bytes]) -> bytes:
    """Read all of a file.

    @raise EmptyPoem: if it has no bytes.
    @raise OSError: if it cannot be read, or has no size and more than `ENDLESS` bytes.
    """
    try:
        has_size = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:  # an object in memory, without a descriptor
        has_size = False
    poem = file.read() if has_size else _read_stream(file, ENDLESS + 1)
    if not poem:
        raise EmptyPoem("the file is empty, and there is no empty poem")
    if not has_size and len(poem) > ENDLESS:
        size = ENDLESS >> 20
        raise OSError(errno.EFBIG, f"it does not end: more than {size} MiB, and no regular file")
    return poem


def _read_stream(file: IO[bytes], most: int) -> bytes:
    """Read a pipe or a device to its end, or up to `most` bytes.

    Another process that has it may have set it not to block: then nothing to read is no end.
    """
    raw: Any = getattr(file, "raw", file)
    parts: list[bytes] = []
    while most > 0:
        part = raw.read(min(most, CHUNK))
        if part is None:
            select([raw], [], [])
        elif part:
            parts.append(part)
            most -= len(part)
        else:
            break
    return b"".join(parts)


def explain_read_failure(error: Exception) -> str:
    """Describe an error of a poem's file in a few words, without the file's name."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, (MemoryError, OverflowError)):
        return "it does not fit into memory"
    if isinstance(error, EmptyPoem):
        return "it is empty, and there is no empty poem"
    return str(error) or type(error).__name__
