"""Running the reactor for a command: its clock."""

from __future__ import annotations

import subprocess
import sys
import time
from asyncio import SelectorEventLoop
from collections.abc import Iterator
from contextlib import closing
from threading import Timer
from typing import Any

import pytest
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.base import ReactorBase
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.pollreactor import PollReactor
from twisted.internet.selectreactor import SelectReactor

from poetry.clock import use_monotonic_time
from tests.faults.bad import black_hole
from tests.processes import PATIENCE


@pytest.fixture(params=[SelectReactor, PollReactor, EPollReactor, AsyncioSelectorReactor])
def reactor(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A reactor of each kind, beside the global one."""
    with closing(SelectorEventLoop()) as loop:
        yield request.param(*[loop] * (request.param is AsyncioSelectorReactor))


def test_a_clock_that_is_set_moves_no_timer(reactor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timers fire in their order when they are due, whether the clock is set back or ahead."""
    set_by = 0.0
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + set_by)
    monkeypatch.setattr(ReactorBase, "seconds", staticmethod(lambda: time.time()))
    fired: list[str] = []

    def set_clock(seconds: float) -> None:
        nonlocal set_by
        set_by = seconds
        fired.append(f"set by {seconds:g}")

    before = reactor.callLater(0.005, fired.append, "before")
    use_monotonic_time(reactor)
    assert abs(reactor.seconds() - real()) < PATIENCE
    moved = reactor.callLater(3600, fired.append, "moved")
    reactor.callLater(0.01, set_clock, -3600.0)
    reactor.callLater(0.02, moved.reset, 0.02)
    reactor.callLater(0.03, set_clock, 7200.0)
    never = reactor.callLater(1800, fired.append, "never")
    reactor.callLater(0.05, reactor.stop)
    give_up = Timer(PATIENCE, reactor.callFromThread, [reactor.crash])
    give_up.start()
    reactor.run(installSignalHandlers=False)
    give_up.cancel()
    assert fired == ["before", "set by -3600", "set by 7200", "moved"]
    assert never.active()
    assert not before.active()


BACKWARDS = """
import sys, time
start = time.time() + time.monotonic()
time.time = lambda: start - time.monotonic()
from poetry.cli import main
main()
"""


def test_get_under_a_clock_that_runs_backwards() -> None:
    """A `poetry get` gives up in time although the time of day never comes."""
    with black_hole() as port:
        command = [sys.executable, "-c", BACKWARDS, "get", "--timeout", "0.2", str(port)]
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith(b"no connection in time: nothing answers there\n")
