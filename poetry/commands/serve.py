"""`poetry serve`: its options, and what it says. Twisted is imported only when it is called."""

from __future__ import annotations

import errno
import os
import re
import sys
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
    max_connections: int | None,
    idle_timeout: float,
    grace: float,
    num_bytes: int | None,
    delay: float | None,
    log_format: str,
    log_level: str,
    metrics: str | None,
) -> int:
    """Send each POEM to everyone who connects.

    POEM is a file, or - for standard input; without one, it is the sample poem.
    """
    if addresses and (port is not None or interface is not None):
        raise click.UsageError("give --listen, or --port and --interface, not both")
    if len(poems) > 1 and port:
        raise click.UsageError("several poems cannot share --port: give each a --listen")
    if not addresses and (port is not None or interface is not None):
        host = "127.0.0.1" if interface is None else interface_of(interface)
        address = f"{bracketed(host)}:{port or 0}"
        addresses = (address,) * max(1, len(poems))

    from poetry.system.descriptors import LEAST, raise_limit

    if (descriptors := raise_limit()) < LEAST:
        return complain(f"{descriptors} open files (ulimit -n) do not do: it takes {LEAST}", FAILED)

    from twisted.internet import reactor
    from twisted.internet.error import CannotListenError

    from poetry.commands.run import ServiceRunner
    from poetry.daemon.build import BadPoem, UsageError, build_service
    from poetry.daemon.logs import start_logging

    start_logging(sys.stderr, log_format, log_level, reactor)
    try:
        service = build_service(
            reactor,
            poems,
            addresses,
            limits=Limits(max_connections, idle_timeout, grace),
            num_bytes=num_bytes,
            delay=delay,
            metrics=metrics,
            log_level=log_level,
        )
    except BadPoem as error:
        name = str(error).partition(":")[0]
        hint = f"; to listen on that port: -p {name}" if name.isdecimal() else ""
        return complain(f"{error}{hint}", USAGE)
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    try:
        service.startService()
        return ServiceRunner(reactor, service).run()
    except CannotListenError as error:
        return complain(cannot_listen(error), FAILED)


def interface_of(text: str) -> str:
    """A host, or an IPv6 address without the brackets that it may be given in."""
    host = re.fullmatch(r"[^\s:/*\[\]]+|\[(?=.*:.*:)[^\s/\[\]]+\]|(?=.*:.*:)[^\s/\[\]]+", text)
    if host is None:
        raise click.UsageError(
            f"--interface {text}: write a host or an address of this machine, without a port"
            " (that is --port), or 0.0.0.0 for all"
        )
    return text.strip("[]")


def bracketed(host: str) -> str:
    """A host as it is written before `:PORT`."""
    return f"[{host}]" if ":" in host else host


def cannot_listen(error: Any) -> str:
    """Why an address cannot be had, and what to do about it."""
    reason = error.socketError
    if isinstance(reason, str):  # Twisted could not lock a Unix socket
        reason = OSError(errno.EADDRINUSE, reason)
    elif not isinstance(reason, OSError):  # an endpoint has errors of its own
        reason = OSError(None, str(reason))
    host, port = error.interface, error.port
    if isinstance(port, bytes):
        port = os.fsdecode(port)
    where = ":".join(str(part) for part in (host and bracketed(host), port) if part)
    said = reason.strerror or str(reason)
    if reason.errno == errno.EADDRNOTAVAIL:
        said = "no interface of this machine has that address"
    elif reason.errno == errno.EADDRINUSE:
        said += "; choose another" + ", or port 0 for any free one" * isinstance(port, int)
    elif reason.errno == errno.EACCES and isinstance(port, int):
        said += "; ports below 1024 need privileges"
    return f"cannot listen on {where}: {said}"
