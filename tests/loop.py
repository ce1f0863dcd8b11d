"""The global reactor, turned by hand, so that tests of real sockets need no process."""

from __future__ import annotations

import atexit
import gc
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread, current_thread, main_thread
from time import monotonic
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from poetry import PoetryProtocol

PATIENCE = 30.0
"""Seconds before a test gives up waiting: a bound, never an expectation."""

reactor: Any = _reactor

# Python waits for threads before it calls what was registered with atexit.
reactor.getThreadPool().threadFactory = partial(Thread, daemon=True)
reactor.startRunning(installSignalHandlers=False)
atexit.register(reactor.fireSystemEvent, "shutdown")


def until(condition: Callable[[], object]) -> None:
    """Turn the reactor until something holds, in the main thread: two would confuse it."""
    assert current_thread() is main_thread(), "a reactor is turned by one thread"
    give_up = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < give_up, "it never came true"
        reactor.iterate(0.02)


def wait(deferred: Any) -> Any:
    """Turn the reactor until a Deferred fires; give its result, or raise its error."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    until(lambda: results)
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


def wait_error(deferred: Deferred[Any]) -> BaseException:
    """Turn the reactor until a Deferred fails; give its error."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    until(lambda: results)
    assert isinstance(results[0], Failure), f"it did not fail, but gave {results[0]!r:.100}"
    assert results[0].value is not None
    return results[0].value


def drain(connection: socket.socket) -> bytes:
    """Read to the end while the reactor turns."""
    connection.setblocking(False)
    parts: list[bytes] = []

    def ended() -> bool:
        with suppress(BlockingIOError):
            while data := connection.recv(1 << 20):
                parts.append(data)
            return True
        return False

    until(ended)
    return b"".join(parts)


def poem_files() -> int:
    """How many files in memory this process has open for poems, once no timer keeps any."""
    until(lambda: not reactor.getDelayedCalls())
    for _ in range(3):  # what one collection frees may free more, or leave more to the next
        reactor.iterate(0)
        gc.collect()
    open_files = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum("memfd:poem" in str(target) for target in open_files)


def turn_until_still(protocol: PoetryProtocol) -> None:
    """Turn the reactor until the kernel takes no more of a poem."""
    size = -1
    while size != protocol.size:
        size = protocol.size
        reactor.iterate(0.05)
