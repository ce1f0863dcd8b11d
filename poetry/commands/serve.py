"""The command `poetry serve`, and its error lines. Twisted is imported only when it is called."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import click

from poetry.commands.console import (
    USAGE,
    Count,
    Seconds,
    explain_start_failure,
    message_of,
    system_error,
    write_to_stderr,
)
from poetry.limits import DEFAULTS, Limits

WILDCARDS = frozenset({"", "0.0.0.0", "::"})
"""Hosts that stand for every interface."""

INTERFACES = {"tcp": (1, ""), "tcp6": (2, "::"), "ssl": (4, "")}
"""Types of endpoints on a port: the place of their `interface`, and what it is without one."""


@click.command(
    epilog="""Examples:

    \b
    poetry serve                             the sample poem
    poetry serve -p 10000 poem.txt           on port 10000
    poetry serve -i 0.0.0.0 -p 10000         for others too
    poetry serve ecstasy.txt envoi.txt       a port for each
    poetry serve -l 10000 -l unix:/run/poem  two listeners
    fortune | poetry serve -p 10000 -        standard input
    poetry serve --num-bytes 9 poem.txt      the slow server

    TERM and INT stop it when the readers in flight are done, HUP makes it read the poems again.
    """
)
@click.argument(
    "poems",
    metavar="[POEM]...",
    nargs=-1,
    type=click.Path(readable=False, allow_dash=True),
)
@click.option("-p", "--port", type=Count(0, 65535), metavar="N", help="Port; 0 takes a free one.")
@click.option("-i", "--interface", metavar="ADDR", help="Where to listen.  [default: 127.0.0.1]")
@click.option(
    "-l",
    "--listen",
    "addresses",
    multiple=True,
    metavar="ADDRESS",
    help="Where to listen, instead of the two above: PORT, HOST:PORT, [IPV6]:PORT or a Twisted"
    " endpoint string. Repeatable: one poem may have any number, several poems one each, in order.",
)
@click.option(
    "--max-connections",
    type=Count(1),
    metavar="N",
    help="Most readers at once; more wait.  [default: what the descriptor limit allows]",
)
@click.option(
    "--idle-timeout",
    type=Seconds(),
    default=DEFAULTS.idle_timeout,
    show_default=True,
    metavar="SECONDS",
    help="Reset a reader that takes nothing for so long.",
)
@click.option(
    "--grace",
    type=Seconds(zero=True),
    default=DEFAULTS.grace,
    show_default=True,
    metavar="SECONDS",
    help="How long a stop waits for readers in flight.",
)
@click.option(
    "--num-bytes",
    type=Count(1),
    metavar="N",
    help="Send N bytes at a time (the slow poetry server).  [default: 10, with a delay]",
)
@click.option(
    "--delay",
    type=Seconds(),
    metavar="SECONDS",
    help="Wait so long between two sends (the slow poetry server)."
    "  [default: 0.1, with N bytes at a time]",
)
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warn", "error"]),
    default="info",
    show_default=True,
    help="Logs go to standard error.",
)
@click.option("--metrics", metavar="[HOST:]PORT", help="Prometheus metrics at /metrics.")
def serve(
    poems: tuple[str, ...],
    port: int | None,
    interface: str | None,
    addresses: tuple[str, ...],
    log_format: str,
    **options: Any,
) -> int:
    """Send each POEM to everyone who connects.

    POEM is a file, or - for standard input; without one, it is the sample poem.
    """
    try:
        addresses = listen_addresses(poems, port, interface, addresses)
        return run(poems, addresses, log_format, **options)
    except click.ClickException as error:
        failure = error
    except Exception as error:
        failure = click.ClickException(
            explain_failure(error, [*addresses, options["metrics"] or ""])
        )
    if log_format == "text":
        raise failure
    write_error_in_json(failure.format_message())
    return failure.exit_code


def run(
    poems: Sequence[str],
    addresses: Sequence[str],
    log_format: str,
    *,
    log_level: str,
    max_connections: int | None,
    idle_timeout: float,
    grace: float,
    **options: Any,
) -> int:
    """Serve until a signal comes; return the exit code.

    @raise Exception: whatever keeps it from serving; see `explain_failure`.
    """
    from poetry.system.descriptors import LEAST, raise_limit

    if (descriptors := raise_limit()) < LEAST:
        raise click.ClickException(
            f"{descriptors} open files (ulimit -n) do not do: it takes {LEAST}"
        )

    from twisted.internet import reactor

    from poetry.commands.run import ServiceRunner
    from poetry.daemon.build import BadPoem, UsageError, build_service
    from poetry.daemon.logs import start_logging

    start_logging(sys.stderr, log_format, log_level, reactor)
    limits = Limits(max_connections, idle_timeout, grace)
    try:
        service = build_service(
            reactor, poems, addresses, limits=limits, log_level=log_level, **options
        )
    except BadPoem as error:
        raise UnreadablePoem(f"{error}{hint_of_address(str(error))}") from error
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    service.startService()
    return ServiceRunner(reactor, service, log_format).run()


class UnreadablePoem(click.ClickException):
    """A POEM argument cannot be read: wrong usage, which `--help` does not mend."""

    exit_code = USAGE


def hint_of_address(error: str) -> str:
    """Return a hint if a poem that cannot be read looks like an address, or ""."""
    poem = error.partition(": ")[0]
    if poem.isdecimal():
        return f"; to listen on that port: -p {poem}"
    return f"; to listen there: -l {poem}" if re.fullmatch(r"[^\s/]+:\d+", poem) else ""


def write_error_in_json(message: str) -> None:
    """Write an error to standard error as a log line in JSON."""
    from poetry.daemon.logs import error_line

    write_to_stderr(error_line(message))


def listen_addresses(
    poems: Sequence[str], port: int | None, interface: str | None, addresses: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the addresses to listen on: of `--listen`, or else of `--port` and `--interface`.

    @raise click.UsageError: if the options contradict each other.
    """
    if port is None and interface is None:
        return addresses
    if addresses:
        raise click.UsageError("give --listen, or --port and --interface, not both")
    if len(poems) > 1 and port:
        raise click.UsageError("several poems cannot share --port: give each a --listen")
    host = "127.0.0.1" if interface is None else read_interface(interface)
    return (f"{bracketed(host)}:{port or 0}",) * max(1, len(poems))


def read_interface(text: str) -> str:
    """Read a host, or an IPv6 address with or without brackets.

    @raise click.UsageError: if it is neither.
    """
    host = re.fullmatch(r"[^\s:/*\[\]]+|\[(?=.*:.*:)[^\s/\[\]]+\]|(?=.*:.*:)[^\s/\[\]]+", text)
    if host is None:
        raise click.UsageError(
            f"--interface {text}: write a host or an address of this machine, without a port"
            " (that is --port), or 0.0.0.0 for all"
        )
    return text.strip("[]")


def bracketed(host: str) -> str:
    """Return a host as written before `:PORT`: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def explain_failure(error: Exception, addresses: Sequence[str]) -> str:
    """Describe why the server cannot start, with what to do about it if that is known.

    @param addresses: those it was to listen on.
    """
    if hasattr(error, "socketError"):  # Twisted's CannotListenError
        return explain_listen_failure(error, addresses)
    return explain_start_failure(error)


def explain_listen_failure(error: Any, addresses: Sequence[str] = ()) -> str:
    """Describe why an address cannot be listened on, with what to do about it.

    @param error: a CannotListenError.
    @param addresses: those the server was to listen on.
    """
    from poetry.system.descriptors import hint_of_limit

    reason = system_error(error.socketError)
    number = getattr(reason, "errno", None)  # an endpoint has errors of its own
    host, port = error.interface, error.port
    address = ":".join(str(part) for part in (host and bracketed(host), port) if part)
    message = message_of(reason) + hint_of_limit(number)
    if number == errno.EADDRNOTAVAIL:
        message = "no interface of this machine has that address"
    elif number == errno.EADDRINUSE:
        message += reason_of_use(port, host, addresses)
    elif number == errno.EACCES and isinstance(port, int) and port:
        message += "; ports below 1024 need privileges"
    return f"cannot listen on {address}: {message}"


def reason_of_use(port: object, host: str, addresses: Sequence[str]) -> str:
    """Return by which of several addresses a host and a port may be in use, and what to do."""
    others = hosts_on(port, addresses)
    if [at for _, at in others].count(host) > 1:
        return "; it is given twice here: each listener, and --metrics, needs one of its own"
    for text, at in takewhile(lambda other: other[1] != host, others):  # the rest was not tried
        if not {at, host}.isdisjoint(WILDCARDS):
            return f", perhaps by {text}: [::] takes IPv4 too, 0.0.0.0 each address; leave one out"
    return "; choose another" + ", or port 0 for any free one" * isinstance(port, int)


def hosts_on(port: object, addresses: Sequence[str]) -> list[tuple[str, str]]:
    """Return each of several addresses that has the port, and its host, "" or "::" for all."""
    from poetry.addresses import split
    from poetry.system.endpoint_strings import argument_of, type_of

    found = []
    for text in addresses:
        plain = split(text)
        if plain is not None:
            its_port, host = str(plain.port), plain.host
        elif type_of(text) in INTERFACES:
            place, everywhere = INTERFACES[type_of(text)]
            its_port = argument_of(text, "port", 0) or ""
            host = argument_of(text, "interface", place) or everywhere
        else:
            continue
        if its_port == str(port):
            found.append((text, host))
    return found
