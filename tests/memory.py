"""A reactor in memory, for tests of what hangs on its clock and its shutdown."""

from __future__ import annotations

from typing import Any

from twisted.internet.testing import MemoryReactorClock


class MemoryReactor(MemoryReactorClock):
    """A reactor in memory that keeps the calls for its shutdown."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.at_shutdown: list[Any] = []

    def addSystemEventTrigger(self, phase: str, event: str, call: Any) -> Any:  # type: ignore[override]
        assert (phase, event) == ("during", "shutdown")
        self.at_shutdown.append(call)
        return call

    def removeSystemEventTrigger(self, call: Any) -> None:
        self.at_shutdown.remove(call)
