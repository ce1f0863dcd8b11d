"""Many readers at once and one after the other: all whole, none forgotten, nothing left."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.measure import available_memory
from tests.conftest import PoemFile
from tests.faults.conftest import NAIVE
from tests.faults.readers import PAUSES, PLAIN, SPEAKS, STALLED, Crowd, Habit, poem, read_all
from tests.processes import POETRY, SERVE, Server, eventually, running

SHORT = 3_000
MEGABYTE = 1_000_000

SOFTLY_LIMITED = ("sh", "-c", 'ulimit -S -n 1024; exec "$@"', "sh")
"""What most systems give a program, which may raise it."""


@pytest.mark.parametrize(
    ("descriptors", "count", "at_once"),
    [(64, 300, 200), pytest.param(256, 3_000, 1_000, marks=pytest.mark.machine)],
)
def test_few_descriptors_serve_all(
    poem_file: PoemFile, descriptors: int, count: int, at_once: int
) -> None:
    """With far fewer descriptors than readers at once, all readers are whole."""
    with running([*SERVE, poem_file(MEGABYTE)], descriptors=descriptors) as server:
        ends = read_all(server.addresses[0], poem(MEGABYTE), count=count, at_once=at_once)
        print(dict(ends))
        assert ends == {"whole": count}
        assert server.stop() == 0
        assert "Traceback" not in server.stderr


@pytest.mark.evidence
def test_naive_server_truncates_when_full(poem_file: PoemFile) -> None:
    """With 256 descriptors the tutorial's server closes cleanly on readers without room."""
    size = 10 * MEGABYTE
    ends: Counter[str] = Counter()
    with (
        running([*NAIVE, "serve", poem_file(size)], descriptors=256) as server,
        contextlib.ExitStack() as crowds,
    ):
        for _ in range(7):
            crowd = crowds.enter_context(Crowd(server.addresses[0], poem(size), STALLED, count=40))
            crowd.run(until=crowd.begun)
            ends += crowd.ends
    print("naive:", dict(ends))
    assert ends["empty"] > 20


def test_max_connections_bounds_open_readers(poem_file: PoemFile) -> None:
    """With --max-connections 10 never more than 10 of 500 readers are open, and all are whole."""
    with running([*SERVE, "--max-connections", "10", poem_file(MEGABYTE)]) as server:
        idle = server.sockets()
        open_at_once = [0]

        def count() -> bool:
            open_at_once.append(server.sockets() - idle)
            return crowd.served() > 10

        with Crowd(server.addresses[0], poem(MEGABYTE), count=500) as crowd:
            ends = crowd.run(until=count)
        print(dict(ends), f"most at once: {max(open_at_once)} sockets")
        assert ends == {"whole": 500}
        assert max(open_at_once) <= 10


def test_stalled_readers_hold_their_places(poem_file: PoemFile) -> None:
    """Readers that stall hold the places of --max-connections, and the next wait for theirs."""
    size = 10 * MEGABYTE
    with (
        running([*SERVE, "--max-connections", "10", poem_file(size)]) as server,
        Crowd(server.addresses[0], poem(size), PAUSES, count=10) as stalled,
        Crowd(server.addresses[0], poem(size), count=40) as others,
    ):
        stalled.run(until=stalled.begun)
        assert others.run(quiet=0.5) == {"waiting": 40}
        assert others.received == [0] * 40
        stalled.resume()
        assert stalled.run() == {"whole": 10}
        assert others.run() == {"whole": 40}


def test_max_connections_spans_listeners(poem_file: PoemFile) -> None:
    """The limit is the server's: several listeners share it."""
    size = 10 * MEGABYTE
    file = poem_file(size)
    with (
        running([*SERVE, "--max-connections", "10", file, file], listeners=2) as server,
        Crowd(server.addresses[0], poem(size), PAUSES, count=10) as first,
        Crowd(server.addresses[1], poem(size), count=10) as second,
    ):
        first.run(until=first.begun)
        assert second.run(quiet=0.5) == {"waiting": 10}
        assert second.received == [0] * 10
        first.resume()
        assert first.run() == {"whole": 10}
        assert second.run() == {"whole": 10}


@pytest.mark.parametrize("count", [400, pytest.param(4_000, marks=pytest.mark.machine)])
def test_burst_is_served(poem_file: PoemFile, count: int) -> None:
    """Readers that all connect before the server can accept one are all served."""
    with (
        running([*SERVE, poem_file(SHORT)]) as server,
        Crowd(server.addresses[0], poem(SHORT), count=count) as crowd,
    ):
        server.signal(signal.SIGSTOP)
        crowd.run(until=lambda: not crowd.unopened)
        server.signal(signal.SIGCONT)
        ends = crowd.run()
        print(dict(ends))
        assert ends == {"whole": count}


@pytest.mark.evidence
def test_naive_server_strands_a_burst(poem_file: PoemFile) -> None:
    """The tutorial's server, with its backlog of 50, leaves most of a burst waiting."""
    with running([*NAIVE, "serve", poem_file(SHORT)]) as server:
        ends = read_all(server.addresses[0], poem(SHORT), count=4_000, quiet=0.5)
    print("naive:", dict(ends))
    assert ends["waiting"]


@pytest.mark.machine
def test_thousands_at_once_are_whole(poem_file: PoemFile) -> None:
    """16,000 readers in a row, the first 8,000 of them open at once, are whole."""
    size = 20_000
    habit = Habit(takes=0)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 10_000:
        pytest.skip("needs a hard limit of 10,000 open files")
    with (
        running([*SOFTLY_LIMITED, *SERVE, poem_file(size)]) as server,
        Crowd(server.addresses[0], poem(size), habit, count=16_000, at_once=8_000) as crowd,
    ):
        crowd.run(until=lambda: server.sockets() > 8_000)
        held = server.sockets()
        crowd.resume()
        ends = crowd.run()
        print(dict(ends), f"{held} sockets at once")
        assert held > 8_000
        assert ends == {"whole": 16_000}


@pytest.mark.parametrize(
    ("size", "count"),
    [
        (10 * MEGABYTE, 500),
        pytest.param(10 * MEGABYTE, 2_000, marks=pytest.mark.machine),
        pytest.param(100 * MEGABYTE, 2_000, marks=pytest.mark.machine),
    ],
)
def test_memory_of_stalled_readers(poem_file: PoemFile, size: int, count: int) -> None:
    """Each stalled reader costs the server at most 6 kB, however long the poem."""
    with running([*SERVE, poem_file(size)]) as server:
        read_all(server.addresses[0], poem(size))
        before = server.resident()
        with Crowd(server.addresses[0], poem(size), STALLED, count=count) as crowd:
            crowd.run(until=crowd.begun)
            assert len(crowd.received) == count
            each = (server.resident() - before) / count
            print(f"{each:.0f} bytes a reader of {size} bytes")
            assert each <= 6_000


def sending(port: int) -> int:
    """Bytes that wait in the kernel for the readers of `port`."""
    total = 0
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        _, local, _, _, queues, *_ = line.split()
        if local.endswith(f":{port:04X}"):
            total += int(queues.split(":")[0], 16)
    return total


@pytest.mark.machine
def test_stalled_readers_share_the_poems_pages(poem_file: PoemFile) -> None:
    """The send buffers of 200 of them, megabytes each, are the poem's own pages."""
    size = 10 * MEGABYTE
    with running([*SERVE, poem_file(size)]) as server:
        read_all(server.addresses[0], poem(size))
        before = available_memory()
        with Crowd(server.addresses[0], poem(size), PAUSES, count=200) as crowd:
            crowd.run(until=crowd.begun)
            port = server.port
            assert eventually(lambda: sending(port) >= 200 * MEGABYTE)
            used, waiting = before - available_memory(), sending(port)
        print(f"{waiting / 200:.0f} bytes wait for each, of which {used / 200:.0f} are its own")
        assert used <= waiting / 2


def census(server: Server, report: Path) -> dict[str, float]:
    """The counts that `census.py` makes of its own process now."""
    report.unlink(missing_ok=True)
    server.signal(signal.SIGUSR1)
    assert eventually(report.exists)
    figures: dict[str, float] = json.loads(report.read_text(encoding="utf-8"))
    return {**figures, "sockets": server.sockets()}


@pytest.mark.parametrize("times", [200, pytest.param(3_300, marks=pytest.mark.machine)])
def test_visits_leave_nothing_behind(poem_file: PoemFile, tmp_path: Path, times: int) -> None:
    """After up to 10,000 connections no protocol, timer, socket or memory is left."""
    report = tmp_path / "census.json"
    program = [sys.executable, Path(__file__).with_name("census.py"), *SERVE[len(POETRY) :]]
    # The sweep is a timer while there are connections, and the log has one during a flood.
    soon = ["--idle-timeout", "4", "--log-level", "error"]
    sizes = (SHORT, MEGABYTE)

    with running(
        [*program, *soon, *map(poem_file, sizes)], listeners=2, env={"CENSUS": str(report)}
    ) as server:

        def visit(count: int) -> None:
            """Read the short poem whole, and have a tenth of the readers reset in the long one."""
            for habit in (PLAIN, SPEAKS, Habit(half_closes=True)):
                ends = read_all(server.addresses[0], poem(SHORT), habit, count=count, at_once=100)
                assert ends == {"whole": count}
            with Crowd(server.addresses[1], poem(MEGABYTE), PAUSES, count=count // 10) as leaving:
                leaving.run(until=leaving.begun)

        idle = {"protocols": 0, "timers": 0, "sockets": server.sockets()}
        visit(min(times, 500))
        assert eventually(lambda: census(server, report) == idle), census(server, report)
        resident = server.resident()
        visit(times)
        assert eventually(lambda: census(server, report) == idle), census(server, report)
        grown = server.resident() - resident
        print(idle, f"grown by {grown} bytes")
        assert grown <= 2_000_000
        assert "Traceback" not in server.stderr
