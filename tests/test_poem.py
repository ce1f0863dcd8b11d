"""The poem in memory: the same bytes, whichever way the kernel gets them."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from poetry.poem import SHARED, Poem

LONG = random.Random(11).randbytes(1_000_000)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets, of which neither waits."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        receiver, _ = listener.accept()
    with sender, receiver:
        sender.setblocking(False)
        receiver.setblocking(False)
        yield sender, receiver


def carry(
    poem: Poem, pair: tuple[socket.socket, socket.socket], meanwhile: Callable[[], object] = int
) -> bytes:
    """Send it in pieces, with something done after each; give what arrives."""
    sender, receiver = pair
    sent, arrived = 0, b""
    while len(arrived) < len(poem.data):
        if sent < len(poem.data):
            with suppress(BlockingIOError):
                taken = poem.send(sender, sent, 300_000)
                assert 0 < taken <= 300_000
                sent += taken
                meanwhile()
        with suppress(BlockingIOError):
            arrived += receiver.recv(1 << 20)
    return arrived


def files() -> int:
    """How many files in memory this process has open for poems."""
    open_files = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum("memfd:poem" in str(target) for target in open_files)


@pytest.mark.parametrize("size", [1, SHARED - 1, SHARED, 1_000_000])
def test_it_arrives(size: int, pair: Any) -> None:
    """Short or long, in one piece or in many."""
    assert carry(Poem(LONG[:size]), pair) == LONG[:size]


def test_only_a_long_one_has_a_file_and_one_for_all_readers(pair: Any) -> None:
    """None before the first reader, and none for a short poem."""
    before = files()
    long, short = Poem(LONG), Poem(LONG[: SHARED - 1])
    assert files() == before
    for poem in (short, long, long):
        carry(poem, pair)
    assert files() == before + 1
    del poem, long
    assert files() == before


def test_a_retired_poem_goes_on_from_its_bytes(pair: Any) -> None:
    """Reload as often as you like: no file is left, and readers in flight miss nothing."""
    before = files()
    poem = Poem(LONG)
    assert carry(poem, pair, poem.retire) == LONG
    assert files() == before


def refuse(*_: object) -> int:
    raise OSError(errno.EMFILE, "too many open files")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda patch: patch.delattr(os, "memfd_create"),
        lambda patch: patch.setattr(os, "memfd_create", refuse),
        lambda patch: patch.setattr(fcntl, "fcntl", refuse),
    ],
    ids=["not Linux", "out of descriptors", "no seals"],
)
def test_without_a_file_it_arrives_too(
    spoil: Callable[[pytest.MonkeyPatch], None], pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system gives no file, the bytes are copied, and none is left behind."""
    before = files()
    poem = Poem(LONG)
    spoil(monkeypatch)
    assert carry(poem, pair) == LONG
    assert files() == before


def test_nothing_can_change_what_readers_get(pair: Any) -> None:
    """The file is sealed: not even this process can write to it."""
    poem = Poem(LONG)
    carry(poem, pair)
    assert poem._file is not None
    for spoil in (lambda file: os.pwrite(file, b"x", 0), lambda file: os.truncate(file, 1)):
        with pytest.raises(PermissionError):
            spoil(poem._file)
    assert carry(poem, pair) == LONG
