"""`python -m poetry ARGUMENTS...` that writes, to the file named by CENSUS, what it holds.

On USR1: a JSON line with the numbers of protocol objects and pending timers, after a collection.
At its end: the peak of its resident memory, in bytes, and the processor time, in seconds.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import time
from pathlib import Path

from poetry.cli import main


def write(**figures: float) -> None:
    report = Path(os.environ["CENSUS"])
    whole = report.with_suffix(".new")
    whole.write_text(json.dumps(figures), encoding="utf-8")
    whole.replace(report)


def count(*_: object) -> None:
    from twisted.internet import reactor

    from poetry import PoetryProtocol

    gc.collect()
    protocols = sum(isinstance(thing, PoetryProtocol) for thing in gc.get_objects())
    write(protocols=protocols, timers=len(reactor.getDelayedCalls()))


def peak() -> int:
    """Peak resident memory of this process, in bytes; getrusage would count its parent's too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, count)
    try:
        main()
    finally:
        write(peak=peak(), seconds=time.process_time())
