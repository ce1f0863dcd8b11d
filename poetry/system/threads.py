"""Threads that a process does not wait for when it ends."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure


def in_daemon_thread(work: Callable[[], Any]) -> Deferred[Any]:
    """Call `work` in a thread that the process does not wait for when it ends.

    It would wait for a thread of the reactor's pool, however long a file system does not answer.

    @return: fires with the result of `work`, or fails with what it raises.
    @raise RuntimeError: if no thread can be started.
    """
    from twisted.internet import reactor

    done: Deferred[Any] = Deferred()

    def run() -> None:
        try:
            result = work()
        except BaseException:
            result = Failure()
        reactor.callFromThread(done.callback, result)  # type: ignore[attr-defined]

    Thread(target=run, daemon=True).start()
    return done
