"""The commands `poetry` and `twisted-poetry`: the group of commands, and its errors."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import click

from poetry.commands.console import USAGE, complain, complain_of_stdout
from poetry.commands.get import get
from poetry.commands.serve import serve

INSTEAD = {
    "--bind": "Where to listen is -i ADDR.",
    "--host": "Where to listen is -i ADDR.",
    "--reload": "A running server reads its poems again at HUP: kill -HUP PID.",
}
"""What `serve` has instead of options of other servers."""


def main() -> None:
    """Run a command, and exit; each error is one line on standard error."""
    if sys.stdout is None:  # it is closed: keep its descriptor from the next file
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (for good)
    if Path(sys.argv[0]).name == "twisted-poetry":
        for command in (cli, serve, get):
            command.epilog = re.sub("poetry (?=serve|get)", "twisted-poetry ", str(command.epilog))
    try:
        code = cli.main(standalone_mode=False)
    except click.UsageError as error:
        called = error.ctx.command_path if error.ctx else "poetry"
        code = complain(f"{hint(error) or error.format_message()} (see '{called} --help')", USAGE)
    except click.ClickException as error:
        code = complain(error.format_message(), error.exit_code)
    except OSError as error:  # of what click prints itself, such as help
        code = complain_of_stdout(error)
    sys.exit(code)


def hint(error: click.UsageError) -> str:
    """Return what `serve` has instead of an unknown option that other servers have, or ""; click
    would guess one with a similar name.
    """
    if not isinstance(error, click.NoSuchOption) or error.option_name not in INSTEAD:
        return ""
    serving = error.ctx is not None and error.ctx.command is serve
    return f"{error.message} {INSTEAD[error.option_name]}" if serving else ""


class Commands(click.Group):
    """The group of commands; its error for an unknown command names Python Poetry."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, or fail with a hint: Python Poetry is another program."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            which = "This is twisted-poetry, which serves poems, and not Python Poetry."
            ctx.fail(f"{error.format_message()} {which}")

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, and name it in each usage error: click leaves it out of some."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            name = ctx.invoked_subcommand or ""
            if error.ctx is None and name in self.commands:
                error.ctx = click.Context(self.commands[name], ctx, name)
            raise


@click.group(
    cls=Commands,
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
