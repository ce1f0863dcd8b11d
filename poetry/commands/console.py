"""Exit codes, error lines, and types of numeric options, for all commands."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import extract_tb
from typing import Any

import click

from poetry.system.descriptors import hint_of_limit
from poetry.system.streams import write_now
from poetry.text import one_line, printable

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def complain(message: str, code: int) -> int:
    """Print an error in one line; return the exit code."""
    write_to_stderr(f"Error: {printable(one_line(message))}\n")
    return code


def write_to_stderr(line: str) -> None:
    """Write a line to standard error, if it is open and has room: it may be a pipe that nobody
    reads, and a command that has failed must end.
    """
    try:
        write_now(sys.stderr.fileno(), line)
    except BlockingIOError:
        return
    except (AttributeError, OSError):  # it is closed, no file, or no descriptor is left to try
        with suppress(OSError):
            click.echo(line, err=True, nl=False)


def complain_of_stdout(error: OSError) -> int:
    """Print why standard output failed, and discard what Python would flush at exit."""
    if hint := hint_of_limit(error.errno):  # standard output is not the cause
        return complain(f"{error.strerror}{hint}", FAILED)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return complain(f"standard output: {error.strerror}", FAILED)


@contextmanager
def explained() -> Iterator[None]:
    """Explain what the system refuses to a command.

    @raise ClickException: with the explanation.
    """
    try:
        yield
    except click.ClickException:
        raise
    except Exception as error:
        raise click.ClickException(explain_start_failure(error)) from error


def explain_start_failure(error: Exception) -> str:
    """Describe what the system refused to a command, with what to do about it if that is known."""
    first = system_error(error)
    if hint := hint_of_limit(getattr(first, "errno", None)):
        return f"{message_of(first)}{hint}"
    if isinstance(first, MemoryError):
        return "cannot start: there is not enough memory (ulimit -v)"
    # The exception does not name the system call; the line of source that made it does.
    call = extract_tb(first.__traceback__)[-1].line
    return f"cannot start: {message_of(first) or type(first).__name__} ({call})"


def system_error(error: BaseException) -> BaseException:
    """Return the OSError that led to an error; without one, return the error itself.

    After epoll refuses a descriptor Twisted tries another way, which fails without a reactor.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause
        cause = cause.__context__
    return error


def message_of(error: Any) -> str:
    """Return the message of an exception, without its number and with its file."""
    message = getattr(error, "strerror", None) or str(error)
    file = getattr(error, "filename", None)
    return f"{message}: {file}" if file and not getattr(error, "filename2", None) else message


class Seconds(click.ParamType):  # type: ignore[type-arg]  # it has none in click 8.1
    """A time in seconds, more than 0 (or at least 0: `zero`); inf is no limit."""

    name = "seconds"

    def __init__(self, *, zero: bool = False) -> None:
        self.zero = zero

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Read the number, and check its range; nan compares false."""
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if math.isnan(seconds):
            self.fail(f"{value} is not a number of seconds, such as 30 or 0.5", param, ctx)
        if not (seconds > 0 or (self.zero and seconds == 0)):
            least = "0 and more" if self.zero else "more than 0"
            self.fail(f"{value} is not in the range of {least}", param, ctx)
        return seconds


class Count(click.ParamType):  # type: ignore[type-arg]  # it has none in click 8.1
    """A whole number from `least` to `most` (None: any)."""

    name = "count"

    def __init__(self, least: int, most: int | None = None) -> None:
        self.least = least
        self.most = most

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Read the number, and check its range."""
        try:
            number = int(value)
        except ValueError:
            example = 10000 if self.most else 1000000
            self.fail(f"{value} is not a whole number, such as {example}", param, ctx)
        if number < self.least or (self.most is not None and number > self.most):
            most = "and more" if self.most is None else f"to {self.most}"
            self.fail(f"{value} is not in the range of {self.least} {most}", param, ctx)
        return number
