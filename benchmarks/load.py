"""The load: a crowd of readers in a process of its own, so that its CPU is never the server's.

It takes one line of JSON (the fields of Spec), says "ready", waits for a line, and answers with one
line of JSON: how many readers ended in which of `ENDS`. If readers are to hold still it says
"holding" once all of them do, and they go on at the next line.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import ssl
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tests.faults.readers import ENDS, Crowd, Exactly, Expected, Habit

CHUNK, PACED = 1 << 20, 1 << 16
LONGEST = 900.0
"""Seconds after which a run is given up, whatever still comes."""


@dataclass(frozen=True)
class Spec:
    """What one run of the load is to do."""

    port: int
    poem: str
    readers: int
    together: int
    """How many are busy at once, those that hold still not counted."""
    say: str = ""
    half_close: bool = False
    hold_after: int = 0
    """Bytes after which a reader stops reading until all others have got as far; 0: never."""
    pause: float = 0.0
    """Seconds of rest after every 64 KiB: a reader at the pace of a network, not of a loopback."""
    patience: float = 10.0
    tls: bool = False
    compare_every: int = 1
    """One reader in so many compares its bytes; the others only count them, which is cheaper."""
    discard: bool = False
    """Count the bytes, and have the kernel drop them uncopied."""
    core: int | None = None

    def at(self, port: int) -> Spec:
        return replace(self, port=port)

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def expectations(spec: Spec) -> Iterator[Expected]:
    """What each reader expects."""
    poem = Path(spec.poem).read_bytes()
    compared, counted = Exactly(poem), Exactly(poem, counted=True)
    while True:
        yield from [counted] * (spec.compare_every - 1)
        yield counted if spec.discard else compared


def crowd_of(spec: Spec) -> Crowd:
    """The readers of one run."""
    habit = Habit(
        says=spec.say.encode(),
        half_closes=spec.half_close,
        at_a_time=PACED if spec.pause else CHUNK,
        takes=spec.hold_after or None,
        pause=spec.pause,
        discards=spec.discard,
    )
    context = None
    if spec.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return Crowd(
        f"127.0.0.1:{spec.port}",
        expectations(spec).__next__,
        habit,
        count=spec.readers,
        at_once=spec.together,
        context=context,
    )


def answer(spec: Spec) -> dict[str, Any]:
    """Run `spec` and give what came of it."""
    if spec.core is not None:
        os.sched_setaffinity(0, {spec.core})
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.disable()
    with crowd_of(spec) as crowd:
        print("ready", flush=True)
        sys.stdin.readline()
        wall, cpu = time.monotonic(), time.process_time()
        if spec.hold_after:
            crowd.run(crowd.stopped, quiet=spec.patience, patience=LONGEST)
            print("holding", flush=True)
            sys.stdin.readline()
            crowd.resume()
        ends = crowd.run(quiet=spec.patience, patience=LONGEST)
        return {
            "readers": spec.readers,
            **{end: ends[end] for end in ENDS},
            "bytes": sum(reader.received for reader in crowd.ended),
            "seconds": crowd.last - wall,
            "load_cpu": time.process_time() - cpu,
        }


if __name__ == "__main__":
    print(json.dumps(answer(Spec(**json.loads(sys.stdin.readline())))), flush=True)
