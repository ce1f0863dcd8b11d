"""Poems that come from files: at the start, and again on a reload."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from twisted.internet.defer import CancelledError, Deferred

from poetry.errors import EmptyPoem
from poetry.serving import poems
from poetry.serving.poems import (
    NamedPoem,
    PoemFactory,
    Reloads,
    explain_read_failure,
    read_at_start,
)
from poetry.wire.poem import SHARED
from tests.loop import poem_files, reactor, until, wait, wait_error
from tests.processes import SAMPLE
from tests.transfers import Log

# At the start


def test_start_reads_a_file_standard_input_or_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poem is the sample, standard input or a file, whose absolute path is kept."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "poem.txt"
    path.write_bytes(b"a poem")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"given")))
    assert read_at_start(None) == NamedPoem(SAMPLE, "sample.txt")
    assert read_at_start("-") == NamedPoem(b"given", "-")
    assert read_at_start("poem.txt") == NamedPoem(b"a poem", "poem.txt", path)


def test_file_name_that_is_not_utf_8_is_escaped(tmp_path: Path) -> None:
    """A name that cannot be written as text is escaped, for logs, metrics and the announcement."""
    path = tmp_path / os.fsdecode(b"po\xe8me.txt")
    path.write_bytes(b"a poem")
    assert read_at_start(str(path)).name == "po\\xe8me.txt"


def test_endless_input_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device or a pipe that does not end is an error; a regular file of any size is not."""
    monkeypatch.setattr(poems, "ENDLESS", 1 << 20)
    with pytest.raises(OSError, match="it does not end: more than 1 MiB"):
        read_at_start("/dev/zero")
    path = tmp_path / "poem.txt"
    path.write_bytes(bytes(1 << 21))
    assert len(read_at_start(str(path)).poem) == 1 << 21
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(bytes(1 << 21))))
    with pytest.raises(OSError, match="it does not end"):
        read_at_start("-")


def test_start_waits_for_the_writer_of_a_fifo(tmp_path: Path) -> None:
    """A start waits until a FIFO has been written."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=[b"a poem"])
    writer.start()
    assert read_at_start(str(path)).poem == b"a poem"
    writer.join()


# Again


class Served:
    """A poem in a file, and its factory, for reloads."""

    def __init__(self, path: Path, poem: bytes = b"old") -> None:
        self.path = path
        path.write_bytes(poem)
        text = read_at_start(str(path))
        self.factory = PoemFactory(*text)
        self.reloads = Reloads([self.factory, PoemFactory(b"fixed", "sample.txt")])

    def start(self) -> Deferred[None]:
        """Begin a reload."""
        return self.reloads.run(self.reloads.read_poems)

    def reload(self) -> tuple[bytes | None, bool]:
        """The poem after a reload, and whether the reload succeeded."""
        wait(self.start())
        return self.factory.poem, self.reloads.well


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path / "poem.txt")


def test_reload_takes_new_text_or_keeps_the_poem(served: Served, log: Log) -> None:
    """New readers get the new text; a file that is gone or empty leaves the old poem."""
    served.path.write_bytes(b"new")
    assert served.reload() == (b"new", True)
    served.path.write_bytes(b"")
    assert served.reload() == (b"new", False)
    served.path.unlink()
    assert served.reload() == (b"new", False)
    served.path.write_bytes(b"back")
    assert served.reload() == (b"back", True)
    assert log.names == ["reloaded", "reload_failed", "reload_failed", "reloaded"]


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, os.mkdir, lambda path: Path(path).symlink_to("/dev/zero")],
    ids=["FIFO", "directory", "device"],
)
def test_reload_reads_regular_files_only(
    served: Served, log: Log, make: Callable[[Path], None]
) -> None:
    """A file that is no regular file any more is not read, and the old poem is kept."""
    served.path.unlink()
    make(served.path)
    assert served.reload() == (b"old", False)
    assert log.names == ["reload_failed"]


def test_reload_without_memory_keeps_the_poem(
    served: Served, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poem that is too long for memory leaves the old one."""

    def too_large(*_: object) -> bytes:
        raise MemoryError

    served.path.write_bytes(b"new")
    monkeypatch.setattr(poems, "_read_all", too_large)
    assert served.reload() == (b"old", False)
    assert log[0]["reason"] == "it does not fit into memory"


def test_cancelled_reload_does_not_end_as_if_all_were_read(served: Served, log: Log) -> None:
    """A cancel fails the reload, keeps the poem, and blames no file."""
    served.path.write_bytes(b"new")
    reloading = served.start()
    reloading.cancel()
    assert isinstance(wait_error(reloading), CancelledError)
    assert served.factory.poem == b"old"
    assert log.names == []


def test_reload_reads_a_file_of_the_same_size_and_time(served: Served) -> None:
    """Another text of the same size and time, under the same inode, is read (`cp -p`, `rsync`)."""
    before = served.path.stat()
    served.path.write_bytes(b"new")
    os.utime(served.path, ns=(before.st_atime_ns, before.st_mtime_ns - 3600 * 10**9))
    assert served.reload() == (b"new", True)
    looks = served.path.stat()
    served.path.write_bytes(b"wen")
    os.utime(served.path, ns=(looks.st_atime_ns, looks.st_mtime_ns))
    after = served.path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        looks.st_ino,
        looks.st_size,
        looks.st_mtime_ns,
    )
    assert served.reload() == (b"wen", True)


def test_reload_reads_a_file_of_proc() -> None:
    """A file that the kernel writes as it is read is read each time."""
    comm = Path("/proc/self/comm")
    before = comm.read_text()
    factory = PoemFactory(*read_at_start(str(comm)))
    reloads = Reloads([factory])
    try:
        for name in (b"first", b"other"):
            comm.write_bytes(name)
            wait(reloads.run(reloads.read_poems))
            assert factory.poem == name + b"\n"
    finally:
        comm.write_text(before)


def test_reload_of_unchanged_text_keeps_the_poem(served: Served) -> None:
    """Unchanged text leaves the poem, and what its readers share, alone."""
    before = served.factory.sending
    served.path.unlink()
    served.path.write_bytes(b"old")
    assert served.reload() == (b"old", True)
    assert served.factory.sending is before


def test_reload_without_a_thread_keeps_the_poem(
    served: Served, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no thread can be started the old poem is kept, and the log says why."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    served.path.write_bytes(b"new")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert served.reload() == (b"old", False)
    [event] = log
    assert (event["event"], event["reason"]) == ("reload_failed", "can't start new thread")
    assert served.reload() == (b"new", True)


def test_reload_replaces_the_shared_file(tmp_path: Path) -> None:
    """After a reload the new poem has a file to share, and the old one's file is closed."""
    before = poem_files()
    served = Served(tmp_path / "poem.txt", bytes(SHARED))
    assert served.factory.sending is not None
    served.factory.sending.share()
    assert served.factory.sending is not None
    served.factory.sending.share()
    served.path.write_bytes(bytes(SHARED + 1))
    assert served.reload()[1]
    assert poem_files() == before + 1
    served.factory.poem = None
    assert poem_files() == before


def test_reloads_run_one_at_a_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
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
    first = served.start().addCallback(lambda _: done.append("first"))
    until(going.is_set)
    second = served.start().addCallback(lambda _: done.append("second"))
    reactor.callLater(0, done.append, "turned")
    until(lambda: done)
    served.path.write_bytes(b"second")
    go.set()
    wait(first)
    wait(second)
    assert done == ["turned", "first", "second"]
    assert (served.factory.poem, reads) == (b"second", [b"second", b"second"])


def test_file_of_several_listeners_is_read_once(served: Served) -> None:
    """Listeners of one file share one poem."""
    other = PoemFactory(*read_at_start(str(served.path)))
    served.path.write_bytes(b"new")
    reloads = Reloads([served.factory, other])
    wait(reloads.run(reloads.read_poems))
    assert other.poem == b"new"
    assert served.factory.sending is other.sending


@pytest.mark.parametrize("changed", [0, 1])
def test_file_that_changed_between_its_factories_is_read_for_both(
    tmp_path: Path, changed: int
) -> None:
    """A reload gives all factories of a file what is in it, also where one has it already."""
    path = tmp_path / "poem.txt"
    served = []
    for text in (b"first", b"second"):
        path.write_bytes(text)
        served.append(PoemFactory.from_file(path))
    if changed:
        served.reverse()
    reloads = Reloads(served)
    wait(reloads.run(reloads.read_poems))
    assert [factory.poem for factory in served] == [b"second", b"second"]


def test_read_failure_is_explained_without_the_name() -> None:
    """An error is described without the name of the file."""
    assert explain_read_failure(EmptyPoem()) == "it is empty, and there is no empty poem"
    assert explain_read_failure(OSError("no more")) == "OSError"


def test_factory_from_a_file_reloads(tmp_path: Path) -> None:
    """The poem of a library's user is read again, too, and keeps its name."""
    path = tmp_path / "poem.txt"
    path.write_bytes(b"first")
    factory = PoemFactory.from_file(path)
    assert (factory.poem, factory.name) == (b"first", "poem.txt")
    path.write_bytes(b"second")
    reloads = Reloads([factory])
    wait(reloads.run(reloads.read_poems))
    assert factory.poem == b"second"
    with pytest.raises(FileNotFoundError):
        PoemFactory.from_file(str(tmp_path / "none"))
    path.write_bytes(b"")
    with pytest.raises(EmptyPoem, match="file is empty"):
        PoemFactory.from_file(path)
