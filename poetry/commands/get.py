"""The command `poetry get`. Twisted is imported only when it is called."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from poetry.commands.console import Count, Seconds, explained
from poetry.commands.progress import is_terminal, progress_bar
from poetry.system.endpoint_strings import TLS_TYPES, type_of

if TYPE_CHECKING:
    from poetry.download.fetch import Source


@click.command(
    epilog="""Examples:

    \b
    poetry get 127.0.0.1:10000               print the poem
    poetry get 10000 > poem.txt              of this machine
    poetry get -o poem.txt host:10000        all or nothing
    poetry get -d poems a:10000 b:10000      a file for each
    poetry get --retries 5 host:10000        try again
    poetry get unix:/run/poem                a Unix socket
    poetry get tls:poems.example.org:10000   over TLS
    """,
    short_help="Fetch poems, and print them in the order asked for.",
)
@click.argument("addresses", metavar="ADDRESS...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    type=click.Path(readable=False, allow_dash=True),
    metavar="FILE",
    help="Write to FILE, atomically: a failure leaves no new file, and an old one as it was;"
    " - is standard output.",
)
@click.option(
    "-d",
    "--directory",
    "directories",
    multiple=True,
    type=click.Path(readable=False),
    metavar="DIR",
    help="One file an address.",
)
@click.option(
    "--timeout",
    type=Seconds(),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Longest wait to connect and between bytes.",
)
@click.option(
    "--max-time",
    type=Seconds(),
    metavar="SECONDS",
    help="Longest time for all of it, retries and writing included.  [default: any]",
)
@click.option("--max-bytes", type=Count(1), metavar="N", help="Fail rather than take more.")
@click.option(
    "--retries",
    type=Count(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Try a failed download again from the start, with backoff; not once a part is printed.",
)
@click.option("--sha256", metavar="HEX", help="Fail unless the poem has this digest.")
@click.option(
    "--progress/--no-progress",
    default=None,
    help="Show progress.  [default: on a terminal's standard error, if it takes long]",
)
@click.option(
    "--cacert",
    type=click.Path(readable=False),
    metavar="FILE",
    help="The authorities (PEM) that sign the server's certificate, instead of the system's (TLS).",
)
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Say what happens: names, attempts, TLS, the first byte, how it ended.",
)
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
@explained()
def get(
    addresses: tuple[str, ...],
    outputs: tuple[str, ...],
    directories: tuple[str, ...],
    timeout: float,
    max_time: float | None,
    max_bytes: int | None,
    retries: int,
    sha256: str | None,
    progress: bool | None,
    cacert: str | None,
    verbose: bool,
    quiet: bool,
) -> int:
    """Fetch poems at the same time, and print them in the order asked for.

    ADDRESS is PORT (on this machine), HOST:PORT, [IPV6]:PORT, tls:HOST:PORT, unix:PATH, or another
    Twisted endpoint string. The line that `serve` prints ends in such an address.
    """
    if verbose and quiet:
        raise click.UsageError("give --verbose or --quiet, not both")
    if progress and quiet:
        raise click.UsageError("give --progress or --quiet, not both")
    if cacert == "":
        raise click.UsageError("--cacert: it names no file")
    output, directory = read_places(outputs, directories)
    digest = read_digest(sha256)
    paths = [] if directory is None else output_paths(directory, addresses)

    from twisted.internet import reactor
    from twisted.logger import globalLogBeginner

    from poetry.commands.run import run_to_end
    from poetry.download.fetch import DownloadOptions, Fetcher
    from poetry.download.output import is_standard_output
    from poetry.system.descriptors import raise_limit

    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    trust = None if cacert is None else read_authorities(cacert)
    with suppress(OSError, ValueError):  # the limit stays, which may suffice
        raise_limit()
    path = None if output is None or is_standard_output(output) else output
    printed = path is None and not paths
    if printed and sys.__stdout__ is None:
        raise click.ClickException("standard output: it is closed")
    shown = printed and is_terminal(sys.stdout)
    if progress is None:
        # On the terminal that shows the poem, a bar would be in its way.
        progress = is_terminal(sys.stderr) and not quiet and not shown
    with progress_bar(reactor, shown=progress) as (advance, write_line):
        sources = make_sources(addresses, trust, write_line if verbose else None)
        if trust is not None and not any(type_of(address) in TLS_TYPES for address in addresses):
            raise click.UsageError("--cacert: no ADDRESS is over TLS, as tls:HOST:PORT")
        if directory is not None:
            make_directory(directory)
        fetcher = Fetcher(
            reactor,
            DownloadOptions(
                timeout, max_time, max_bytes, retries, digest, text_only=shown and output is None
            ),
            advance,
            note=(lambda _: None) if quiet else write_line,
            complain=lambda message: write_line(f"Error: {message}"),
            wrote=write_line if is_terminal(sys.stderr) and not quiet else None,
        )
        work = fetcher.fetch_each(sources, paths) if paths else fetcher.fetch(sources, path)
        return run_to_end(reactor, work)


def read_places(
    outputs: Sequence[str], directories: Sequence[str]
) -> tuple[str | None, str | None]:
    """Return the file and the directory to write to, of which one is None, or both.

    @raise UsageError: for more than one of them.
    """
    if outputs and directories:
        raise click.UsageError("give --output or --directory, not both")
    if len(outputs) > 1 or len(directories) > 1:
        raise click.UsageError("give --output or --directory once: -d DIR has a file an address")
    if "" in outputs:
        raise click.UsageError("--output: it names no file")
    if "" in directories:
        raise click.UsageError("--directory: it names no directory")
    return next(iter(outputs), None), next(iter(directories), None)


def make_sources(
    addresses: Sequence[str], trust: Any, write_line: Callable[[str], object] | None
) -> list[Source]:
    """Make the source of each address; its endpoint never times out, as the download does.

    @param trust: the authorities that sign certificates; None: the system's.
    @param write_line: is called with each event, in one line; None: no report.
    @raise UsageError: for what is no address.
    """
    from twisted.internet import reactor

    from poetry.addresses import BadAddress, client_endpoint
    from poetry.download.fetch import Source

    def source(address: str) -> Source:
        if write_line is None:
            return Source(address, client_endpoint(reactor, address, trust))
        from poetry.download.verbose import VerboseReactor

        def report(line: str) -> None:
            write_line(f"{address}: {line}")

        verbose: Any = VerboseReactor(reactor, report)
        return Source(address, client_endpoint(verbose, address, trust), report)

    try:
        return [source(address) for address in addresses]
    except BadAddress as error:
        raise click.UsageError(str(error)) from error


def read_authorities(path: str) -> Any:
    """Read the authorities that sign certificates from a PEM file.

    @raise UsageError: where it has none, or cannot be read.
    """
    from poetry.system.certificates import BadCertificate, authorities

    try:
        return authorities(path)
    except BadCertificate as error:
        raise click.UsageError(f"--cacert {error}") from error


def read_digest(text: str | None) -> str | None:
    """Check a SHA-256, and return it in lower case.

    @raise UsageError: for anything but 64 hexadecimal digits.
    """
    if text is not None and not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise click.UsageError(f"--sha256 {text}: not 64 hexadecimal digits")
    return text and text.lower()


def output_paths(name: str, addresses: Sequence[str]) -> list[str]:
    """Return the path of a file in the directory of that name for each address.

    @raise UsageError: where two addresses would have one file.
    """
    files = [re.sub(r"[^\w.-]+", "_", address).strip("_") + ".txt" for address in addresses]
    if len(set(files)) < len(files):
        raise click.UsageError("two addresses would share a file in --directory")
    return [str(Path(name) / file) for file in files]


def make_directory(name: str) -> None:
    """Create the directory of that name, unless there is one.

    @raise ClickException: where it cannot be made.
    """
    directory = Path(name)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise click.ClickException(f"{directory}: it is no directory") from error
    except OSError as error:
        raise click.ClickException(f"{directory}: {error.strerror}") from error
