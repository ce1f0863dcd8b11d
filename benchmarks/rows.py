"""Rows beside the main ones: as a library, TLS, with a log, in two processes, and long poems' rate.

Each table is data: who is measured, and at which work.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.cost import LONG, SHORT, batch, hold, rounds
from benchmarks.delivery import P_256, RSA, make_certificate
from benchmarks.measure import Json, with_congestion, write_poem
from benchmarks.peers import LIBRARY, LOGGING, NAMED, SHARING, THIS, TUTORIAL, Peer

CONTROLS = ("cubic", "bbr")


@dataclass(frozen=True)
class Work:
    """So many readers in a round, so many at once, of a poem of `size` bytes."""

    title: str
    size: int = SHORT
    readers: int = 2_000
    together: int = 32
    rests: bool = False
    """All connect, rest after their first byte, and then read on."""
    rounds: int = 7
    """How often each peer is measured: more often where a round is short, and scatters."""
    tls: str = ""
    """The kind of the server's key; without one, plain TCP."""
    discard: bool = False
    """The kernel drops what the readers receive, so that they are not the limit."""
    rate: bool = False
    """What counts is not the processor time, but poems or bytes a second."""
    congestion: str = ""
    """The congestion control; by default the machine's."""

    def missing(self) -> str | None:
        """What keeps it from being measured, or None."""
        if not self.congestion:
            return None
        known = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
        if self.congestion not in known.read_text(encoding="ascii").split():
            return f"the kernel has no {self.congestion}"
        return None if os.geteuid() == 0 else "not root"

    def measure(self, peers: Sequence[Peer], directory: Path, quick: bool) -> Json:
        """A list a field for each peer, with an entry a round."""
        poem = write_poem(directory, self.size)
        readers = max(self.readers // 20, 4) if quick else self.readers
        count = 1 if quick else self.rounds
        certificate = make_certificate(directory, self.tls) if self.tls else None
        if self.rests:
            measure = hold(poem, self.readers)
        else:
            tls = certificate is not None
            measure = batch(poem, readers, self.together, tls=tls, discard=self.discard)
        able = [peer for peer in peers if not peer.missing()]
        run = partial(rounds, able, poem, count, measure, certificate)
        return with_congestion(self.congestion, run) if self.congestion else run()


@dataclass(frozen=True)
class Table:
    """Who is measured, at which work."""

    title: str
    peers: Sequence[Peer]
    works: Sequence[Work]
    base: str = TUTORIAL
    """Whom the others are compared with."""


SERVERS = tuple(NAMED[name] for name in (THIS, TUTORIAL, "asyncio", "uvloop"))

RATES = (
    Work("50 at once", LONG, 100, 50, rate=True),
    Work("50 that discard", LONG, 100, 50, discard=True, rate=True),
    Work("one at a time", LONG, 20, 1, rate=True),
    Work("one that discards", LONG, 20, 1, discard=True, rate=True),
)

TABLES = {
    "library": Table(
        "CPU µs a 3 kB poem",
        LIBRARY,
        [
            Work("32 at once"),
            Work("one at a time", together=1),
            Work("ten that come, rest and go", readers=10, rests=True, rounds=21),
        ],
    ),
    "tls": Table(
        "CPU µs a poem over TLS",
        (*SERVERS, NAMED["nginx"]),
        [
            Work("handshake and 3 kB, P-256", readers=500, tls=P_256),
            Work("handshake and 3 kB, RSA", readers=500, tls=RSA),
            Work("a thousand handshakes at once, RSA", readers=1_000, together=1_000, tls=RSA),
            Work("10 MB", LONG, 20, 4, tls=RSA),
        ],
    ),
    "logging": Table("CPU µs a 3 kB poem, with a log", LOGGING, [Work("32 at once")], THIS),
    "processes": Table(
        "one core and two",
        SHARING,
        [Work("CPU µs a 3 kB poem"), Work("poems/s", rate=True)],
        THIS,
    ),
    "congestion": Table(
        "CPU µs a 10 MB poem",
        SERVERS,
        [Work(control, LONG, 100, 4, congestion=control) for control in CONTROLS],
    ),
    "rate": Table(
        "MB/s of 10 MB poems",
        SERVERS,
        [
            replace(work, title=f"{work.title}, {control}", congestion=control)
            for work in RATES
            for control in CONTROLS
        ],
    ),
}


def run(peers: Sequence[Peer], directory: Path, quick: bool) -> Json:
    """Each work of each table, in interleaved rounds; what cannot be measured is left out."""
    names = {peer.name for peer in peers}
    results: Json = {}
    for name, table in TABLES.items():
        chosen = [peer for peer in table.peers if peer.name.partition(",")[0] in names]
        results[name] = {
            work.title: work.measure(chosen, directory, quick)
            for work in table.works
            if not work.missing()
        }
    return results
