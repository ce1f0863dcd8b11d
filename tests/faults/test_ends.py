"""However a server ends, no reader takes a part of a poem for the whole."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import PoemFile
from tests.faults.conftest import BARE, NAIVE
from tests.faults.readers import PAUSES, Crowd, Habit, poem, read_all, refuses
from tests.processes import SERVE, eventually, running

LONG = 10_000_000
READERS = 50

MOVES = Habit(at_a_time=4096)
"""Reads all the time, so that the kernel holds little when the end comes."""

SLOW = ["--num-bytes", "1000", "--delay", "0.05"]
"""The slow poetry server: between two parts the kernel holds nothing, and a FIN would arrive."""


def ends_of(
    command: Sequence[str | Path], habit: Habit, number: int, poem_file: PoemFile
) -> tuple[dict[str, int], int]:
    """Send a signal while READERS are in the middle; give their ends and the exit code."""
    with (
        running([*command, poem_file(LONG)]) as server,
        Crowd(server.addresses[0], poem(LONG), habit, count=READERS) as crowd,
    ):
        crowd.run(until=crowd.begun)
        assert len(crowd.received) == READERS
        server.signal(number)
        if habit.takes is not None:
            server.wait()
            crowd.resume()
        ends = crowd.run()
        return dict(ends), server.wait()


@pytest.mark.parametrize("habit", [PAUSES, MOVES], ids=["paused", "moving"])
@pytest.mark.parametrize(
    ("number", "options", "code"),
    [
        (signal.SIGKILL, [], -signal.SIGKILL),
        (signal.SIGTERM, ["--grace", "0.2"], 0),
        (signal.SIGINT, ["--grace", "0.2"], 0),
        (signal.SIGTERM, ["--grace", "0"], 0),
        (signal.SIGKILL, SLOW, -signal.SIGKILL),
        (signal.SIGTERM, [*SLOW, "--grace", "0.2"], 0),
    ],
    ids=["KILL", "TERM", "INT", "no grace", "slow KILL", "slow TERM"],
)
def test_killed_or_impatient_server_resets(
    poem_file: PoemFile, number: int, options: list[str], code: int, habit: Habit
) -> None:
    """A killed server, and one whose grace runs out, resets its readers."""
    ends, exit_code = ends_of([*SERVE, *options], habit, number, poem_file)
    print(ends)
    assert set(ends) <= ({"reset"} if habit is PAUSES else {"reset", "whole"})
    assert exit_code == code


@pytest.mark.evidence
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_naive_server_truncates_with_a_clean_end(poem_file: PoemFile, number: int) -> None:
    """The tutorial's server gives every reader in flight a clean end of a part."""
    ends, _ = ends_of([*NAIVE, "serve"], PAUSES, number, poem_file)
    print("naive:", ends)
    assert ends == {"truncated": READERS}


@pytest.mark.parametrize("habit", [PAUSES, MOVES], ids=["paused", "moving"])
def test_stopped_reactor_resets(poem_file: PoemFile, habit: Habit) -> None:
    """A program with the bare factory that stops its reactor resets its readers."""
    ends, _ = ends_of(BARE, habit, signal.SIGTERM, poem_file)
    print(ends)
    assert set(ends) <= ({"reset"} if habit is PAUSES else {"reset", "whole"})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_serves_readers_in_flight(poem_file: PoemFile, number: int) -> None:
    """A stop closes the listeners, serves readers in flight whole, and exits with 0."""
    with (
        running([*SERVE, poem_file(LONG)]) as server,
        Crowd(server.addresses[0], poem(LONG), PAUSES, count=READERS) as crowd,
    ):
        crowd.run(until=crowd.begun)
        server.signal(number)
        assert eventually(lambda: refuses(server.addresses[0]))
        assert server.process.poll() is None
        crowd.resume()
        assert crowd.run() == {"whole": READERS}
        assert server.wait() == 0
        assert "Traceback" not in server.stderr


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_resets_at_once(poem_file: PoemFile, first: int, second: int) -> None:
    """A second signal resets the readers that the first would have waited for."""
    with (
        running([*SERVE, "--grace", "3600", poem_file(LONG)]) as server,
        Crowd(server.addresses[0], poem(LONG), PAUSES, count=READERS) as crowd,
    ):
        crowd.run(until=crowd.begun)
        server.signal(first)
        assert eventually(lambda: refuses(server.addresses[0]))
        server.signal(second)
        assert server.wait() == 0
        crowd.resume()
        assert crowd.run() == {"reset": READERS}


def test_stop_does_not_wait_for_whole_readers(poem_file: PoemFile) -> None:
    """Whole readers that keep their end open do not hold up a stop."""
    with (
        running([*SERVE, "--grace", "3600", poem_file(LONG)]) as server,
        Crowd(server.addresses[0], poem(LONG), Habit(stays=True), count=5) as crowd,
    ):
        assert crowd.run() == {"whole": 5}
        assert server.stop() == 0


def test_stop_resets_or_serves_waiting_readers(poem_file: PoemFile) -> None:
    """Readers that the limit keeps waiting are reset by a stop, or have the poem whole."""
    with (
        running([*SERVE, "--max-connections", "10", poem_file(LONG)]) as server,
        Crowd(server.addresses[0], poem(LONG), PAUSES, count=10) as crowd,
        Crowd(server.addresses[0], poem(LONG), count=50) as waiting,
    ):
        crowd.run(until=crowd.begun)
        assert waiting.run(quiet=0.5) == {"waiting": 50}
        server.signal(signal.SIGTERM)
        assert eventually(lambda: refuses(server.addresses[0]))
        crowd.resume()
        assert crowd.run() == {"whole": 10}
        ends = waiting.run()
        print(dict(ends))
        assert ends["whole"] + ends["reset"] == 50
        assert server.wait() == 0


def test_idle_server_stops_at_once(poem_file: PoemFile) -> None:
    """A stop without any reader in flight ends at once with exit code 0."""
    with running([*SERVE, "--grace", "3600", poem_file(3_000)]) as server:
        assert read_all(server.addresses[0], poem(3_000)) == {"whole": 1}
        assert server.stop() == 0


def test_hup_serves_the_new_poem(tmp_path: Path) -> None:
    """After HUP new readers have the new poem, and those in flight the old one."""
    file = tmp_path / "poem.txt"
    file.write_bytes(poem(LONG))
    new = poem(LONG + 1)

    with (
        running([*SERVE, file]) as server,
        Crowd(server.addresses[0], poem(LONG), PAUSES, count=5) as crowd,
    ):
        crowd.run(until=crowd.begun)
        (tmp_path / "new.txt").write_bytes(new)
        (tmp_path / "new.txt").replace(file)
        server.signal(signal.SIGHUP)
        assert eventually(lambda: read_all(server.addresses[0], new) == {"whole": 1})
        crowd.resume()
        assert crowd.run() == {"whole": 5}
        assert server.stop() == 0


@pytest.mark.parametrize(
    "spoil",
    [Path.unlink, lambda path: path.write_bytes(b""), lambda path: (path.unlink(), path.mkdir())],
    ids=["deleted", "emptied", "directory"],
)
def test_hup_keeps_the_old_poem(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    """Where HUP finds no poem, the old one stays and the log names the file."""
    file = tmp_path / "poem.txt"
    file.write_bytes(poem(LONG))
    with (
        running([*SERVE, file]) as server,
        Crowd(server.addresses[0], poem(LONG), PAUSES, count=5) as crowd,
    ):
        crowd.run(until=crowd.begun)
        spoil(file)
        before = len(server.stderr)
        server.signal(signal.SIGHUP)
        assert eventually(lambda: str(file) in server.stderr[before:])
        assert "Traceback" not in server.stderr
        assert read_all(server.addresses[0], poem(LONG), count=5) == {"whole": 5}
        crowd.resume()
        assert crowd.run() == {"whole": 5}
        assert server.stop() == 0
