"""How a download gets on, on a terminal's standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click


def bar_fits(*, printed: bool) -> bool:
    """Whether standard error is a terminal that shows no poem, which a bar would be in the way of.

    @param printed: whether the poem goes to standard output.
    """
    return _is_terminal(sys.stderr) and not (printed and _is_terminal(sys.stdout))


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


@contextmanager
def progress_bar(*, shown: bool) -> Iterator[tuple[Callable[[int], Any], Callable[[str], Any]]]:
    """A bar on standard error: how to advance it by bytes, and how to say a line beside it."""
    if not shown:
        yield (lambda _: None), (lambda line: click.echo(line, err=True))
        return
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, file=sys.stderr, leave=False) as bar:
        yield bar.update, (lambda line: bar.write(line, file=sys.stderr))
