"""Messages of a download on standard error, and its progress on a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

DELAY = 0.5
"""Seconds from which on progress is shown: a short download draws none."""

PERIOD = 0.5
"""Seconds between two drawings while nothing comes."""

SILENCE = 2.0
"""Seconds from which on it is said that nothing comes."""

COLUMNS = 80
"""The width of a terminal that does not tell its own, as on a serial line."""

Say = Callable[[str], object]
"""Writes a line."""


def is_terminal(stream: TextIO | None) -> bool:
    """Tell whether a standard stream is open, and a terminal."""
    return stream is not None and stream.isatty()


@contextmanager
def progress_bar(reactor: Any, *, shown: bool) -> Iterator[tuple[Callable[[int], object], Say]]:
    """Give two functions: to advance a bar on standard error by bytes, and to write a line there.

    Nothing waits for a reader, and no control character of a server's reaches the terminal.
    """
    from poetry.download.visible import visible
    from poetry.system.streams import LossyStream

    if sys.stderr is None:  # it is closed
        yield (lambda _: None), (lambda _: None)
        return
    stream = LossyStream(sys.stderr.fileno())
    if not shown:
        yield (lambda _: None), (lambda line: stream.write(f"{visible(line)}\n"))
        return
    with _Bar(reactor, stream) as bar:
        yield bar.advance, (lambda line: bar.say(visible(line)))


class _Bar:
    """A bar of tqdm, whose clock runs on while nothing comes."""

    def __init__(self, reactor: Any, stream: Any) -> None:
        from tqdm import tqdm
        from twisted.internet.task import LoopingCall

        self._stream = stream
        self._last = time.time()
        self._tqdm = tqdm(
            unit="B",
            unit_scale=True,
            file=stream,
            leave=False,
            delay=DELAY,
            miniters=0,  # to be drawn anew where nothing came, too
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
        self._last = time.time()
        self._tqdm.set_postfix_str("", refresh=False)
        self._tqdm.update(size)

    def say(self, line: str) -> None:
        """Write a line above the bar."""
        if self._is_drawn:
            self._tqdm.write(line, file=self._stream)
        else:  # tqdm would draw it now, and leave it
            self._stream.write(f"{line}\n")

    @property
    def _is_drawn(self) -> bool:
        return self._tqdm.last_print_t >= self._tqdm.start_t + DELAY

    def _tick(self) -> None:
        silence = time.time() - self._last
        told = f"nothing for {silence:.0f} s" if silence >= SILENCE else ""
        self._tqdm.set_postfix_str(told, refresh=False)
        self._tqdm.update(0)


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or COLUMNS
    except OSError:  # it is no terminal
        return COLUMNS
