"""Limits of a server, their defaults, and checks of numbers: for the library and both commands."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """The limits of a `PoetryService`.

    @ivar max_connections: most connections at once; None, or more than that: as many as the
        descriptor limit (RLIMIT_NOFILE, raised to its hard value) allows.
    @ivar idle_timeout: seconds without progress after which a peer is reset.
    @ivar grace: seconds that a stop waits for readers in flight.
    """

    max_connections: int | None = None
    idle_timeout: float = 60.0
    grace: float = 30.0

    def check(self) -> None:
        """Check the type and the range of each limit.

        @raise TypeError: if one is no number; the message names it.
        @raise ValueError: if one is out of range; the message names it.
        """
        if self.max_connections is not None:
            check_count("max_connections", self.max_connections)
        check_seconds("idle_timeout", self.idle_timeout)
        check_seconds("grace", self.grace, zero=True)


DEFAULTS = Limits()


def check_count(name: str, count: int) -> None:
    """Check the argument `name`, which counts connections or bytes.

    @raise TypeError: if it is no whole number.
    @raise ValueError: if it is less than 1.
    """
    if not isinstance(count, int):
        raise TypeError(f"{name} has to be a whole number, not {count!r}")
    if count < 1:
        raise ValueError(f"{name} has to be at least 1, not {count}")


def check_seconds(name: str, seconds: float, *, zero: bool = False) -> None:
    """Check the argument `name`, a time in seconds of more than 0 (or at least 0: `zero`).

    @raise TypeError: if it is no number.
    @raise ValueError: if it is less, no number (nan), or more than any timer takes.
    """
    if not isinstance(seconds, int | float):
        raise TypeError(f"{name} has to be a number of seconds, not {seconds!r}")
    if not (seconds > 0 or (zero and seconds == 0)):
        least = "at least" if zero else "more than"
        raise ValueError(f"{name} has to be {least} 0 s, not {seconds:g}")
    try:
        float(seconds)
    except OverflowError:
        raise ValueError(f"{name} is more seconds than any timer takes") from None
