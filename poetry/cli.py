"""The commands: click, exit codes, progress. Twisted is imported only inside the two commands."""

from __future__ import annotations

import errno
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from poetry.server import PoetryService

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main() -> None:
    """The commands `poetry` and `twisted-poetry`: each error is one line on standard error."""
    if sys.stdout is None:  # it is closed, which the oldest click cannot take
        sys.stdout = StringIO()
    try:
        code = cli.main(standalone_mode=False)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "poetry"
        code = complain(f"{error.format_message()} (see '{command} --help')", USAGE)
    except click.ClickException as error:
        code = complain(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except OSError as error:  # what click prints itself: help, for one
        code = cannot_print(error)
    sys.exit(code)


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


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Examples:\n\n\b\n  poetry serve poem.txt\n  poetry get 127.0.0.1:10000",
    invoke_without_command=True,
)
@click.version_option(package_name="twisted-poetry", prog_name="twisted-poetry")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Send a poem to whoever connects, and fetch one.

    A poem arrives whole, or its reader knows that it did not. Any client that reads to the end of
    the stream can read one: nc, socat, a browser.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        ctx.exit(USAGE)


# serve


@cli.command(
    epilog="""Examples:

    \b
      poetry serve                                  the sample poem, on a free port
      poetry serve -p 10000 poem.txt                on port 10000 of this machine
      poetry serve -i 0.0.0.0 -p 10000 poem.txt     for other machines too
      poetry serve ecstasy.txt fascination.txt      a free port for each
      poetry serve -l 10000 -l unix:/run/poem p.txt on two listeners
      fortune | poetry serve -p 10000 -             standard input
      poetry serve --num-bytes 10 --delay 0.1 p.txt the slow poetry server

    TERM and INT stop it when the readers in flight are done, HUP makes it read the poems again.
    """
)
@click.argument("poems", metavar="[POEM]...", nargs=-1)
@click.option(
    "-p", "--port", type=click.IntRange(0, 65535), metavar="N", help="Port; 0 takes a free one."
)
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
    type=click.IntRange(1),
    metavar="N",
    help="Most readers at once; more wait.  [default: what the descriptor limit allows]",
)
@click.option(
    "--idle-timeout",
    type=Seconds(0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Reset a reader that takes nothing for so long.",
)
@click.option(
    "--grace",
    type=Seconds(0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a stop waits for readers in flight.",
)
@click.option("--num-bytes", type=click.IntRange(1), metavar="N", help="Send N bytes at a time,")
@click.option(
    "--delay",
    type=Seconds(0, min_open=True),
    metavar="SECONDS",
    help="so long apart (the slow poetry server).  [default: 10 bytes, 0.1 s if one is given]",
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
    num_bytes: int | None,
    delay: float | None,
    log_format: str,
    log_level: str,
    **limits: Any,
) -> int:
    """Send each POEM to everyone who connects.

    POEM is a file, or - for standard input; without one, it is the sample poem.
    """
    if addresses and (port is not None or interface is not None):
        raise click.UsageError("give --listen, or --port and --interface, not both")
    if len(poems) > 1 and port:
        raise click.UsageError("several poems cannot share --port: give each a --listen")
    if not addresses and (port is not None or interface is not None):
        host = interface or "127.0.0.1"
        address = f"{bracketed(host)}:{port or 0}"
        addresses = (address,) * max(1, len(poems))
    pace = None if num_bytes is delay is None else (num_bytes or 10, delay or 0.1)

    from twisted.internet import reactor
    from twisted.internet.error import CannotListenError

    from poetry.observe import start_logging
    from poetry.tap import UsageError, build_service

    start_logging(sys.stderr, log_format, log_level)
    try:
        service = build_service(reactor, poems, addresses, log_level=log_level, pace=pace, **limits)
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    try:
        service.startService()
    except CannotListenError as error:
        return complain(cannot_listen(error), FAILED)
    return run_service(reactor, service)


def bracketed(host: str) -> str:
    """A host as it is written before `:PORT`."""
    return f"[{host}]" if ":" in host else host


def cannot_listen(error: Any) -> str:
    """Why an address cannot be had, and what to do about it."""
    reason = error.socketError
    if isinstance(reason, str):  # Twisted could not lock a Unix socket
        reason = OSError(errno.EADDRINUSE, reason)
    host, port = error.interface, error.port
    if isinstance(port, bytes):
        port = os.fsdecode(port)
    where = ":".join(str(part) for part in (host and bracketed(host), port) if part)
    hint = {
        errno.EADDRINUSE: "; it is taken: choose another, or port 0 for any free one",
        errno.EACCES: "; ports below 1024 need privileges" if isinstance(port, int) else "",
        errno.EADDRNOTAVAIL: "; no interface of this machine has that address",
    }.get(reason.errno, "")
    return f"cannot listen on {where}: {reason.strerror or reason}{hint}"


def run_service(reactor: Any, service: PoetryService) -> int:
    """Run until TERM or INT, and let readers in flight finish; a second signal resets them."""
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if stopping:
            service.abort()
        else:
            stopping = True
            reactor.stop()

    def announce() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: reactor.callFromThread(stop))
        names = [factory.name for _, factory in service.listeners] + ["metrics"]
        try:
            for name, address in zip(names, service.addresses, strict=False):
                click.echo(f"Serving {name} on {address}")
        except OSError as error:
            cannot_print(error)

    reactor.callWhenRunning(announce)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it is done: one more must not change the exit code
    return 0


# get


@cli.command(
    epilog="""Examples:

    \b
      poetry get 127.0.0.1:10000                print the poem
      poetry get 10000 > poem.txt               of this machine
      poetry get -o poem.txt host:10000         a failure leaves poem.txt as it was
      poetry get -d poems a:10000 b:10000       one file an address
      poetry get --retries 5 --timeout 5 host:10000
      poetry get unix:/run/poem
      poetry get tls:poems.example.org:10000
    """
)
@click.argument("addresses", metavar="ADDRESS...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write here instead, atomically: a failure leaves no file, and an old one as it was.",
)
@click.option(
    "-d",
    "--directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="One file an address.",
)
@click.option(
    "--timeout",
    type=Seconds(0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Longest wait to connect and between bytes.",
)
@click.option(
    "--max-bytes", type=click.IntRange(1), metavar="N", help="Fail rather than take more."
)
@click.option(
    "--retries",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Try a failed download again from the start, with backoff.",
)
@click.option("--sha256", metavar="HEX", help="Fail unless the poem has this digest.")
@click.option(
    "--progress/--no-progress",
    default=None,
    help="Show progress.  [default: on a terminal's standard error]",
)
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def get(
    addresses: tuple[str, ...],
    output: Path | None,
    directory: Path | None,
    progress: bool | None,
    quiet: bool,
    sha256: str | None,
    **wanted: Any,
) -> int:
    """Fetch poems at the same time, and print them in the order asked for."""
    sha256 = digest_wanted(sha256)
    paths = files_wanted(addresses, output, directory)
    if not paths and sys.__stdout__ is None:
        raise click.ClickException("standard output: it is closed")

    from twisted.internet import reactor
    from twisted.logger import globalLogBeginner

    from poetry.addresses import BadAddress, client_endpoint
    from poetry.fetch import Fetcher, Wanted

    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    try:
        sources = [
            (address, client_endpoint(reactor, address, wanted["timeout"])) for address in addresses
        ]
    except BadAddress as error:
        raise click.UsageError(str(error)) from error
    if progress is None:
        # On the terminal that shows the poem, a bar would be in its way.
        printed = not paths and is_terminal(sys.stdout)
        progress = is_terminal(sys.stderr) and not quiet and not printed
    with progress_bar(shown=progress) as (advance, say):
        fetcher = Fetcher(
            reactor,
            Wanted(sha256=sha256, **wanted),
            advance,
            note=(lambda _: None) if quiet else say,
            complain=lambda message: say(f"Error: {message}"),
        )
        if not paths:
            work = fetcher.to_stdout(sources)
        elif len(paths) < len(sources):
            work = fetcher.to_file(sources, paths[0])
        else:
            work = fetcher.to_files(sources, paths)
        return run_to_end(reactor, work)


def digest_wanted(text: str | None) -> str | None:
    """A SHA-256 in lower case."""
    if text is not None and not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise click.UsageError(f"--sha256 {text}: not 64 hexadecimal digits")
    return text and text.lower()


def files_wanted(
    addresses: Sequence[str], output: Path | None, directory: Path | None
) -> list[Path]:
    """Where the poems go: one file each, one for all, or none (standard output)."""
    if directory is None:
        return [] if output is None else [output]
    if output is not None:
        raise click.UsageError("give --output or --directory, not both")
    names = [re.sub(r"[^\w.-]+", "_", address).strip("_") + ".txt" for address in addresses]
    if len(set(names)) < len(names):
        raise click.UsageError("two addresses would share a file in --directory")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"{directory}: {error.strerror}") from error
    return [directory / name for name in names]


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is open, and a terminal."""
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


def run_to_end(reactor: Any, work: Coroutine[Any, Any, bool]) -> int:
    """Run the reactor until the work is done; a signal cancels it, so that it can clean up."""
    from twisted.internet.defer import CancelledError, Deferred
    from twisted.internet.error import ReactorNotRunning
    from twisted.python.failure import Failure

    results: list[bool | Failure] = []

    def not_running(failure: Failure) -> None:
        failure.trap(ReactorNotRunning)

    def start() -> None:
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            signal.signal(signal.SIGHUP, reactor.sigTerm)
        done = Deferred.fromCoroutine(work)
        reactor.addSystemEventTrigger("before", "shutdown", done.cancel)
        done.addBoth(results.append)
        done.addCallback(lambda _: reactor.stop())
        done.addErrback(not_running)

    # A resolver that does not answer must not hold up the end.
    reactor.getThreadPool().threadFactory = partial(Thread, daemon=True)
    reactor.removeSystemEventTrigger(reactor.threadpoolShutdownID)
    reactor.callWhenRunning(start)
    reactor.run()
    result = results[0] if results else None
    if isinstance(result, Failure) and not result.check(CancelledError):
        return complain(f"unexpected: {result.getErrorMessage()}", FAILED)
    if not isinstance(result, bool):
        return INTERRUPTED
    return 0 if result else FAILED
