"""The commands `poetry` and `twisted-poetry`: the group, and what becomes of its errors."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from poetry.commands.console import USAGE, cannot_print, complain
from poetry.commands.get import get
from poetry.commands.serve import serve


def main() -> None:
    """The commands `poetry` and `twisted-poetry`: each error is one line on standard error."""
    if sys.stdout is None:  # it is closed, and its descriptor free for whatever is opened next
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (for good)
    try:
        code = cli.main(standalone_mode=False)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "poetry"
        code = complain(f"{error.format_message()} (see '{command} --help')", USAGE)
    except click.ClickException as error:
        code = complain(error.format_message(), error.exit_code)
    except OSError as error:  # what click prints itself: help, for one
        code = cannot_print(error)
    sys.exit(code)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Examples:\n\n\b\npoetry serve -p 10000 poem.txt\npoetry get 10000",
    invoke_without_command=True,
)
@click.version_option(
    None, "-V", "--version", package_name="twisted-poetry", prog_name="twisted-poetry"
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Send a poem to whoever connects, and fetch one.

    A poem arrives whole, or its reader knows that it did not. Any client that reads to the end of
    the stream can read one: nc, ncat, socat, telnet, wget, curl --http0.9.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        ctx.exit(USAGE)


cli.add_command(serve)
cli.add_command(get)
