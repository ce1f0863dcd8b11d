"""How a download gets on, on a terminal's standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click

DELAY = 0.5
"""Seconds from which on a bar is shown: a short download draws none."""


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is open, and a terminal."""
    return stream is not None and stream.isatty()


@contextmanager
def progress_bar(*, shown: bool) -> Iterator[tuple[Callable[[int], Any], Callable[[str], Any]]]:
    """A bar on standard error: how to advance it by bytes, and how to say a line beside it."""
    if not shown:
        yield (lambda _: None), (lambda line: click.echo(line, err=True))
        return
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, file=sys.stderr, leave=False, delay=DELAY) as bar:

        def say(line: str) -> None:
            if bar.last_print_t < bar.start_t + DELAY:  # else tqdm would draw it now, and leave it
                click.echo(line, err=True)
            else:
                bar.write(line, file=sys.stderr)

        yield bar.update, say
