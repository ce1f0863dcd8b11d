"""Limits of a server, and their defaults, for the library and for both command lines."""

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
        """Check the range of each limit.

        @raise ValueError: if one is out of range; the message names it.
        """
        if self.max_connections is not None and self.max_connections < 1:
            raise ValueError(f"max_connections has to be at least 1, not {self.max_connections}")
        if not self.idle_timeout > 0:
            raise ValueError(f"idle_timeout has to be more than 0 s, not {self.idle_timeout:g}")
        if not self.grace >= 0:
            raise ValueError(f"grace has to be at least 0 s, not {self.grace:g}")


DEFAULTS = Limits()
