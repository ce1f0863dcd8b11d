"""The programs of examples/ run, and the demo; the tutorial's run in tests/test_documents.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from examples.inbox import Inbox
from tests.certificates import Certificates
from tests.faults.bad import serving
from tests.processes import PATIENCE, ROOT, SAMPLE, eventually, listening_port, poetry, run, running

EXAMPLES = ROOT / "examples"
POEM = b"One poem, so brief.\n"


def command(name: str, *words: str | Path) -> list[str | Path]:
    """A program of examples/ with its words."""
    return [sys.executable, EXAMPLES / name, *words]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with the poem."""
    path = tmp_path / "poem.txt"
    path.write_bytes(POEM)
    return path


def test_demo_fetches_the_sample() -> None:
    """`make demo` fetches the sample poem whole, and stops its server."""
    done = run(command("../demo.py"))
    assert done.returncode == 0
    assert SAMPLE in done.stdout
    assert done.stdout.endswith(b"stop, and ended with exit code 0.\n")


def test_hello_prints_its_poem() -> None:
    """The program prints the poem that it serves."""
    done = run(command("hello.py"))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"b'So brief.'\n", b"")


@pytest.mark.parametrize("name", ["get.py", "serve.py", "push.py", "inbox.py", "personal.py"])
def test_program_without_its_words_prints_how_to_call_it(name: str) -> None:
    """A program that is called without its arguments prints its usage, and fails."""
    done = run(command(name))
    assert (done.returncode, done.stdout) == (1, b"")
    assert f"\npython {name} ".encode() in done.stderr
    assert b"Traceback" not in done.stderr


def test_get_prints_the_poem_of_serve(file: Path) -> None:
    """One program serves a poem until TERM, and another one prints it."""
    with running(command("serve.py", "0", file)) as server:
        done = run(command("get.py", "127.0.0.1", str(server.port)))
        assert (done.returncode, done.stdout, done.stderr) == (0, POEM, b"")
        assert (server.stop(), server.stderr) == (0, "")


def test_serve_with_tls(file: Path, certificates: Certificates) -> None:
    """With a certificate and a key the program serves over TLS."""
    both = certificates.path("good")  # the certificate and its key
    with running(command("serve.py", "0", file, both, both)) as server:
        assert poetry("get", certificates.trusting(server.port)).stdout == POEM


def test_get_names_the_failure() -> None:
    """A poem that is not whole is one line on standard error, and exit code 1."""
    with serving(lambda _: None) as port:
        done = run(command("get.py", "127.0.0.1", str(port)))
    assert (done.returncode, done.stdout) == (1, b"")
    assert re.fullmatch(rf"127\.0\.0\.1:{port}: .+\n", done.stderr.decode())


@pytest.mark.parametrize("name", ["get.py", "push.py"])
@pytest.mark.parametrize("host", ["127.0.0.1", "nosuch.invalid"])
def test_missing_server_is_one_line(name: str, host: str, file: Path) -> None:
    """A missing server or host is one line on standard error, and exit code 1."""
    poem = [file] if name == "push.py" else []
    done = run(command(name, host, "1", *poem))
    assert (done.returncode, done.stdout) == (1, b"")
    assert re.fullmatch(rf"{host}:1: .+\n", done.stderr.decode())


def test_push_into_an_inbox(file: Path, tmp_path: Path) -> None:
    """A client brings a poem, which then is in a file; one that is too long leaves no file."""
    box = tmp_path / "box"
    box.mkdir()
    long = tmp_path / "long.txt"
    long.write_bytes(bytes(20_000_000))
    with running(command("inbox.py", "0", box)) as server:
        pushed = run(command("push.py", "127.0.0.1", str(server.port), file))
        refused = run(command("push.py", "127.0.0.1", str(server.port), long))
        assert (pushed.returncode, pushed.stderr) == (0, b"")
        assert refused.returncode == 1
        assert refused.stderr.startswith(b"127.0.0.1:")
        assert eventually(lambda: [path.read_bytes() for path in box.iterdir()] == [POEM])


def test_an_inbox_keeps_the_newest(tmp_path: Path) -> None:
    """The oldest poems make way for new ones."""
    inbox = Inbox(tmp_path)
    inbox.max_poems = 2
    for age, poem in ((3, b"first"), (2, b"second"), (1, b"third")):
        inbox.poemReceived(poem)
        [new] = [path for path in tmp_path.iterdir() if path.read_bytes() == poem]
        os.utime(new, (1000 - age, 1000 - age))
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"second", b"third"]


def test_each_reader_gets_a_poem_of_its_own() -> None:
    """Each reader gets a poem of its own."""
    with running(command("personal.py", "0")) as server:
        assert poetry("get", server.addresses[0]).stdout == b"A poem for you at 127.0.0.1.\n"


def test_tac_file_runs_under_twistd(tmp_path: Path) -> None:
    """The .tac file runs under twistd."""
    program = Path(sys.executable).with_name("twistd")
    words: list[str | Path] = [program, "--nodaemon", "--pidfile=", "-y", EXAMPLES / "poems.tac"]
    twistd = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        assert eventually(lambda: listening_port(twistd.pid) is not None)
        assert poetry("get", str(listening_port(twistd.pid))).stdout == b"So brief."
    finally:
        twistd.terminate()
        twistd.wait(PATIENCE)


@pytest.mark.parametrize(
    ("runner", "passed"),
    [
        (["-m", "twisted.trial", "test_poems"], "successes=2"),
        (["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_poems.py"], "2 passed"),
    ],
    ids=["trial", "pytest"],
)
def test_example_of_a_test_passes(runner: list[str], passed: str, tmp_path: Path) -> None:
    """The example of a test passes under both runners; trial finds the reactor clean."""
    shutil.copy(EXAMPLES / "test_poems.py", tmp_path)
    done = run([sys.executable, "-W", "error", *runner], cwd=tmp_path)
    assert (done.returncode, passed.encode() in done.stdout) == (0, True), done.stdout + done.stderr
