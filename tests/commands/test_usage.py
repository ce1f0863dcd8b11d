"""Bad input: one line that names it, and 2; and the help that it points to."""

from __future__ import annotations

import errno
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from poetry.cli import cli
from poetry.commands.console import complain_of_stdout
from tests.commands.tools import (
    NO_PATH,
    Run,
    error_of,
)
from tests.processes import poetry, run

HELPS: tuple[list[str], ...] = ([], ["serve"], ["get"])

LONG_WORD = "x" * 300
"""Longer than a file's name may be, and than a label of a host's."""

MANY_DIGITS = "9" * 5_000
"""More than Python converts to a number."""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("serve -p 65536", "Invalid value for '-p' / '--port': 65536 is not in the range"),
        ("serve -p x", "Invalid value for '-p' / '--port': x is not a whole number, such as 10000"),
        ("serve -p -1", "Invalid value for '-p' / '--port': -1 is not in the range of 0 to 65535"),
        ("serve -l 65536", "'65536': port 65536 is out of range (0 to 65535)"),
        ("serve -l nonsense", "'nonsense' is no address: use PORT, HOST:PORT or"),
        ("serve -l frob:1:2", "'frob:1:2' is no address: Unknown endpoint type: 'frob'"),
        ("serve -l tcp:0:frob=1", "'tcp:0:frob=1' is no address: too few or too many arguments"),
        ("serve -l ssl:0:privateKey=/none", "'ssl:0:privateKey=/none': /none: No such"),
        ("serve -p", "Option '-p' requires an argument."),
        ("serve --grace", "Option '--grace' requires an argument."),
        ("get 1 -o", "Option '-o' requires an argument."),
        ("serve -l tls:127.0.0.1:0", "'tls:127.0.0.1:0': tls: is an address for get; to listen,"),
        ("serve -l stdio:", "'stdio:': standard input and output is not a listener"),
        ("serve -l unix:", "'unix:': it names no path"),
        ("serve -i ", "--interface : write a host or an address of this machine, without a port"),
        ("serve -i *", "--interface *: write a host or an address of this machine"),
        ("serve -i 127.0.0.1:80", "--interface 127.0.0.1:80: write a host or an address"),
        ("serve -i [::1]:80", "--interface [::1]:80: write a host or an address"),
        ("serve -l haproxy:tcp:0", "'haproxy:tcp:0': the PROXY protocol is not supported"),
        (f"serve -l unix:{NO_PATH}", f"'unix:{NO_PATH}' is no address: its path has 120 bytes"),
        (
            "serve --metrics no",
            "'no' is no address: use PORT, HOST:PORT or an endpoint string (--m",
        ),
        ("get localhost/", "'localhost/' is no address: write localhost:PORT, the port"),
        ("serve -l ./here", "'./here' is no address: for a Unix socket, write unix:./here"),
        ("get /run/poem", "'/run/poem' is no address: for a Unix socket, write unix:/run/poem"),
        ("serve -l 0 -p 0", "give --listen, or --port and --interface, not both"),
        ("serve -p 9 a.txt b.txt", "several poems cannot share --port: give each a --listen"),
        ("serve -l 0 {short} {short}", "2 poems and 1 addresses"),
        ("serve -l 0 -l 0 -l 0 {short} {short}", "2 poems and 3 addresses"),
        ("serve --delay nan", "Invalid value for '--delay': nan is not a number of seconds"),
        ("serve --grace 5s", "Invalid value for '--grace': 5s is not a number of seconds, such as"),
        ("serve --grace -1", "Invalid value for '--grace': -1 is not in the range of 0 and more"),
        ("serve --num-bytes 0", "Invalid value for '--num-bytes': 0 is not in the range"),
        ("get", "Missing argument 'ADDRESS...'"),
        ("get nonsense", "'nonsense' is no address: use PORT, HOST:PORT or an endpoint string"),
        ("get 127.0.0.1:0", "'127.0.0.1:0': port 0 is not one to connect to (1 to 65535)"),
        ("get ::1:80", "'::1:80' is no address: an IPv6 host goes in brackets"),
        ("get http://localhost/", "'http://localhost/' is no address: write localhost:PORT"),
        (f"get unix:{NO_PATH}", f"'unix:{NO_PATH}' is no address: its path has 120 bytes"),
        ("get unix:", "'unix:': it names no path"),
        ("get tcp:80:frob=1", "'tcp:80:frob=1' is no address: "),
        ("get -o a -d b 1", "give --output or --directory, not both"),
        ("get -d {empty}.d 1 127.0.0.1:1 1", "two addresses would share a file in --directory"),
        ("get --sha256 abc 1", "--sha256 abc: not 64 hexadecimal digits"),
        ("get -o  1", "--output: it names no file"),
        ("get -d  1", "--directory: it names no directory"),
        (
            "get --timeout 0 1",
            "Invalid value for '--timeout': 0 is not in the range of more than 0",
        ),
        ("get --timeout 5s 1", "Invalid value for '--timeout': 5s is not a number of seconds"),
        ("get --max-time 1m 1", "Invalid value for '--max-time': 1m is not a number of seconds"),
        (
            "get --max-bytes 1M 1",
            "Invalid value for '--max-bytes': 1M is not a whole number, such as 1000000",
        ),
        (
            "get --retries -1 1",
            "Invalid value for '--retries': -1 is not in the range of 0 and more",
        ),
        ("frob", "No such command 'frob'"),
        ("install", "No such command 'install'. This is twisted-poetry, which serves poems, and"),
        ("add x", "No such command 'add'. This is twisted-poetry, which serves poems, and not"),
        ("get -o a -o b 1 2", "give --output or --directory once: -d DIR has a file an address"),
        ("get -d a -d b 1", "give --output or --directory once: -d DIR has a file an address"),
        ("get -v -q 1", "give --verbose or --quiet, not both"),
        ("get --progress -q 1", "give --progress or --quiet, not both"),
        ("get --cacert  1", "--cacert: it names no file"),
        ("get --cacert /dev/fd/999 1", "--cacert /dev/fd/999: Bad file descriptor"),
        ("get stdio:9", "'stdio:9' is no address: use PORT, HOST:PORT or an endpoint string"),
        ("get tcp:a..b:9", "'tcp:a..b:9': 'a..b' is no host name"),
        ("get tcp:port=9:host=a..b", "'tcp:port=9:host=a..b': 'a..b' is no host name"),
        (f"get tcp:{LONG_WORD}:9", f"'tcp:{LONG_WORD}:9': '{LONG_WORD}' is no host name"),
        (f"get {LONG_WORD}", f"'{LONG_WORD}' is no address: use PORT, HOST:PORT or an endpoint"),
        (f"serve -l {LONG_WORD}", f"'{LONG_WORD}' is no address: use PORT, HOST:PORT or an"),
        (f"get {MANY_DIGITS}", f"'{MANY_DIGITS}': port 99999999999999999999 is out of range"),
        (f"serve -l 1:{MANY_DIGITS}", f"'1:{MANY_DIGITS}': port 99999999999999999999 is out of"),
        ("serve -l unix:/tmp/a\nb", r"'unix:/tmp/a\nb': its path has characters that cannot be"),
        ("serve -l unix:/tmp/\udcff", r"'unix:/tmp/\udcff': its path has characters that cannot"),
        ("get --cacert /no/ca.pem tls:h:1", "--cacert /no/ca.pem: No such file or directory"),
        ("get localhost", "'localhost' is no address: write localhost:PORT, the port as a number"),
        ("get poem.txt", "'poem.txt' is no address: it looks like a file: `serve poem.txt` sends"),
        ("get {short}", "'{short}' is no address: it looks like a file: `serve {short}` sends it"),
        ("serve -l poem.txt", "'poem.txt' is no address: it looks like a file: `serve poem.txt`"),
    ],
)
def test_usage_error_is_one_line(in_process: Run, poems: Path, words: str, message: str) -> None:
    """A usage error is one line that names the mistake and where to read on, and 2."""
    names = {path.stem: str(path) for path in poems.iterdir()}
    given = [word.format(**names) for word in words.split(" ")]
    error = error_of(in_process(*given), 2)
    assert error.startswith(message.format(**names))
    command = " ".join(["poetry", *(word for word in given[:1] if word in ("serve", "get"))])
    assert error.endswith(f" (see '{command} --help')")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("serve --host 0.0.0.0", "Where to listen is -i ADDR."),
        ("serve --bind 0.0.0.0", "Where to listen is -i ADDR."),
        ("serve --reload", "A running server reads its poems again at HUP: kill -HUP PID."),
        ("serve --frob", ""),
        ("get --host 1", ""),
    ],
)
def test_option_of_other_servers_has_an_alternative(in_process: Run, words: str, hint: str) -> None:
    """An option that other servers have is answered with `serve`'s own."""
    error = error_of(in_process(*words.split()), 2)
    assert error.startswith("No such option")
    assert all(line in error for line in [hint])
    assert not (hint and "Did you mean" in error)
    assert ("ADDR" in error, "HUP" in error) == ("ADDR" in hint, "HUP" in hint)


@pytest.mark.parametrize("words", ["serve -p x", "get nonsense", "frob"])
def test_usage_error_of_a_process(in_process: Run, words: str) -> None:
    """The command itself prints the same."""
    expected, result = in_process(*words.split()), poetry(*words.split())
    assert (result.returncode, result.stdout) == (expected.returncode, expected.stdout)
    assert result.stderr.replace(b"python -m poetry", b"poetry") == expected.stderr


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("command", HELPS)
def test_help_has_examples_and_fits(command: list[str], width: int) -> None:
    """Each help has examples, fits the terminal, and breaks no example and no option."""
    widest = CliRunner().invoke(cli, [*command, "--help"], terminal_width=1_000).output
    result = CliRunner().invoke(cli, [*command, "-h"], terminal_width=width)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= width
    _, _, examples = result.output.partition("Examples:\n\n")
    assert examples.startswith("  poetry ")
    assert examples.partition("\n\n")[0] in widest
    assert not [line for line in lines if line.endswith("-")]
    assert "[x" not in result.output
    assert "<" not in result.output


@pytest.mark.parametrize("command", HELPS)
def test_help_under_the_other_name(command: list[str]) -> None:
    """`twisted-poetry -h` has examples with that name."""
    for name in ("poetry", "twisted-poetry"):
        program = Path(sys.executable).with_name(name)
        result = run([program, *command, "-h"])
        assert result.returncode == 0
        _, _, examples = result.stdout.decode().partition("Examples:\n\n")
        lines = [line for line in examples.splitlines() if "poetry" in line]
        assert lines
        assert all(f" {name} " in line for line in lines)


def test_missing_command_is_a_usage_error() -> None:
    """Without a command the help is shown, and it is a usage error."""
    result = CliRunner().invoke(cli, [])
    assert result.exit_code == 2
    assert result.output.startswith("Usage: ")


def test_version() -> None:
    """The version is the distribution's."""
    for word in ("-V", "--version"):
        result = CliRunner().invoke(cli, [word])
        assert result.output == f"twisted-poetry, version {version('twisted-poetry')}\n"
        assert result.exit_code == 0


def test_lack_of_descriptors_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A lack of descriptors is not blamed on standard output."""
    assert complain_of_stdout(OSError(errno.EMFILE, "Too many open files")) == 1
    assert capsys.readouterr().err == "Error: Too many open files; raise the limit (ulimit -n)\n"
