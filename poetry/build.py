"""From words to a service: what `poetry serve`, `twistd poetry` and `twist poetry` share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from poetry.addresses import server_endpoint
from poetry.errors import EmptyPoem
from poetry.logs import TransferLog
from poetry.metrics import Metrics
from poetry.poem import Poem
from poetry.server import PoemFactory, PoetryService, SlowPoetryProtocol, describe
from poetry.systemd import notify


class UsageError(ValueError):
    """What was asked for makes no sense; the message says why, in one line."""


def pair(poems: Sequence[str], addresses: Sequence[str]) -> list[tuple[str | None, str]]:
    """Which poem goes where. No poem is the sample; no address, a free port for each.

    @raise UsageError: where it is not one poem anywhere, or one address for each of several.
    """
    wanted: list[str | None] = list(poems) or [None]
    if not addresses:
        return [(poem, "0") for poem in wanted]
    if len(wanted) == 1:
        return [(wanted[0], address) for address in addresses]
    if len(wanted) != len(addresses):
        raise UsageError(
            f"{len(wanted)} poems and {len(addresses)} addresses: give one address a poem, or none"
        )
    return list(zip(wanted, addresses, strict=True))


def read_poem(word: str | None) -> tuple[bytes, str, Path | None]:
    """The poem, its name and its file: `-` is standard input, None the sample.

    @raise UsageError: where it cannot be read or is empty.
    """
    if word is None:
        return (files("poetry") / "sample.txt").read_bytes(), "sample.txt", None
    path = None if word == "-" else Path(word).absolute()
    if path is None and sys.stdin is None:
        raise UsageError("-: standard input is closed")
    try:
        poem = sys.stdin.buffer.read() if path is None else path.read_bytes()
    except (MemoryError, OSError) as error:
        raise UsageError(f"{word}: {describe(error)}") from error
    if not poem:
        raise UsageError(f"{word}: {describe(EmptyPoem())}")
    return poem, Path(word).name, path


def build_service(
    reactor: Any,
    poems: Sequence[str],
    addresses: Sequence[str],
    *,
    log_level: str = "info",
    pace: tuple[int, float] | None = None,
    metrics: str | None = None,
    **limits: Any,
) -> PoetryService:
    """A service for poems and addresses as on the command line; `limits` are PoetryService's.

    @param pace: of the slow server: bytes at a time, and seconds between them.
    @param metrics: where to serve metrics, `[HOST:]PORT`.
    @raise UsageError: where one of them makes no sense.
    """
    transfers = TransferLog(log_level)
    read: dict[str | None, tuple[bytes, str, Path | None]] = {}
    sending: dict[str | None, Poem | None] = {}
    listeners = []
    try:
        for word, address in pair(poems, addresses):
            if word not in read:
                read[word] = read_poem(word)
            factory = PoemFactory(*read[word], address)
            factory.sending = sending.setdefault(word, factory.sending)
            factory.observers = (transfers,)
            if pace is not None:
                factory.protocol = SlowPoetryProtocol
                factory.num_bytes, factory.delay = pace
                factory.clock = reactor
            listeners.append((server_endpoint(reactor, address), factory))
        service = DaemonService(listeners, clock=reactor, **limits)
        if metrics is not None:
            site = Metrics(service).site()
            service.others.append((server_endpoint(reactor, metrics), site))
    except ValueError as error:
        raise UsageError(str(error)) from error
    except ImportError as error:
        raise UsageError(f"metrics need twisted-poetry[metrics]: {error}") from error
    return service


class DaemonService(PoetryService):
    """The service as a process of its own: reads the poems again on HUP, and tells systemd."""

    def startService(self) -> None:
        """Start, and listen to HUP."""
        super().startService()
        signal.signal(signal.SIGHUP, lambda *_: self.clock.callFromThread(self.reload))
        notify("READY=1")

    def reload(self) -> None:
        """Read the poems again."""
        notify("RELOADING=1")
        super().reload()
        notify("READY=1")

    def stopService(self) -> Deferred[None]:
        """Stop, as PoetryService does."""
        notify("STOPPING=1")
        return super().stopService()
