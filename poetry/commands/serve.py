"""`poetry serve`: its options, and its error lines. Twisted is imported only when it is called."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from traceback import extract_tb
from typing import Any

import click

from poetry.commands.console import FAILED, USAGE, Count, Seconds, complain
from poetry.limits import DEFAULTS, Limits


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
    tell = complain if log_format == "text" else complain_in_json
    try:
        addresses = where(poems, port, interface, addresses)
        return run(poems, addresses, log_format, **options)
    except click.UsageError as error:
        if log_format == "text":
            raise  # it also says where to read on
        return tell(error.format_message(), USAGE)
    except Exception as error:
        return tell(why_not(error, addresses), FAILED)


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
    """Serve until a signal comes; give the exit code.

    @raise Exception: whatever keeps it from serving, which `why_not` puts into words.
    """
    from poetry.system.descriptors import LEAST, raise_limit

    tell = complain if log_format == "text" else complain_in_json
    if (descriptors := raise_limit()) < LEAST:
        return tell(f"{descriptors} open files (ulimit -n) do not do: it takes {LEAST}", FAILED)

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
        name = str(error).partition(":")[0]
        hint = f"; to listen on that port: -p {name}" if name.isdecimal() else ""
        return tell(f"{error}{hint}", USAGE)
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    service.startService()
    return ServiceRunner(reactor, service, log_format).run()


def complain_in_json(message: str, code: int) -> int:
    """Say what was wrong as a log line in JSON; give the exit code back."""
    from poetry.daemon.logs import error_line

    with suppress(OSError):
        click.echo(error_line(" ".join(message.split())), err=True, nl=False)
    return code


def where(
    poems: Sequence[str], port: int | None, interface: str | None, addresses: tuple[str, ...]
) -> tuple[str, ...]:
    """Choose where to listen: by `--listen` or, in its place, `--port` and `--interface`.

    @raise click.UsageError: where they make no sense together.
    """
    if port is None and interface is None:
        return addresses
    if addresses:
        raise click.UsageError("give --listen, or --port and --interface, not both")
    if len(poems) > 1 and port:
        raise click.UsageError("several poems cannot share --port: give each a --listen")
    host = "127.0.0.1" if interface is None else interface_of(interface)
    return (f"{bracketed(host)}:{port or 0}",) * max(1, len(poems))


def interface_of(text: str) -> str:
    """Read a host, or an IPv6 address with or without brackets.

    @raise click.UsageError: where it is neither.
    """
    host = re.fullmatch(r"[^\s:/*\[\]]+|\[(?=.*:.*:)[^\s/\[\]]+\]|(?=.*:.*:)[^\s/\[\]]+", text)
    if host is None:
        raise click.UsageError(
            f"--interface {text}: write a host or an address of this machine, without a port"
            " (that is --port), or 0.0.0.0 for all"
        )
    return text.strip("[]")


def bracketed(host: str) -> str:
    """Write a host as it stands before `:PORT`: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def why_not(error: Exception, addresses: Sequence[str]) -> str:
    """Say why the server cannot start, and what to do about it where that is known.

    @param addresses: where it was to listen.
    """
    if hasattr(error, "socketError"):  # Twisted's CannotListenError
        return cannot_listen(error, addresses)
    first = refusal(error)
    if getattr(first, "errno", None) in (errno.EMFILE, errno.ENFILE):
        return f"{described(first)}: raise the limit (ulimit -n)"
    # A refused system call does not tell its name; the line of source that made it does.
    call = extract_tb(first.__traceback__)[-1].line
    return f"cannot start: {described(first) or type(first).__name__} ({call})"


def refusal(error: BaseException) -> BaseException:
    """Find the system's refusal (OSError) that an error came from; without one, give the error.

    Where epoll refuses a descriptor Twisted tries another way, which fails for want of a reactor.
    """
    before: BaseException | None = error
    while before is not None:
        if isinstance(before, OSError):
            return before
        before = before.__context__
    return error


def described(error: Any) -> str:
    """Say what an exception says, without its number, and with its file."""
    said = getattr(error, "strerror", None) or str(error)
    file = getattr(error, "filename", None)
    return f"{said}: {file}" if file and not error.filename2 else said


def cannot_listen(error: Any, addresses: Sequence[str] = ()) -> str:
    """Say why an address cannot be listened on, and what to do about it.

    @param addresses: where else it was to listen.
    """
    reason = error.socketError
    if isinstance(reason, str):  # Twisted could not lock a Unix socket
        reason = OSError(errno.EADDRINUSE, reason)
    number = getattr(reason, "errno", None)  # an endpoint has errors of its own
    host, port = error.interface, error.port
    if isinstance(port, bytes):
        port = os.fsdecode(port)
    where = ":".join(str(part) for part in (host and bracketed(host), port) if part)
    said = described(reason)
    if number == errno.EADDRNOTAVAIL:
        said = "no interface of this machine has that address"
    elif number == errno.EADDRINUSE and (other := sharing(host, port, addresses)):
        said += f", perhaps by {other}: [::] takes IPv4 too, 0.0.0.0 each address; leave one out"
    elif number == errno.EADDRINUSE:
        said += "; choose another" + ", or port 0 for any free one" * isinstance(port, int)
    elif number == errno.EACCES and isinstance(port, int) and port:
        said += "; ports below 1024 need privileges"
    return f"cannot listen on {where}: {said}"


def sharing(host: str, port: object, addresses: Sequence[str]) -> str:
    """Find the first of the addresses that has the same port before `host`; "": there is none."""
    from poetry.addresses import split

    for text in addresses:
        plain = split(text)
        if plain is not None and plain.port == port:
            return "" if plain.host == host else text
    return ""
