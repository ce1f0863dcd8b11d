"""The examples of the help texts run as they stand, but for names and ports of this machine."""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from poetry.cli import cli
from poetry.commands.get import get
from poetry.commands.serve import serve
from tests.certificates import Certificates
from tests.processes import PATIENCE, POETRY, poetry, running

POEM = b"One poem, so brief.\n"


def examples(*commands: click.Command) -> list[str]:
    """The example lines of their help texts, without the comments."""
    lines = [line for command in commands for line in str(command.epilog).splitlines()]
    found = [re.split(r"  +", line.strip())[0] for line in lines if re.search(r"\bpoetry ", line)]
    return list(dict.fromkeys(found))


GET = [line for line in examples(cli, get) if line.startswith("poetry get")]
SERVE = [line for line in examples(cli, serve) if "poetry serve" in line]


@dataclass
class Place:
    """Where one poem is served: the same address by two names, a Unix socket, and TLS."""

    port: str
    unix: str
    tls: str
    authority: Path

    def words(self, example: str) -> list[str]:
        """The words after `poetry`, of this place."""
        command = example.partition(" > ")[0].removeprefix("poetry ")
        named = f"127.0.0.1:{self.port}"
        there = {
            "10000": self.port,
            "127.0.0.1:10000": named,
            "host:10000": named,
            "a:10000": self.port,
            "b:10000": named,
            "unix:/run/poem": self.unix,
            "tls:poems.example.org:10000": self.tls,
        }
        return [there.get(word, word) for word in shlex.split(command)]


@pytest.fixture(scope="module")
def place(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server of one poem."""
    unix = f"unix:{tmp_path_factory.mktemp('run') / 'poem'}"
    listen = ("-l", "0", "-l", unix, "-l", certificates.listen("good"))
    with running([*POETRY, "serve", *listen, "-"], stdin=POEM, listeners=3) as server:
        yield Place(str(server.port), unix, server.addresses[2], certificates.authority)


@pytest.mark.parametrize("example", GET)
def test_get_examples_print_the_poem(
    place: Place, tmp_path: Path, example: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example of `poetry get` prints the poem, or writes it where it says."""
    monkeypatch.chdir(tmp_path)
    done = poetry(*place.words(example), env={"SSL_CERT_FILE": str(place.authority)})
    assert done.returncode == 0
    assert bool(done.stderr) is (" -v " in example)
    written = [path.read_bytes() for path in tmp_path.rglob("*.txt")]
    if " -d " in example:
        assert written == [POEM, POEM]
    else:
        assert [done.stdout, *written].count(POEM) == 1
        assert bool(written) is (" -o " in example)


def read(address: str) -> bytes:
    """All that a listener of this machine sends."""
    host, _, port = address.partition(":")
    unix = host == "unix"
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as reader:
        reader.settimeout(PATIENCE)
        reader.connect(port if unix else (host, int(port)))
        return b"".join(iter(lambda: reader.recv(65536), b""))


@pytest.mark.parametrize("example", SERVE)
def test_serve_examples_serve(tmp_path: Path, example: str) -> None:
    """Each example of `poetry serve` announces its poems, and sends them."""
    before, _, command = example.rpartition("| ")
    here = {"10000": "0", "0.0.0.0": "127.0.0.1", "unix:/run/poem": f"unix:{tmp_path / 'poem'}"}
    words = [here.get(word, word) for word in shlex.split(command)[1:]]
    for word in words:
        if word.endswith(".txt"):
            (tmp_path / word).write_bytes(POEM)
    listeners = max(1, command.count(".txt"), command.count(" -l "))
    quick = ("--grace", "0")
    with running(
        [*POETRY, *words, *quick], listeners=listeners, cwd=tmp_path, stdin=POEM * bool(before)
    ) as server:
        poems = [read(address) for address in server.addresses]
    given = ".txt" in command or before
    assert poems == [POEM] * listeners if given else all(poem.count(b"\n") > 5 for poem in poems)
