"""Errors of a poem, as exceptions that carry the data.

It loads nothing of Twisted's, as the commands name errors before they do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poetry.text import text_of

if TYPE_CHECKING:
    from twisted.python.failure import Failure


class PoemError(Exception):
    """A poem was not transferred whole; base of the errors below.

    @cvar outcome: the word for the error in logs and metrics.
    """

    outcome = "failed"


class PoemTruncated(PoemError):
    """The connection broke after `received` bytes; `reason` is the transport's Failure."""

    outcome = "truncated"

    def __init__(self, received: int, reason: Failure) -> None:
        super().__init__(received, reason)
        self.received = received
        reason.cleanFailure()  # its frames would keep the poem
        self.reason = reason

    def __str__(self) -> str:
        return f"truncated after {self.received:,} bytes: {text_of(self.reason.value)}"


class EmptyPoem(PoemError, ValueError):
    """The poem has no bytes: on the wire it would look the same as a refused connection."""

    outcome = "empty"

    def __init__(
        self, message: str = "an empty poem: the stream ended before its first byte"
    ) -> None:
        super().__init__(message)


class PoemTooLong(PoemError):
    """The poem has more than `limit` bytes."""

    outcome = "too_long"

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"too long: more than {self.limit:,} bytes"


class PoemTimedOut(PoemError):
    """No byte was transferred for `seconds`, after `received` bytes (for a sender: bytes sent)."""

    outcome = "timed_out"

    def __init__(self, seconds: float, received: int) -> None:
        super().__init__(seconds, received)
        self.seconds = seconds
        self.received = received

    def __str__(self) -> str:
        return f"timed out: nothing for {self.seconds:g} s after {self.received:,} bytes"


class PoemMismatch(PoemError):
    """The poem's SHA-256 is `actual`, not `expected` (both hexadecimal)."""

    outcome = "mismatch"

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(expected, actual)
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        return f"wrong digest: expected {self.expected}, got {self.actual}"


class PoemStopped(PoemError):
    """Our side was told to stop before the end of the poem."""

    outcome = "stopped"

    def __init__(self, message: str = "stopped before the end of the poem") -> None:
        super().__init__(message)
