"""However a reader behaves, the poem arrives whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import PoemFile
from tests.faults.conftest import BARE, NAIVE
from tests.faults.readers import PLAIN, SPEAKS, Habit, poem, read_all
from tests.processes import SERVE, Server, need, run, running

SIZES = (3_000, 200_000, 1_000_000)

TINY = Habit(receive_buffer=1, segment=88)

HABITS = {
    "plain": (20, PLAIN),
    "speaks first": (20, SPEAKS),
    "floods": (20, Habit(says=bytes(2_000_000))),
    "half-closes first": (20, Habit(half_closes=True)),
    "speaks and half-closes": (20, SPEAKS._replace(half_closes=True)),
    "a byte at a time": (1, Habit(at_a_time=1)),
    "tiny buffer": (5, TINY),
    "tiny buffer, speaks first": (5, TINY._replace(says=SPEAKS.says)),
    "tiny buffer, half-closes first": (5, TINY._replace(half_closes=True)),
}


@pytest.fixture(scope="module")
def servers(poem_file: PoemFile) -> Iterator[Server]:
    """One server of a poem of each size, in the order of SIZES."""
    with running([*SERVE, *map(poem_file, SIZES)], listeners=len(SIZES)) as server:
        yield server


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("habit", HABITS)
def test_every_reader_is_whole(servers: Server, habit: str, size: int) -> None:
    """Whatever a reader says and however little it takes, it has the poem and a clean end."""
    count, behaviour = HABITS[habit]
    ends = read_all(servers.addresses[SIZES.index(size)], poem(size), behaviour, count=count)
    assert ends == {"whole": count}


def test_every_reader_of_the_bare_factory_is_whole(poem_file: PoemFile) -> None:
    """The library's factory alone, without the service, keeps the promise as well."""
    size = 200_000
    with running([*BARE, poem_file(size)]) as server:
        for count, habit in HABITS.values():
            assert read_all(server.addresses[0], poem(size), habit, count=count) == {"whole": count}


@pytest.mark.evidence
@pytest.mark.parametrize("habit", ["floods", "tiny buffer, speaks first"])
def test_naive_server_truncates_for_readers_that_speak(poem_file: PoemFile, habit: str) -> None:
    """The tutorial's server loses the end of a poem for readers that speak first."""
    size = 10_000_000
    for _ in range(5):  # readers that keep pace to the very end are lucky: all of one run in 60
        with running([*NAIVE, "serve", poem_file(size)]) as server:
            ends = read_all(server.addresses[0], poem(size), HABITS[habit][1], count=20)
        print("naive:", dict(ends))
        if ends["whole"] < 20:
            return
    pytest.fail("the naive server truncates nothing")


@pytest.mark.evidence
def test_naive_server_truncates_for_curl(poem_file: PoemFile) -> None:
    """The tutorial's server cuts the poem short for curl, which speaks first."""
    lengths = []
    with running([*NAIVE, "serve", poem_file(10_000_000)]) as server:
        for _ in range(10):
            done = run([need("curl"), "-sS", "--http0.9", f"http://127.0.0.1:{server.port}/"])
            lengths.append(len(done.stdout))
    print(f"naive: of 10000000 bytes curl had {lengths}")
    assert min(lengths) < 10_000_000  # one that is quicker than the server's close is lucky
