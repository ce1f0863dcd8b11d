"""Killed at any of its system calls, or refused any, neither end takes a part for the whole.

`make kill-points` runs these alone, and shows their table.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Event
from typing import NamedTuple, TypeVar

import pytest

from benchmarks.measure import CORES, stat
from tests.certificates import Certificates
from tests.conftest import PoemFile
from tests.faults.bad import serving, whole
from tests.faults.readers import ENDS, Crowd, poem
from tests.faults.tracing import (
    REFUSALS,
    TRACED,
    Point,
    changing,
    kill_at,
    points,
    refuse,
    traced,
    was_killed,
    was_refused,
)
from tests.processes import PATIENCE, ROOT, Server, eventually, listening_port, running

pytestmark = pytest.mark.machine

TABLE = ROOT / "build" / "kill-points.md"
"""What `make kill-points` shows, and the report of a soak names."""

READERS = 2
"""That come together: one of them waits where another is served."""

IDLE = "2"
"""Seconds after which a server resets readers that a refused call has left; so for a client."""

QUIET = 8.0
"""Seconds without news after which a reader waits for ever."""

SMALL = 4608
"""SO_SNDBUF of a listening socket, in bytes: the least there is, so that no poem goes at once."""

LOOKS = 5
"""A server has settled that sleeps, and makes no system call, in so many looks, 10 ms apart."""

SLOW = ("--num-bytes", "1500", "--delay", "0.01")


class Case(NamedTuple):
    """One kind of transport."""

    size: int
    options: Sequence[str] = ()
    tls: bool = False
    unix: bool = False
    given: bool = False
    """Its socket is handed over, with a small send buffer."""
    activated: bool = False
    """And its readers have connected before it begins."""
    twistd: bool = False


CASES = {
    "TCP, 3 kB": Case(3_000),
    "TCP, 100 kB": Case(100_000),
    "TCP, 1 MB": Case(1_000_000),
    "TCP, slow": Case(3_000, SLOW),
    "TLS, 3 kB": Case(3_000, tls=True),
    "TLS, 200 kB": Case(200_000, tls=True),
    "TLS, slow": Case(3_000, SLOW, tls=True),
    "passed-in socket, 3 kB": Case(3_000, given=True),
    "passed-in socket, 100 kB": Case(100_000, given=True),
    "started by its readers, 100 kB": Case(100_000, given=True, activated=True),
    "twistd, 100 kB": Case(100_000, twistd=True),
    "Unix socket, 1 MB (no reset)": Case(1_000_000, unix=True),
}


class Trial:
    """A server of one case, which is traced while readers come."""

    def __init__(
        self, case: Case, server: Server, address: str, certificates: Certificates, opens: int
    ) -> None:
        self.server = server
        self._sockets = server.sockets()
        self._case = case
        self._address = address
        self._context = certificates.context() if case.tls else None
        self._opens = opens

    def run(self, log: Path, tampering: Sequence[str] = (), count: int = READERS) -> Counter[str]:
        """Let readers come; give how they ended."""
        text = poem(self._case.size)
        with Crowd(self._address, text, count=count, context=self._context) as crowd:
            if self._case.activated:
                crowd.run(crowd.connected)
            with traced(self.server.pid, log, *tampering):
                os.write(self._opens, b"g")
                ends = crowd.run(quiet=QUIET)
                assert settled(self.server, log)
        return ends

    def is_sound(self) -> bool:
        """Whether the server goes on, without readers."""
        gone = self.server.process.poll() is not None
        return not gone and eventually(lambda: self.server.sockets() == self._sockets, QUIET)


def settled(server: Server, log: Path) -> bool:
    """Wait until a traced server is idle, or has ended."""
    sizes: list[int] = []

    def still() -> bool:
        sizes.append(log.stat().st_size)
        return server.process.poll() is not None or (
            stat(server.pid)[0] in "St" and sizes[-LOOKS:] == [sizes[-1]] * LOOKS
        )

    return eventually(still, tick=0.01)


@contextmanager
def trial(
    case: Case, directory: Path, poem_file: PoemFile, certificates: Certificates
) -> Iterator[Trial]:
    """A server that is up, or that waits until it is traced."""
    words: list[str | Path] = ["poetry", "serve", *case.options, "--idle-timeout", IDLE]
    if case.tls:
        words += ["-l", certificates.listen("good")]
    if case.unix:
        words += ["-l", f"unix:{directory / 'socket'}"]
    if case.given:
        words += ["-l", "systemd:domain=INET:index=0"]
    if case.twistd:
        words = ["twistd", "--nodaemon", "--pidfile=", "poetry", "--listen", "127.0.0.1:0"]
    gate, opens = os.pipe()
    given = socket.create_server(("127.0.0.1", 0), backlog=100)
    given.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    address = f"127.0.0.1:{given.getsockname()[1]}"
    env = {
        "GATE": str(gate) if case.activated else "",
        "GIVEN": str(given.fileno()) if case.given else "",
    }
    announces = not case.twistd and not case.activated
    try:
        with running(
            [*TRACED, *words, poem_file(case.size)],
            listeners=int(announces),
            env=env,
            cwd=ROOT,
            pass_fds=[gate, *[given.fileno()] * case.given],
        ) as server:
            given.close()  # else its queue would outlive the server
            if announces:
                address = server.addresses[0]
            if case.twistd:
                assert eventually(lambda: listening_port(server.pid) is not None), server.stderr
                address = f"127.0.0.1:{listening_port(server.pid)}"
            yield Trial(case, server, address, certificates, opens)
    finally:
        given.close()
        os.close(gate)
        os.close(opens)


Start = Callable[[Path], AbstractContextManager[Trial]]
One = TypeVar("One")
Result = TypeVar("Result")


def side_by_side(do: Callable[[One], Result], each: Iterable[One]) -> list[Result]:
    """Do it for each, as many at once as there are cores."""
    with ThreadPoolExecutor(len(CORES)) as pool:
        return list(pool.map(do, each))


class Tally:
    """A table of how the readers ended, a row a case.

    Of `poetry get -o`: what is under the output's name; "reset" is what was there before.
    """

    def __init__(self) -> None:
        self.rows: list[list[object]] = []

    def add(self, what: str, points: int, ends: Counter[str]) -> None:
        self.rows.append([what, points, *(ends[end] for end in ENDS)])

    def write(self) -> None:
        head: list[object] = ["at each system call", "points", *ENDS]
        lines: list[list[object]] = [head, ["---"] * len(head), *self.rows]
        TABLE.parent.mkdir(exist_ok=True)
        table = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
        TABLE.write_text(table, encoding="utf-8")


@pytest.fixture(scope="module")
def tally() -> Iterator[Tally]:
    """Write the counts of all tests here at the end."""
    tally = Tally()
    yield tally
    tally.write()


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    """Each case by its name."""
    name: str = request.param
    return name


@pytest.fixture
def start(case: str, poem_file: PoemFile, certificates: Certificates) -> Start:
    """Begin a trial of this case, with a directory of its own."""
    return lambda directory: trial(CASES[case], directory, poem_file, certificates)


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Path]:
    """Make a directory."""
    numbers = itertools.count()

    def make() -> Path:
        directory = tmp_path / str(next(numbers))
        directory.mkdir()
        return directory

    return make


def calls_of(start: Start, directory: Path, readers: int) -> list[Point]:
    """The calls of a server that serves so many readers at once, from the first accept on."""
    log = directory / "log"
    with start(directory) as trial:
        assert trial.run(log, count=readers) == {"whole": readers}
    found = points(log)
    return found[[point.name for point in found].index("accept4") :]


def let_down(case: str, ends: Counter[str]) -> int:
    """How many readers the promise was broken for."""
    documented = ends["truncated"] if CASES[case].unix else 0  # Unix sockets have no reset
    return ends["truncated"] + ends["waiting"] + ends["wrong"] - documented


def test_killed_at_any_call(
    case: str, start: Start, fresh: Callable[[], Path], tally: Tally
) -> None:
    """A server that is killed at any system call leaves no reader with a part and a clean end."""
    each = changing(calls_of(start, fresh(), READERS))

    def killed(point: Point) -> Counter[str] | None:
        directory = fresh()
        with start(directory) as trial:
            ends = trial.run(directory / "log", kill_at(point))
        return ends if was_killed(directory / "log") else None

    kills = [ends for ends in side_by_side(killed, each) if ends is not None]
    ends = sum(kills, Counter[str]())
    tally.add(f"{case}: killed", len(kills), ends)
    assert len(kills) > len(each) / 2  # the others came once more in the trace
    assert let_down(case, ends) == 0, dict(ends)


Refusal = tuple[Point, str]


def test_refused_any_call(case: str, start: Start, fresh: Callable[[], Path], tally: Tally) -> None:
    """A server that is refused any system call goes on, and its readers know what they have."""
    if CASES[case].activated:
        return  # once it serves, it is as the one before
    each = [
        (point, error)
        for point in calls_of(start, fresh(), 1)
        for error in REFUSALS.get(point.name, "").split()
        if point.name != "close"  # it would not be made, but Linux closes whatever it answers
    ]
    faults: list[object] = []

    def refused(mine: list[Refusal]) -> list[Counter[str]]:
        """Refuse one after the other, to one server for as long as nothing goes wrong."""
        counts: list[Counter[str]] = []
        directory = fresh()
        log = directory / "log"
        with start(directory) as trial:
            while mine:
                point, error = mine.pop()
                ends = trial.run(log, refuse(point, error), count=1)
                if was_refused(log):
                    counts.append(ends)
                if let_down(case, ends) or not trial.is_sound():
                    faults.append((*point, error, dict(ends), trial.server.stderr[-2000:]))
                    break
        return [*counts, *(refused(mine) if mine else [])]

    halves = [each[number :: len(CORES)] for number in range(len(CORES))]
    refusals = list(itertools.chain(*side_by_side(refused, halves)))
    tally.add(f"{case}: refused", len(refusals), sum(refusals, Counter[str]()))
    assert len(refusals) > len(each) / 2
    assert not faults


# poetry get -o


POEM = poem(300_000)
OLD = b"an old poem\n"
BEFORE = ["no file", "an old file"]


class Got(NamedTuple):
    """The result of a `poetry get -o`."""

    code: int
    error: str
    file: bytes | None


def get(directory: Path, old: bool, tampering: Sequence[str] = ()) -> Got:
    """Fetch a poem to a file; the process is traced from when it has connected."""
    connected, go = Event(), Event()

    def handle(sock: socket.socket) -> None:
        connected.set()
        go.wait(PATIENCE)
        whole(sock, POEM)

    output = directory / "poem.txt"
    if old:
        output.write_bytes(OLD)
    with serving(handle) as port:
        process = subprocess.Popen(
            [*TRACED, "poetry", "get", "--timeout", IDLE, "-o", output, f"127.0.0.1:{port}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        try:
            assert connected.wait(PATIENCE)
            assert eventually(lambda: stat(process.pid)[0] == "S")
            with traced(process.pid, directory / "log", *tampering):
                go.set()
                _, error = process.communicate(timeout=PATIENCE)
        finally:
            go.set()
            process.kill()
            process.communicate()
    return Got(process.returncode, error, output.read_bytes() if output.exists() else None)


@pytest.fixture(params=[False, True], ids=BEFORE)
def old(request: pytest.FixtureRequest) -> bool:
    """Whether there is a file already."""
    return bool(request.param)


def calls_of_get(directory: Path, old: bool) -> list[Point]:
    assert get(directory, old) == (0, "", POEM)
    return points(directory / "log")


def test_get_killed_at_any_call(fresh: Callable[[], Path], old: bool, tally: Tally) -> None:
    """A `get -o` that is killed at any system call leaves no part of a poem under its name."""
    each = changing(calls_of_get(fresh(), old))

    def killed(point: Point) -> str:
        directory = fresh()
        got = get(directory, old, kill_at(point))
        return left(got, old) if was_killed(directory / "log") else ""

    ends = Counter[str](filter(None, side_by_side(killed, each)))
    tally.add(f"get, {BEFORE[old]}: killed", ends.total(), ends)
    assert ends.total() > len(each) / 2
    assert set(ends) <= {"whole", "reset"}


def left(got: Got, old: bool) -> str:
    """The content under the name of the output: the poem, the old file's, or something else."""
    return {POEM: "whole", OLD if old else None: "reset"}.get(got.file, "truncated")


def test_get_refused_any_call(fresh: Callable[[], Path], old: bool, tally: Tally) -> None:
    """A `get -o` that is refused any system call says so, or has the poem whole."""
    each = [
        (point, error)
        for point in calls_of_get(fresh(), old)
        for error in REFUSALS.get(point.name, "").split()
    ]

    def refused(refusal: Refusal) -> tuple[Refusal, Got] | None:
        directory = fresh()
        got = get(directory, old, refuse(*refusal))
        return (refusal, got) if was_refused(directory / "log") else None

    refusals = list(filter(None, side_by_side(refused, each)))
    ends = Counter(left(got, old) for _, got in refusals)
    tally.add(f"get, {BEFORE[old]}: refused", len(refusals), ends)
    assert len(refusals) > len(each) / 2
    assert not [refusal for refusal in refusals if not is_reported(refusal[1], old)]


def is_reported(got: Got, old: bool) -> bool:
    """Whether the exit code and standard error describe the file."""
    if got.code == 0:
        return left(got, old) == "whole"
    lines = got.error.splitlines()
    return left(got, old) != "truncated" and len(lines) == 1
