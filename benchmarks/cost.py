"""Cost: the server's CPU, its throughput, and how both and its memory grow. Rounds interleaved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks.load import Spec
from benchmarks.measure import DESCRIPTORS, Json, Served, loading, measured, peak, write_poem
from benchmarks.peers import Peer, serving

SHORT, LONG = 3_000, 10_000_000
READERS = (10, 100, 1_000, 10_000)
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
HELD_POEM = 30_000
"""Bytes of the poem of the readers that rest all at once: the kernel finds room for 10,000."""
VOLUME = 50_000_000
"""Bytes that one measurement of the growth with the poem's size sends, about."""

Measure = Callable[[Peer, Served], Json]
Certificate = tuple[Path, Path]


def rounds(
    peers: Iterable[Peer], poem: Path, count: int, measure: Measure, tls: Certificate | None = None
) -> Json:
    """Measure every peer once a round, in an order that shifts; a server lives through all rounds.

    Gives a list a field, with an entry a round.
    """
    kept: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    size = poem.stat().st_size
    able = [peer for peer in peers if peer.largest >= size and (peer.tls or not tls)]
    with ExitStack() as stack:
        servers = [(peer, stack.enter_context(serving(peer, poem, tls=tls))) for peer in able]
        for _peer, server in servers:
            # what only the first readers pay
            measured(server, Spec(server.port, str(poem), 4, 1, tls=tls is not None))
        for number in range(count):
            turn = number % max(len(servers), 1)
            for peer, server in servers[turn:] + servers[:turn]:
                for field, value in measure(peer, server).items():
                    kept[peer.name][field].append(value)
    return {name: dict(fields) for name, fields in kept.items()}


def batch(
    poem: Path, readers: int, together: int = 32, *, tls: bool = False, discard: bool = False
) -> Measure:
    """So many poems, so many at once; a peer that forks is asked for a tenth of them."""

    def measure(peer: Peer, server: Served) -> Json:
        asked = max(readers // 10, 4) if peer.forks else readers
        at_once = min(together, peer.together) if peer.forks else together
        spec = Spec(server.port, str(poem), asked, at_once, compare_every=4)
        spec = replace(spec, tls=tls, discard=discard)
        result = measured(server, spec)
        return {**result, "memory": peak(server.pid)}

    return measure


def hold(poem: Path, readers: int) -> Measure:
    """So many readers connected at once: the memory while all rest, the CPU for all of them."""

    def measure(peer: Peer, server: Served) -> Json:
        spec = Spec(server.port, str(poem), readers, peer.together, hold_after=1)
        with loading(spec) as load:
            before, memory = server.cpu(), server.memory()
            load.go()
            load.until("holding")
            held = server.memory() - memory
            load.go()
            result = load.result()
        return {**result, "server_cpu": server.cpu() - before, "memory": held}

    return measure


def by_readers(peers: Sequence[Peer], directory: Path, quick: bool) -> Json:
    poem = write_poem(directory, HELD_POEM)
    results: Json = {}
    for readers in READERS[: 1 if quick else None]:
        if readers + 100 > DESCRIPTORS:
            break  # the report names what has not been measured
        able = [peer for peer in peers if readers <= 100 or not peer.forks]
        results[str(readers)] = rounds(able, poem, 1 if quick else 3, hold(poem, readers))
    return results


def by_size(peers: Sequence[Peer], directory: Path, quick: bool) -> Json:
    results: Json = {}
    for size in SIZES[: 1 if quick else None]:
        poem = write_poem(directory, size)
        readers = min(max(VOLUME // size, 4), 100 if quick else 1_000)
        results[str(size)] = rounds(peers, poem, 1 if quick else 3, batch(poem, readers, 4))
    return results


def run(peers: Sequence[Peer], directory: Path, quick: bool) -> Json:
    """Short poems, long poems, and the growth with readers and with the poem's size."""
    short, long = write_poem(directory, SHORT), write_poem(directory, LONG)
    count = 2 if quick else 7
    return {
        "short": rounds(peers, short, count, batch(short, 200 if quick else 3_000)),
        "long": rounds(peers, long, count, batch(long, 10 if quick else 100, 4)),
        "by_readers": by_readers(peers, directory, quick),
        "by_size": by_size(peers, directory, quick),
    }
