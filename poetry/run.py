"""How a command runs the reactor: what signals do, and which exit code it ends with."""

from __future__ import annotations

import signal
from collections.abc import Coroutine
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any

import click

from poetry.console import FAILED, INTERRUPTED, cannot_print, complain

if TYPE_CHECKING:
    from poetry.server import PoetryService


def run_service(reactor: Any, service: PoetryService) -> int:
    """Run until TERM or INT, and let readers in flight finish; a second signal resets them."""
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if stopping:
            service.abort()
        else:
            stopping = True
            reactor.stop()

    def announce() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: reactor.callFromThread(stop))
        names = [factory.name for _, factory in service.listeners] + ["metrics"]
        try:
            for name, address in zip(names, service.addresses, strict=False):
                click.echo(f"Serving {name} on {address}")
        except OSError as error:
            cannot_print(error)

    reactor.callWhenRunning(announce)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it is done: one more must not change the exit code
    return 0


def run_to_end(reactor: Any, work: Coroutine[Any, Any, bool]) -> int:
    """Run the reactor until the work is done; a signal cancels it, so that it can clean up."""
    from twisted.internet.defer import CancelledError, Deferred
    from twisted.internet.error import ReactorNotRunning
    from twisted.python.failure import Failure

    results: list[bool | Failure] = []

    def not_running(failure: Failure) -> None:
        failure.trap(ReactorNotRunning)

    def start() -> None:
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            signal.signal(signal.SIGHUP, reactor.sigTerm)
        done = Deferred.fromCoroutine(work)
        reactor.addSystemEventTrigger("before", "shutdown", done.cancel)
        done.addBoth(results.append)
        done.addCallback(lambda _: reactor.stop())
        done.addErrback(not_running)

    # A resolver that does not answer must not hold up the end.
    reactor.getThreadPool().threadFactory = partial(Thread, daemon=True)
    reactor.removeSystemEventTrigger(reactor.threadpoolShutdownID)
    reactor.callWhenRunning(start)
    reactor.run()
    result = results[0] if results else None
    if isinstance(result, Failure) and not result.check(CancelledError):
        return complain(f"unexpected: {result.getErrorMessage()}", FAILED)
    if not isinstance(result, bool):
        return INTERRUPTED
    return 0 if result else FAILED
