"""python -m benchmarks.soak: readers of every habit, for minutes, on servers that have a hard time.

Their poems change, are missing or empty; their logs are not read for a while; one of them is
stopped, killed and started again. Prints what became of the readers, and what the servers hold; of
those whose packets get lost as well (`benchmarks.loss`), and what `make kill-points` has found.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import random
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread, Timer
from typing import NamedTuple

from benchmarks import loss
from benchmarks.delivery import make_certificate
from benchmarks.measure import STARTING, files_in_memory
from benchmarks.report import table
from tests.faults.readers import ENDS, Crowd, Habit, Numbered, numbered_poem

SIZES = (100, 3_000, 200_000, 2_500_000, 10_000_000)
TRANSPORTS = ("ipv4", "ipv6", "unix", "tls")
SLOW = 1
"""Which of the poems the slow server has."""
GRACE = 2.0
READERS = 24
"""At once."""
REST = 0.4
"""Seconds between two of them, on average: with all else this takes about half a core."""
STEP = 0.5
"""Seconds between two things that happen to a server, on average."""
PATIENCE = 30.0
"""Seconds without a byte after which a reader counts as waiting."""
IDLE = 3.0
"""The servers' idle timeout, in seconds: `stalls` is slower, and `rests` is not."""
MOST_MINUTES = 24 * 60
OFTEN = {"new poems": 60, "spoilt poems": 15, "logs left or taken up": 10, "stops": 2, "kills": 2}
"""What happens, and how often beside the others."""
FAULTS = ("bad exits", "descriptors left over", "failed scrapes", "tracebacks")
FATES = (*ENDS, "refused", "left", "unix")
"""The ends of readers, and: no server listened, or another one than before; the
reader went by itself; a clean end in the middle where nothing else can be (Unix sockets have no
reset)."""
REFUSED = (errno.ECONNREFUSED, errno.ENOTCONN)
LET_DOWN = frozenset({"truncated", "waiting", "wrong"})
KILL_POINTS = Path(__file__).parents[1] / "build" / "kill-points.md"
HELD = ("MB", "MB in files", "descriptors", "slow: MB", "slow: in files", "slow: descriptors")


class Target(NamedTuple):
    """Where a reader goes: `poem` is the number of the one that is served there."""

    transport: str
    address: str
    poem: int


class Visit(NamedTuple):
    """What a reader does; where its habit stops reading it rests, and reads on or leaves."""

    habit: Habit = Habit()
    rests: float = 0.0
    """Seconds."""
    leaves_after: int = 0
    """Leaves with a reset after so many bytes at most."""


VISITS = {
    "reads fast": Visit(),
    "reads slowly": Visit(Habit(pause=0.004)),
    "speaks first": Visit(Habit(says=b"GET / HTTP/1.1\r\nHost: poem\r\n\r\n")),
    "half closes first": Visit(Habit(half_closes=True)),
    "drips": Visit(Habit(at_a_time=1 << 14, pause=0.002, drips=b"x")),
    "rests": Visit(Habit(takes=1000), rests=IDLE / 3),
    "stalls": Visit(Habit(takes=1), rests=2 * IDLE),
    "stays": Visit(Habit(stays=True), rests=IDLE),
    "leaves midway": Visit(leaves_after=2_000_000),
    "leaves early": Visit(leaves_after=100),
}


def fate(
    target: Target,
    visit: Visit,
    context: ssl.SSLContext,
    chance: random.Random,
    is_there: Callable[[], bool],
) -> str:
    """Let one reader come and go, and give its fate.

    @param is_there: whether the server is still the one whose target it is: after a restart, who is
        at its address may be anybody.
    """
    habit = visit.habit
    if visit.leaves_after:
        habit = habit._replace(takes=chance.randrange(1, visit.leaves_after))
    expected = Numbered(target.poem)
    context_of = context if target.transport == "tls" else None
    try:
        with Crowd(target.address, lambda: expected, habit, context=context_of) as crowd:
            crowd.run(crowd.connected, quiet=PATIENCE)
            if not is_there():
                return "refused"
            crowd.run(crowd.stopped, quiet=PATIENCE)
            if crowd.stopped() and visit.leaves_after:
                crowd.leave()
                return "left"
            time.sleep(visit.rests)
            crowd.resume()
            crowd.run(quiet=PATIENCE)
    except FileNotFoundError:
        return "refused"
    for reader in crowd.ended:
        refused = reader.error is not None and reader.error.errno in REFUSED
        if reader.end == "wrong":
            print(f"{expected} of poem {target.poem}", file=sys.stderr)
        return "refused" if refused else reader.end
    return "waiting"


class Server:
    """A `poetry serve`, its log's reader, and whatever is wrong with it.

    @ivar deaths: goes up when it is told to end, and when it has.
    @ivar targets: where readers may go now.
    @ivar held: descriptors that it had before its first reader.
    """

    def __init__(self, name: str, poems: Sequence[int], directory: Path, *options: str) -> None:
        places = {
            "ipv4": "127.0.0.1:0",
            "ipv6": "[::1]:0",
            "tls": "ssl:0:interface=127.0.0.1:certKey={0}/certificate.pem:privateKey={0}/key.pem",
        }
        self.name = name
        self.command = [sys.executable, "-m", "poetry", "serve", "--metrics", "0", *options]
        self.command += ["--idle-timeout", str(IDLE), "--grace", str(GRACE)]
        self.wanted = [(transport, poem) for poem in poems for transport in TRANSPORTS]
        for transport, poem in self.wanted:
            unix = f"unix:{directory}/{name}-{poem}.socket"
            self.command += ["--listen", places.get(transport, unix).format(directory)]
        self.command += [f"{directory}/{poem}.txt" for _, poem in self.wanted]
        self.deaths = 0
        self.targets: list[Target] = []
        self.metrics = ""
        self.held = 0
        self.reads_log = Event()
        self.reads_log.set()
        self.counts: Counter[str] = Counter()

    def start(self) -> None:
        """Start it; readers may come when it serves."""
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        fcntl.fcntl(self.process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        Thread(target=self._read_log, args=(self.process.stderr,), daemon=True).start()
        timer = Timer(STARTING, self.process.kill)
        timer.start()
        lines = [self.process.stdout.readline().decode() for _ in (*self.wanted, "metrics")]
        timer.cancel()
        addresses = [line.strip().rpartition(" on ")[2] for line in lines]
        if not addresses[-1]:
            raise RuntimeError(f"{self.name} does not serve")
        self.held = self.descriptors()
        self.metrics = f"http://{addresses[-1]}/metrics"
        self.targets = [
            Target(transport, address, poem)
            for (transport, poem), address in zip(self.wanted, addresses, strict=False)
        ]

    def _read_log(self, log: Iterable[bytes]) -> None:
        for line in log:
            self.counts["log lines"] += 1
            self.counts["tracebacks"] += b"Traceback" in line
            lost = re.search(rb"(\d+) log lines were lost", line)
            self.counts["lost lines"] += int(lost[1]) if lost else 0
            self.reads_log.wait()

    def still_has(self, deaths: int) -> bool:
        return self.deaths == deaths

    def end(self, number: int) -> None:
        """Have it end, and count it where it does not."""
        self.deaths += 1
        self.targets = []  # anybody may have their ports next, such as the next process
        self.process.send_signal(number)
        try:
            code = self.process.wait(GRACE + PATIENCE)
            self.counts["bad exits"] += code != (-number if number == signal.SIGKILL else 0)
        except subprocess.TimeoutExpired:
            self.counts["bad exits"] += 1
            self.process.kill()
            self.process.wait()
        self.deaths += 1
        assert self.process.stdout is not None
        self.process.stdout.close()

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def holds(self) -> tuple[float, float, int]:
        """Its resident memory and its files in memory, in MB, and its descriptors."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        resident = int(status.split("VmRSS:")[1].split()[0]) * 1024
        return resident / 1e6, files_in_memory(self.process.pid) / 1e6, self.descriptors()


class Soak:
    """All that goes on, until it is over."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.seed = seed
        self.directory = directory
        make_certificate(directory)
        for number in range(len(SIZES)):
            self.replace(number)
        self.steady = Server("steady", range(len(SIZES)), directory)
        self.mortal = Server("mortal", range(len(SIZES)), directory)
        self.slow = Server("slow", [SLOW], directory, "--num-bytes", "200", "--delay", "0.02")
        self.servers = [self.steady, self.mortal, self.slow]
        self.over = Event()
        self.lock = Lock()
        self.fates: Counter[tuple[str, str]] = Counter()
        self.happened: Counter[str] = Counter()

    def replace(self, number: int) -> None:
        """Give a poem another text."""
        fresh = self.directory / "fresh"
        fresh.write_bytes(numbered_poem(number, SIZES[number], self.chance))
        fresh.replace(self.directory / f"{number}.txt")

    def reload(self) -> None:
        for server in self.servers:
            server.process.send_signal(signal.SIGHUP)
        self.happened["HUPs"] += 1

    def spoil(self, number: int) -> None:
        """Let a poem be empty or missing for a moment."""
        path = self.directory / f"{number}.txt"
        if self.chance.random() < 0.5:
            path.unlink()
        else:
            (self.directory / "fresh").write_bytes(b"")
            (self.directory / "fresh").replace(path)
        self.reload()
        self.over.wait(STEP / 5)

    def step(self) -> None:
        """Let something happen."""
        number = self.chance.randrange(len(SIZES))
        [what] = self.chance.choices(list(OFTEN), list(OFTEN.values()))
        self.happened[what] += 1
        if what in ("stops", "kills"):
            self.mortal.end(signal.SIGTERM if what == "stops" else signal.SIGKILL)
            self.mortal.start()
        elif what == "logs left or taken up":
            server = self.chance.choice(self.servers)
            server.reads_log.clear() if server.reads_log.is_set() else server.reads_log.set()
        else:
            if what == "spoilt poems":
                self.spoil(number)
            self.replace(number)
            self.reload()

    def read(self, number: int) -> None:
        """Be one reader after the other."""
        chance = random.Random(f"{self.seed} {number}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        while not self.over.wait(chance.expovariate(1 / REST)):
            server, name = chance.choice(self.servers), chance.choice(list(VISITS))
            deaths, targets = server.deaths, server.targets
            if not targets:
                continue
            target = chance.choice(targets)
            is_there = partial(server.still_has, deaths)
            end = fate(target, VISITS[name], context, chance, is_there)
            cut = not is_there() or name == "stalls"
            if end == "truncated" and target.transport == "unix" and cut:
                end = "unix"
            if end in LET_DOWN:
                print(f"{end}: {name} at {server.name} {target}", file=sys.stderr)
            with self.lock:
                self.fates[name, end] += 1
                self.fates[target.transport, end] += 1

    def scrape(self) -> None:
        """Be Prometheus, in a hurry."""
        while not self.over.wait(STEP):
            try:
                with urllib.request.urlopen(self.steady.metrics, timeout=10) as response:
                    self.happened["scrapes"] += b"poetry_poems_total" in response.read()
            except OSError:
                self.happened["failed scrapes"] += 1

    def run(self, minutes: float) -> list[list[object]]:
        """Begin, go on for so long, and end; give a row for each tenth of the time."""
        for server in self.servers:
            server.start()
        begin = time.monotonic()
        rows = [self.row(0.0)]
        with ThreadPoolExecutor(READERS + 1) as pool:
            busy = [pool.submit(self.scrape), *(pool.submit(self.read, n) for n in range(READERS))]
            try:
                for tenth in range(1, 11):
                    due = begin + tenth * minutes * 6
                    while (now := time.monotonic()) < due:
                        time.sleep(min(due - now, self.chance.expovariate(1 / STEP)))
                        self.step()
                    rows.append(self.row(tenth * minutes / 10))
            finally:
                self.over.set()
        for each in busy:
            each.result()
        self.settle()
        return [*rows, self.row(None)]

    def settle(self) -> None:
        """Wait until no reader is served any more, and count the descriptors that are left."""
        deadline = time.monotonic() + PATIENCE
        for server in self.servers:
            server.reads_log.set()
            while (more := server.descriptors() - server.held) > 0 and time.monotonic() < deadline:
                time.sleep(0.1)
            self.happened["descriptors left over"] += max(0, more)

    def row(self, minute: float | None) -> list[object]:
        """The state of the soak now."""
        when = "after" if minute is None else f"{minute:g}"
        readers = sum(self.fates.values()) // 2  # each is there by habit and by transport
        held = [figure for server in (self.steady, self.slow) for figure in server.holds()]
        return [when, readers, *(f"{number:.0f}" for number in held)]

    def close(self) -> None:
        for server in self.servers:
            if server.metrics and server.process.poll() is None:
                server.end(signal.SIGTERM)
            self.happened.update(server.counts)


def report(soak: Soak, rows: list[list[object]]) -> None:
    """Print what the servers held, how the readers ended, and what happened to the servers."""
    print(table(["minute", "readers", *HELD], rows), end="\n\n")
    kinds = sorted({kind for kind, _ in soak.fates}, key=lambda kind: (kind in TRANSPORTS, kind))
    print(
        table(["", *FATES], ([kind, *(soak.fates[kind, f] for f in FATES)] for kind in kinds)),
        end="\n\n",
    )
    happened = ", ".join(f"{count:,} {what}" for what, count in sorted(soak.happened.items()))
    print(happened, end="\n\n", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=865)
    options = parser.parse_args()
    if not 0 < options.minutes <= MOST_MINUTES:
        parser.error(f"--minutes is more than 0 and at most {MOST_MINUTES}")
    # the servers import this very checkout
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves no server behind
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        soak = Soak(Path(directory), options.seed)
        stack.callback(soak.close)
        lossy = []
        if not loss.missing():
            lossy = [loss.start(share, options.minutes * 60) for share in loss.SHARES]
        for process in lossy:
            stack.callback(process.terminate)
        rows = soak.run(options.minutes)
        report(soak, rows)
        lossy_ends = [loss.ends_of(process) for process in lossy]
    if why := loss.missing():
        print(f"Packet loss was not tried: {why}.\n")
    else:
        lines = zip(loss.SHARES, lossy_ends, strict=True)
        rows = [[f"{share:.0%}", *(ends[end] for end in ENDS)] for share, ends in lines]
        print(table(["packets lost each way", *ENDS], rows), end="\n\n")
    print(
        KILL_POINTS.read_text() if KILL_POINTS.exists() else "No kill points: `make kill-points`."
    )
    let_down = sum(count for (_, end), count in soak.fates.items() if end in LET_DOWN)
    let_down += sum(ends["truncated"] + ends["wrong"] for ends in lossy_ends)  # a reset can be lost
    return 1 if let_down or any(soak.happened[fault] for fault in FAULTS) else 0


if __name__ == "__main__":
    sys.exit(main())
