"""Poems that come from files: at the start, and again on a reload."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from twisted.internet.threads import deferToThread

from poetry.errors import EmptyPoem
from poetry.serving import poems
from poetry.serving.poems import PoemFactory, Reloads, Text, describe, read_at_start
from poetry.wire.poem import SHARED
from tests.loop import poem_files, reactor, until, wait
from tests.transfers import Log

SAMPLE = (Path(__file__).parents[2] / "poetry" / "sample.txt").read_bytes()


def write(path: Path, poem: bytes) -> None:
    """A file that was changed long ago."""
    path.write_bytes(poem)
    age(path)


def age(path: Path, seconds: int = 3600) -> None:
    """Let a file have been changed that long ago."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - seconds * 10**9))


# At the start


def test_read_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A poem is the sample, standard input or a file, which is remembered by its whole path."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "poem.txt"
    write(path, b"a poem")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"given")))
    assert read_at_start(None) == Text(SAMPLE, "sample.txt")
    assert read_at_start("-") == Text(b"given", "-")
    text = read_at_start("poem.txt")
    assert text[:3] == (b"a poem", "poem.txt", path)
    assert text.version is not None


def test_what_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device or a pipe that goes on and on is an error; a regular file of any size is not."""
    monkeypatch.setattr(poems, "ENDLESS", 1 << 20)
    with pytest.raises(OSError, match="it does not end: more than 1 MiB"):
        read_at_start("/dev/zero")
    path = tmp_path / "poem.txt"
    path.write_bytes(bytes(1 << 21))
    assert len(read_at_start(str(path)).poem) == 1 << 21
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(bytes(1 << 21))))
    with pytest.raises(OSError, match="it does not end"):
        read_at_start("-")


def test_a_fifo(tmp_path: Path) -> None:
    """A start waits for who writes into a FIFO."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=[b"a poem"])
    writer.start()
    assert read_at_start(str(path)).poem == b"a poem"
    writer.join()


@pytest.mark.parametrize("what", ["fifo", "-"])
def test_term_while_nothing_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A silent FIFO or standard input does not keep the process from being ended."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as silent, os.fdopen(writing):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=silent))
        before = signal.getsignal(signal.SIGTERM)

        def term_when_reading() -> None:
            """It waits in the kernel for the FIFO to be opened, or for what comes in."""
            own = Path(f"/proc/self/task/{threading.main_thread().native_id}/wchan")
            while own.read_text() not in ("wait_for_partner", "pipe_read", "anon_pipe_read"):
                pass
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

        waiter = threading.Thread(target=term_when_reading)
        waiter.start()
        with pytest.raises(SystemExit) as caught:
            read_at_start(what)
        waiter.join()
    assert caught.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_poem_may_be_read_in_a_thread(tmp_path: Path) -> None:
    """Where signals are not ours to hear, it is read all the same."""
    path = tmp_path / "poem.txt"
    path.write_bytes(b"a poem")
    assert wait(deferToThread(read_at_start, str(path))).poem == b"a poem"


# Again


class Served:
    """A poem in a file, and what reloads make of it."""

    def __init__(self, path: Path, poem: bytes = b"old") -> None:
        self.path = path
        write(path, poem)
        text = read_at_start(str(path))
        self.factory = PoemFactory(*text)
        self.reloads = Reloads([self.factory, PoemFactory(b"fixed", "sample.txt")])

    def reload(self) -> tuple[bytes | None, bool]:
        """The poem after a reload, and whether that went well."""
        wait(self.reloads.reload())
        return self.factory.poem, self.reloads.well


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path / "poem.txt")


def events(log: Log) -> list[str]:
    return [event["event"] for event in log if "event" in event]


def test_reload(served: Served, log: Log) -> None:
    """New readers get the new text; a file that is gone or empty leaves the old poem."""
    served.path.write_bytes(b"new")
    assert served.reload() == (b"new", True)
    served.path.write_bytes(b"")
    assert served.reload() == (b"new", False)
    served.path.unlink()
    assert served.reload() == (b"new", False)
    write(served.path, b"back")
    assert served.reload() == (b"back", True)
    assert events(log) == ["reloaded", "reload_failed", "reload_failed", "reloaded"]


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, os.mkdir, lambda path: Path(path).symlink_to("/dev/zero")],
    ids=["FIFO", "directory", "device"],
)
def test_what_is_no_regular_file_any_more(
    served: Served, log: Log, make: Callable[[Path], None]
) -> None:
    """It is not even read, and the old poem is kept."""
    served.path.unlink()
    make(served.path)
    assert served.reload() == (b"old", False)
    assert events(log) == ["reload_failed"]


def test_what_does_not_fit(served: Served, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A poem that is too long for memory leaves the old one."""

    def too_large(*_: object) -> bytes:
        raise MemoryError

    served.path.write_bytes(b"new")
    monkeypatch.setattr(poems, "_read_all", too_large)
    assert served.reload() == (b"old", False)
    assert log[0]["reason"] == "it does not fit into memory"


def test_unchanged(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that has not changed is not read; one that may have changed just now is."""
    read: list[bytes] = []
    read_all = poems._read_all

    def note(file: io.BufferedReader) -> bytes:
        read.append(read_all(file))
        return read[-1]

    monkeypatch.setattr(poems, "_read_all", note)
    assert served.reload() == (b"old", True)
    assert not read
    served.path.write_bytes(b"new")  # within the same tick of the clock as what follows
    assert served.reload() == (b"new", True)
    os.utime(served.path)
    served.path.write_bytes(b"wen")
    assert served.reload() == (b"wen", True)
    age(served.path)
    served.reload()
    read.clear()
    assert served.reload() == (b"wen", True)
    assert not read


def test_a_long_poem_shares_its_file(tmp_path: Path) -> None:
    """A poem that plain sockets share does so after a reload, and the old one's file is closed."""
    before = poem_files()
    served = Served(tmp_path / "poem.txt", bytes(SHARED))
    served.factory.shares = True
    assert served.factory.sending is not None
    served.factory.sending.share()
    served.path.write_bytes(bytes(SHARED + 1))
    assert served.reload()[1]
    assert poem_files() == before + 1
    served.factory.poem = None
    assert poem_files() == before


def test_one_at_a_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a file is read the reactor goes on, and another reload waits for this one."""
    going, go = threading.Event(), threading.Event()
    read_all = poems._read_all
    reads: list[bytes] = []

    def slowly(file: io.BufferedReader) -> bytes:
        going.set()
        assert go.wait(30)
        reads.append(read_all(file))
        return reads[-1]

    monkeypatch.setattr(poems, "_read_all", slowly)
    served.path.write_bytes(b"first")
    done: list[str] = []
    first = served.reloads.reload().addCallback(lambda _: done.append("first"))
    until(going.is_set)
    second = served.reloads.reload().addCallback(lambda _: done.append("second"))
    reactor.callLater(0, done.append, "turned")
    until(lambda: done)
    served.path.write_bytes(b"second")
    go.set()
    wait(first)
    wait(second)
    assert done == ["turned", "first", "second"]
    assert (served.factory.poem, reads) == (b"second", [b"second", b"second"])


def test_one_file_of_several_listeners(served: Served) -> None:
    """It is read once, and is one poem for all of them."""
    other = PoemFactory(*read_at_start(str(served.path)))
    served.path.write_bytes(b"new")
    reloads = Reloads([served.factory, other])
    wait(reloads.reload())
    assert other.poem == b"new"
    assert served.factory.sending is other.sending


def test_describe() -> None:
    """What was wrong is told without the name of the file."""
    assert describe(EmptyPoem()) == "it is empty, and there is no empty poem"
    assert describe(OSError("no more")) == "OSError"
