"""Time that runs on steadily."""

from __future__ import annotations

import time
from typing import Any


def use_monotonic_time(reactor: Any) -> None:
    """Let the reactor's time run on steadily from now, however the clock of the machine is set.

    Twisted takes `reactor.seconds` from the wall clock: set back by an hour, it holds each timer up
    for an hour. It stays the seconds since the epoch, which twisted.web takes it for, and timers
    that are already set keep their times.
    """
    epoch = time.time() - time.monotonic()
    reactor.seconds = lambda: epoch + time.monotonic()
