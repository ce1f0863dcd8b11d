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
    """Two connected sockets of either kind, of which neither waits."""
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


@pytest.mark.parametrize("size", [1, SHARED - 1, SHARED, 1_000_000])
def test_it_arrives(size: int, any_pair: Pair) -> None:
    """Short or long, for the first reader and for the next."""
    poem = Poem(LONG[:size])
    assert [carry(poem, any_pair) for _ in range(3)] == [LONG[:size]] * 3


@tcp
def test_one_file_from_the_second_reader_of_a_long_poem_on(any_pair: Pair) -> None:
    """None for a single reader, none for a short poem, and none when the poem is gone."""
    before = poem_files()
    short, long = Poem(LONG[: SHARED - 1]), Poem(LONG)
    for poem, expected in ((short, 0), (short, 0), (long, 0), (long, 1), (long, 1)):
        carry(poem, any_pair)
        assert poem_files() == before + expected
    del poem, long
    assert poem_files() == before


@pytest.mark.parametrize("any_pair", [socket.AF_UNIX], indirect=True)
def test_no_file_for_unix_sockets(any_pair: Pair) -> None:
    """Their kernel's steps of progress would be longer, and nothing would be saved."""
    before = poem_files()
    poem = Poem(LONG)
    for _ in range(3):
        assert carry(poem, any_pair) == LONG
    assert poem_files() == before


@tcp
def test_a_retired_poem_goes_on_from_its_bytes(any_pair: Pair) -> None:
    """Reload as often as you like: no file is left, and readers in flight miss nothing."""
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
def test_without_a_file_it_arrives_too(
    spoil: Callable[[pytest.MonkeyPatch], None], any_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system gives or sends no file, the bytes are copied, and none is left behind."""
    before = poem_files()
    poem = Poem(LONG)
    spoil(monkeypatch)
    assert [carry(poem, any_pair) for _ in range(3)] == [LONG] * 3
    assert poem_files() == before


@tcp
def test_a_lost_connection_is_told(any_pair: Pair) -> None:
    """What is wrong with the connection is not taken for a want of sendfile."""
    poem = Poem(LONG)
    poem.share()
    any_pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenPipeError):
        carry(poem, any_pair)


@tcp
def test_nothing_can_change_what_readers_get(any_pair: Pair) -> None:
    """The file is sealed: not even this process can write to it."""
    poem = Poem(LONG)
    poem.share()
    assert poem._file is not None
    for spoil in (lambda file: os.pwrite(file, b"x", 0), lambda file: os.truncate(file, 1)):
        with pytest.raises(PermissionError):
            spoil(poem._file)
    assert carry(poem, any_pair) == LONG
