"""Monotonic time for the reactor."""

from __future__ import annotations

import time
from typing import Any


def use_monotonic_time(reactor: Any) -> None:
    """Make the reactor's time monotonic from now on.

    Twisted's `reactor.seconds` is the wall clock: if that is set back by an hour, each timer is an
    hour late. The time still begins at the epoch, as twisted.web expects, and timers that are
    already set keep their times.
    """
    epoch = time.time() - time.monotonic()
    reactor.seconds = lambda: epoch + time.monotonic()
