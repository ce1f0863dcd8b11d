"""Messages and the progress bar of a download, on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, TextIO

from poetry.text import one_line, printable

DELAY = 0.5
"""Seconds after which the bar appears: a short download shows none."""

PERIOD = 0.5
"""Seconds between two updates while nothing comes."""

SILENCE = 2.0
"""Seconds without data after which the bar says so."""

COLUMNS = 80
"""Width of a terminal whose width is unknown, as on a serial line."""


def is_terminal(stream: TextIO | None) -> bool:
    """Check whether a standard stream is open and a terminal."""
    return stream is not None and stream.isatty()


@contextmanager
def progress_bar(
    reactor: Any, *, shown: bool
) -> Iterator[tuple[Callable[[int], object], Callable[[str], object]]]:
    """Make two functions: to advance a bar on standard error by bytes, and to write a line there.

    Neither blocks if standard error is not read. In a line, what cannot be printed is escaped, as
    it may come from a server, and line ends are blanks.
    """
    from poetry.system.streams import LossyStream

    if sys.stderr is None:  # it is closed
        yield (lambda _: None), (lambda _: None)
        return
    stream = LossyStream(sys.stderr.fileno())
    if not shown:
        yield (lambda _: None), (lambda line: stream.write(f"{_shown(line)}\n"))
        return
    with _Bar(reactor, stream) as bar:
        yield bar.advance, (lambda line: bar.write(_shown(line)))


def _shown(line: str) -> str:
    return printable(one_line(line))


class _Bar:
    """A progress bar of tqdm that is also updated while nothing comes."""

    def __init__(self, reactor: Any, stream: Any) -> None:
        for name in [name for name in os.environ if name.startswith("TQDM_")]:
            del os.environ[name]  # the options of the command decide
        from tqdm import tqdm
        from twisted.internet.task import LoopingCall

        self._stream = stream
        self._last = monotonic()
        self._tqdm = tqdm(
            unit="B",
            unit_scale=True,
            file=stream,
            leave=False,
            delay=DELAY,
            miniters=0,  # draw also if nothing came
            ncols=_columns(),
        )
        self._ticks = LoopingCall(self._tick)
        self._ticks.clock = reactor

    def __enter__(self) -> _Bar:
        self._ticks.start(PERIOD, now=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._ticks.stop()
        self._tqdm.close()

    def advance(self, size: int) -> None:
        """Advance the bar by `size` bytes."""
        self._last = monotonic()
        self._tqdm.set_postfix_str("", refresh=False)
        self._tqdm.update(size)

    def write(self, line: str) -> None:
        """Write a line above the bar."""
        if self._is_drawn:
            self._tqdm.write(line, file=self._stream)
        else:  # tqdm would draw the bar now, and leave it
            self._stream.write(f"{line}\n")

    @property
    def _is_drawn(self) -> bool:
        return self._tqdm.last_print_t >= self._tqdm.start_t + DELAY

    def _tick(self) -> None:
        silence = monotonic() - self._last
        postfix = f"nothing for {silence:.0f} s" if silence >= SILENCE else ""
        self._tqdm.set_postfix_str(postfix, refresh=False)
        self._tqdm.update(0)


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or COLUMNS
    except OSError:  # it is no terminal
        return COLUMNS
