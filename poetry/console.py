"""What the commands share: exit codes, error lines, and a time in seconds as an option."""

from __future__ import annotations

import math
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def complain(message: str, code: int) -> int:
    """Say what was wrong, in one line; give the exit code back."""
    with suppress(OSError):
        click.echo("Error: " + " ".join(message.split()), err=True)
    return code


def cannot_print(error: OSError) -> int:
    """Say why standard output takes no more, and let it take what Python flushes at its end."""
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return complain(f"standard output: {error.strerror}", FAILED)


class Seconds(click.FloatRange):
    """A time in seconds; inf is for ever."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Take a number in the range: every comparison with nan is false."""
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value} is not a number of seconds.", param, ctx)
        return seconds
