"""python -m benchmarks.quick: four ratios to the tutorial's CPU beside the committed, in a minute.

Exits with 1 where each round was dearer than every committed one.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.cost import LONG
from benchmarks.delivery import RSA
from benchmarks.measure import Json
from benchmarks.peers import LIBRARY, NAMED, THIS, TUTORIAL, Peer
from benchmarks.report import a_poem, newest, ranged, ratios, table
from benchmarks.rows import Work


class Check(NamedTuple):
    """One ratio, and where the committed result has it."""

    peer: Peer
    work: Work
    place: tuple[str, ...]


CHECKS = (
    Check(NAMED[THIS], Work("3 kB", readers=1_000), ("cost", "short")),
    Check(NAMED[THIS], Work("10 MB", LONG, 40, 4), ("cost", "long")),
    Check(LIBRARY[1], Work("3 kB, bare factory", readers=1_000), ("rows", "library", "32 at once")),
    Check(
        NAMED[THIS],
        Work("3 kB over TLS", readers=150, tls=RSA),
        ("rows", "tls", "handshake and 3 kB, RSA"),
    ),
)


def ratio(runs: Json, peer: Peer) -> list[float]:
    """Its CPU a poem to the tutorial's, round by round."""
    theirs = a_poem(runs[TUTORIAL], "server_cpu")
    return ratios(a_poem(runs[peer.name], "server_cpu"), theirs)


def committed(result: Json, check: Check) -> list[float]:
    """The committed ratios; none where the result is older than the check."""
    for name in check.place:
        result = result.get(name, {})
    return ratio(result, check.peer) if check.peer.name in result else []


def main() -> int:
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    result = newest()
    control = result["machine"]["congestion_control"]
    rows, worse = [], False
    with tempfile.TemporaryDirectory() as directory:
        for check in CHECKS:
            same = replace(check.work, congestion=control)  # long poems depend on it
            work = check.work if same.missing() else same
            runs = work.measure([check.peer, NAMED[TUTORIAL]], Path(directory), quick=False)
            now = ratio(runs, check.peer)
            then = committed(result, check)
            verdict = "not in it"
            if then:
                verdict = "worse" if min(now) > max(then) else "as it was"
                verdict = "better" if max(now) < min(then) else verdict
            worse |= verdict == "worse"
            rows.append([check.work.title, ranged(now), ranged(then) if then else "", verdict])
    head = ["CPU to the tutorial's", "now", f"on {result['taken']}", ""]
    print(table(head, rows))
    print(f"\nMedian (least to greatest) of seven rounds; the committed ones with {control}.")
    return int(worse)


if __name__ == "__main__":
    sys.exit(main())
