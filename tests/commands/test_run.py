"""Running the reactor for a command: its clock, its signals, and what fails late."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.base import ReactorBase
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort

from poetry import PoetryServerFactory, PoetryService
from poetry.commands.run import ServiceRunner
from poetry.system.clock import use_monotonic_time
from tests.certificates import Certificates
from tests.commands.tools import started, terminal
from tests.conftest import PoemFile
from tests.ends import HERE, LONG, port_of, reader
from tests.faults.bad import black_hole
from tests.processes import PATIENCE, eventually, run


@contextmanager
def bounded(any_reactor: Any) -> Iterator[Timer]:
    """End a run of the reactor that would take for ever, by a timer that is dead then."""
    give_up = Timer(PATIENCE, any_reactor.callFromThread, [any_reactor.crash])
    give_up.start()
    try:
        yield give_up
    finally:
        give_up.cancel()


def test_setting_the_clock_moves_no_timer(
    any_reactor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timers fire in order when they are due, whether the clock is set back or ahead."""
    set_by = 0.0
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + set_by)
    monkeypatch.setattr(ReactorBase, "seconds", staticmethod(lambda: time.time()))
    fired: list[str] = []

    def set_clock(seconds: float) -> None:
        nonlocal set_by
        set_by = seconds
        fired.append(f"set by {seconds:g}")

    def stop() -> None:
        fired.append("moved")
        any_reactor.stop()

    before = any_reactor.callLater(0.005, fired.append, "before")
    use_monotonic_time(any_reactor)
    assert abs(any_reactor.seconds() - real()) < PATIENCE
    moved = any_reactor.callLater(3600, stop)
    any_reactor.callLater(0.01, set_clock, -3600.0)
    any_reactor.callLater(0.02, moved.reset, 0.02)
    any_reactor.callLater(0.03, set_clock, 7200.0)
    never = any_reactor.callLater(1800, fired.append, "never")
    with bounded(any_reactor):
        any_reactor.run(installSignalHandlers=False)
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


def test_get_times_out_under_a_backward_clock() -> None:
    """A `poetry get` gives up in time although the time of day never comes."""
    with black_hole() as port:
        command = [sys.executable, "-c", BACKWARDS, "get", "--timeout", "0.2", str(port)]
        done = run(command)
    assert done.returncode == 1
    assert done.stderr.endswith(b"no connection in time: nothing answers there\n")


class TurnedOnce:
    """A reactor that starts, makes one call, and ends."""

    def __init__(self, happens: Callable[[], object]) -> None:
        self.happens = happens
        self.stops = 0

    def callWhenRunning(self, function: Callable[[], object]) -> None:
        self.start = function

    def addSystemEventTrigger(self, *_: object) -> None:
        """Do nothing at the end."""

    def run(self) -> None:
        self.start()
        self.happens()

    def stop(self) -> None:
        self.stops += 1


@pytest.fixture
def signals() -> Iterator[None]:
    """Restore the handlers of signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
def test_late_failure_of_an_endpoint_ends_the_command() -> None:
    """An endpoint that fails late ends the command with its error; a stop does not."""
    for reason, stops in ((CannotListenError("", 1, OSError("no")), 1), (CancelledError(), 0)):
        listening: Deferred[None] = Deferred()
        service: Any = SimpleNamespace(
            whenListening=partial(next, iter([listening])), stopService=int
        )
        reactor: Any = TurnedOnce(partial(listening.errback, reason))
        runner = ServiceRunner(reactor, service)
        if stops:
            with pytest.raises(CannotListenError):
                runner.run()
        else:
            assert runner.run() == 0
        assert reactor.stops == stops


@pytest.mark.usefixtures("signals")
def test_endpoint_that_fails_as_the_reactor_starts_ends_the_command(any_reactor: Any) -> None:
    """A failure may come before the runner asks for it, and ends the command all the same."""
    listening: Deferred[IListeningPort] = Deferred()
    endpoint: Any = SimpleNamespace(listen=lambda _: listening)
    service = PoetryService([(endpoint, PoetryServerFactory(b"poem"))], clock=any_reactor)
    any_reactor.callWhenRunning(listening.errback, CannotListenError("", 1, OSError("no")))
    service.startService()
    with bounded(any_reactor), pytest.raises(CannotListenError):
        ServiceRunner(any_reactor, service).run()


@pytest.mark.usefixtures("signals")
def test_two_signals_at_once_leave_no_grace(any_reactor: Any) -> None:
    """The stop accepts readers from the queue; after a second signal they have no time either."""
    endpoint = serverFromString(any_reactor, HERE)
    server = PoetryServerFactory(LONG)
    service = PoetryService([(endpoint, server)], clock=any_reactor, max_connections=1, grace=3600)
    service.startService()
    runner = ServiceRunner(any_reactor, service)

    def both_signals() -> None:
        if server.connections:
            any_reactor.callFromThread(runner._stop)  # as a signal does
            any_reactor.callFromThread(runner._stop)
        else:
            any_reactor.callLater(0.01, both_signals)

    any_reactor.callWhenRunning(both_signals)
    with bounded(any_reactor) as give_up, reader(port_of(service)), reader(port_of(service)):
        assert runner.run() == 0
        assert give_up.is_alive()
    assert not server.connections


@contextmanager
def on_a_terminal(*words: str | Path) -> Iterator[tuple[subprocess.Popen[bytes], bytearray, str]]:
    """A server with its standard error on a terminal: its process, what that has shown when the
    block has ended, and its announcement."""
    with terminal() as (device, seen), started("serve", *words, stderr=device) as process:
        assert process.stdout is not None
        yield process, seen, process.stdout.readline().decode()


def test_terminal_shows_how_to_end(poem_file: PoemFile) -> None:
    """A stop that waits for readers says on a terminal how to wait for none."""
    with on_a_terminal(poem_file(10_000_000)) as (process, seen, announced):
        port = int(announced.rpartition(":")[2])
        with reader(port) as connection:
            assert connection.recv(1)
            process.send_signal(signal.SIGINT)
            said = b"Once more (Ctrl-C) resets the readers in flight.\r\n"
            assert eventually(lambda: said in seen)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0


def test_terminal_shows_no_address_of_a_certificate(certificates: Certificates) -> None:
    """Over TLS a reader writes a name of the certificate, which an address is not."""
    with on_a_terminal("-l", certificates.listen("good")) as (process, seen, announced):
        assert " on tls:" in announced
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert b"To fetch" not in seen


def test_terminal_shows_how_to_fetch(tmp_path: Path) -> None:
    """On a terminal a line on standard error has the command; standard output is unchanged."""
    path = tmp_path / "a poem"
    with on_a_terminal("-l", f"unix:{path}") as (process, seen, announced):
        assert eventually(lambda: bool(seen))
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
    assert announced == f"Serving sample.txt on unix:{path}\n"
    assert seen.decode() == f"To fetch it: poetry get 'unix:{path}'\r\n"
