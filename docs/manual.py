"""Write docs/twisted-poetry.1, the manual page, from what the commands say of themselves.

python docs/manual.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from poetry.cli import cli

PAGE = Path(__file__).with_name("twisted-poetry.1")

EXITS = {
    "0": "It is done.",
    "1": "It failed; one line on standard error says what, and at which address or file."
    " Of an output that was closed early there is none.",
    "2": "The command line is wrong.",
    "130": "It was interrupted.",
}


def roff(text: str) -> str:
    """Text as roff shows it: no escape, no hyphen that breaks a copied option, no request."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return re.sub(r"^([.'])", r"\\&\1", escaped, flags=re.MULTILINE)


def paragraphs(text: str | None) -> Iterator[str]:
    """The paragraphs of a help text; those after a line with \\b keep their lines."""
    for part in re.split(r"\n\s*\n", (text or "").strip()):
        lines = [line.strip() for line in part.splitlines()]
        if lines[0] == "\b":
            yield "\n".join([".PP", ".nf", *map(roff, lines[1:]), ".fi"])
        else:
            yield f".PP\n{roff(' '.join(lines))}"


def options(context: click.Context) -> Iterator[str]:
    """The options of a command, as its help shows them."""
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record is not None:
            names, meaning = record
            yield f".TP\n.B {roff(names)}\n{roff(meaning)}"


def usage(context: click.Context) -> str:
    """How a command is called."""
    words = " ".join(context.command.collect_usage_pieces(context))
    return f".PP\n.B {context.command_path}\n{roff(words)}"


def page() -> str:
    """The manual page."""
    context = click.Context(cli, info_name="poetry", **cli.context_settings)
    contexts = [
        click.Context(cli.commands[name], context, name) for name in cli.list_commands(context)
    ]
    summary = (cli.help or "").partition("\n")[0].rstrip(".")
    parts = [
        '.\\" Made by docs/manual.py from the commands themselves.',
        ".TH TWISTED-POETRY 1",
        f".SH NAME\ntwisted-poetry, poetry {roff('-')} {roff(summary[0].lower() + summary[1:])}",
        ".SH SYNOPSIS",
        *map(usage, contexts),
        ".SH DESCRIPTION",
        *paragraphs((cli.help or "").partition("\n")[2]),
        ".PP\nThe commands twisted\\-poetry and poetry are the same.",
        ".SH OPTIONS",
        *options(context),
    ]
    for each in contexts:
        parts += [f".SH {each.command_path.upper()}", *paragraphs(each.command.help)]
        parts += [*options(each), *paragraphs(each.command.epilog)]
    parts.append(".SH EXIT STATUS")
    parts += [f".TP\n.B {code}\n{roff(meaning)}" for code, meaning in EXITS.items()]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
