"""Runs the reactor for a command: handles signals, and returns the exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Coroutine
from functools import partial
from importlib.metadata import version
from shlex import quote
from threading import Thread
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from poetry.commands.console import FAILED, INTERRUPTED, complain, write_to_stderr
from poetry.commands.progress import is_terminal
from poetry.system.clock import use_monotonic_time
from poetry.system.endpoint_strings import TLS_TYPES, type_of
from poetry.system.features import HANGUP
from poetry.system.streams import write_now

if TYPE_CHECKING:
    from poetry.server import PoetryService


_log = Logger()


class ServiceRunner:
    """Runs a started service until TERM or INT, and then lets readers in flight finish."""

    def __init__(self, reactor: Any, service: PoetryService, log_format: str = "text") -> None:
        """@param log_format: `json`: log as well what is printed for people."""
        self._reactor = reactor
        self._service = service
        self._in_log = log_format == "json"
        self._stopping = False
        self._failure: Any = None

    def run(self) -> int:
        """Run the reactor; return the exit code.

        @raise CannotListenError: if an endpoint that listens later could not.
        """
        self._reactor.callWhenRunning(self._start)
        self._reactor.addSystemEventTrigger("before", "shutdown", self._service.stopService)
        self._reactor.run()
        _ignore_signals()
        if self._failure is not None:
            self._failure.raiseException()
        if self._in_log:
            _log.info("stopped", event="stopped")
        return 0

    def _start(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._reactor.callFromThread(self._stop))
        self._service.whenListening().addCallbacks(self._announce, self._cannot_listen)

    def _announce(self, addresses: list[str]) -> None:
        names = [factory.name for _, factory in self._service.listeners] + ["metrics"]
        lines = [f"Serving {n} on {a}\n" for n, a in zip(names, addresses, strict=False)]
        if self._in_log:
            _log.info(
                "serving on {addresses}, version {version}",
                event="started",
                addresses=" ".join(addresses),
                version=version("twisted-poetry"),
            )
        try:
            write_now(sys.stdout.fileno(), "".join(lines))
            # Over TLS it takes a name of the certificate's, in the place of the address.
            plain = [each for each in addresses[: len(names) - 1] if type_of(each) not in TLS_TYPES]
            if self._for_people and plain:
                write_now(sys.stderr.fileno(), f"To fetch it: poetry get {quote(plain[0])}\n")
        except OSError as error:
            if self._in_log:
                _log.error(
                    "standard output: {reason}", event="not_announced", reason=error.strerror
                )
            else:
                complain(f"standard output: {error.strerror}", FAILED)

    def _cannot_listen(self, failure: Any) -> None:
        from twisted.internet.defer import CancelledError

        if not failure.check(CancelledError):  # a stop before it listened
            self._failure = failure
            self._stop()

    def _stop(self) -> None:
        """Stop the reactor; when called again, reset the readers that are still in flight."""
        if self._stopping:
            self._service.grace = 0.0  # for those that the stop, which may come yet, still accepts
            self._service.abort()
        else:
            self._stopping = True
            self._reactor.stop()
            if self._for_people and self._service.connections:
                write_to_stderr("Once more (Ctrl-C) resets the readers in flight.\n")

    @property
    def _for_people(self) -> bool:
        """Whether people read standard error, and no program does."""
        return is_terminal(sys.stderr) and not self._in_log


def _ignore_signals() -> None:
    """Ignore INT, TERM and HUP from now on, so that none changes the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, HANGUP):
        if number is not None:
            signal.signal(number, signal.SIG_IGN)


def run_to_end(reactor: Any, work: Coroutine[Any, Any, bool]) -> int:
    """Run the reactor until the work is done, or cancelled by a signal; return the exit code.

    @param work: returns whether it succeeded.
    """
    from twisted.internet.defer import CancelledError, Deferred
    from twisted.internet.error import ReactorNotRunning
    from twisted.python.failure import Failure

    use_monotonic_time(reactor)
    results: list[bool | Failure] = []

    def not_running(failure: Failure) -> None:
        failure.trap(ReactorNotRunning)

    def start() -> None:
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, reactor.sigInt)
        if HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN:
            signal.signal(HANGUP, reactor.sigTerm)
        done = Deferred.fromCoroutine(work)
        reactor.addSystemEventTrigger("before", "shutdown", done.cancel)
        done.addBoth(results.append)
        done.addCallback(lambda _: reactor.stop())
        done.addErrback(not_running)

    # Exit without waiting for a resolver that does not answer.
    reactor.getThreadPool().threadFactory = partial(Thread, daemon=True)
    reactor.removeSystemEventTrigger(reactor.threadpoolShutdownID)
    reactor.callWhenRunning(start)
    reactor.run()
    _ignore_signals()
    result = results[0] if results else None
    if isinstance(result, Failure) and not result.check(CancelledError):
        return complain(f"unexpected: {result.getErrorMessage()}", FAILED)
    if not isinstance(result, bool):
        return INTERRUPTED
    return 0 if result else FAILED
