"""The poem in memory: the same bytes, whichever way the kernel gets them."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from poetry.wire.poem import SHARED, Poem
from tests.calls import failing
from tests.ends import tcp_pair
from tests.loop import poem_files

LONG = random.Random(11).randbytes(1_000_000)

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=[socket.AF_INET, socket.AF_UNIX], ids=["TCP", "Unix"])
def any_pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two connected sockets of either kind; neither blocks."""
    with ExitStack() as stack:
        if request.param == socket.AF_UNIX:
            sender, receiver = map(stack.enter_context, socket.socketpair())
        else:
            sender, receiver = stack.enter_context(tcp_pair())
        sender.setblocking(False)
        receiver.setblocking(False)
        yield sender, receiver


tcp = pytest.mark.parametrize("any_pair", [socket.AF_INET], indirect=True)


def carry(poem: Poem, pair: Pair, meanwhile: Callable[[], object] = int) -> bytes:
    """Send a poem in pieces, with a call after each; give the bytes that arrive."""
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


@pytest.mark.parametrize("size", [1, SHARED - 1, SHARED, 1_000_000])
def test_poem_arrives(size: int, any_pair: Pair) -> None:
    """Short or long, for the first reader and for the next."""
    poem = Poem(LONG[:size])
    assert [carry(poem, any_pair) for _ in range(3)] == [LONG[:size]] * 3


@tcp
def test_long_poem_has_one_file_from_its_second_reader_on(any_pair: Pair) -> None:
    """A single reader and a short poem need no file, and the file ends with the poem."""
    before = poem_files()
    short, long = Poem(LONG[: SHARED - 1]), Poem(LONG)
    for poem, expected in ((short, 0), (short, 0), (long, 0), (long, 1), (long, 1)):
        carry(poem, any_pair)
        assert poem_files() == before + expected
    del poem, long
    assert poem_files() == before


@pytest.mark.parametrize("any_pair", [socket.AF_UNIX], indirect=True)
def test_unix_sockets_get_no_file(any_pair: Pair) -> None:
    """On Unix sockets a file would save nothing."""
    before = poem_files()
    poem = Poem(LONG)
    for _ in range(3):
        assert carry(poem, any_pair) == LONG
    assert poem_files() == before


@tcp
def test_retired_poem_is_sent_from_its_bytes(any_pair: Pair) -> None:
    """However often a poem is reloaded, no file is left, and readers in flight miss nothing."""
    before = poem_files()
    poem = Poem(LONG)
    poem.share()
    assert poem_files() == before + 1
    assert carry(poem, any_pair, poem.retire) == LONG
    poem.share()
    assert poem_files() == before


@tcp
@pytest.mark.parametrize(
    "spoil",
    [
        lambda patch: patch.delattr(os, "memfd_create"),
        lambda patch: patch.setattr(os, "memfd_create", failing(errno.EMFILE)),
        lambda patch: patch.setattr(fcntl, "fcntl", failing(errno.EBUSY)),
        lambda patch: patch.setattr(resource, "getrlimit", lambda _: (4, 4)),
        lambda patch: patch.setattr(os, "sendfile", failing(errno.EPERM)),
    ],
    ids=["not Linux", "out of descriptors", "no seals", "few descriptors", "no sendfile"],
)
def test_poem_arrives_without_a_file(
    spoil: Callable[[pytest.MonkeyPatch], None], any_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system gives or sends no file, the bytes are copied, and none is left behind."""
    before = poem_files()
    poem = Poem(LONG)
    spoil(monkeypatch)
    assert [carry(poem, any_pair) for _ in range(3)] == [LONG] * 3
    assert poem_files() == before


@tcp
def test_lost_connection_is_no_lack_of_sendfile(any_pair: Pair) -> None:
    """The error of a lost connection is raised rather than taken for a lack of sendfile(2)."""
    poem = Poem(LONG)
    poem.share()
    any_pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenPipeError):
        carry(poem, any_pair)


@tcp
def test_file_of_a_poem_is_sealed(any_pair: Pair) -> None:
    """The file is sealed: not even this process can write to it."""
    poem = Poem(LONG)
    poem.share()
    assert poem._file is not None
    for spoil in (lambda file: os.pwrite(file, b"x", 0), lambda file: os.truncate(file, 1)):
        with pytest.raises(PermissionError):
            spoil(poem._file)
    assert carry(poem, any_pair) == LONG
