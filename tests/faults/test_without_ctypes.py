"""A Python that lacks ctypes: no reader waits for ever, and no half poem looks whole."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.conftest import PoemFile
from tests.faults.bad import serving, stall, whole
from tests.faults.readers import PAUSES, Crowd, poem, read_all
from tests.processes import eventually, run, running

WITHOUT = {
    "no ctypes": "sys.modules['_ctypes'] = None",
    "no C library": "import ctypes; ctypes.CDLL = lambda _: (_ for _ in ()).throw(OSError)",
}
"""A Python that was built without libffi, and one that is linked statically."""

LONG = 10_000_000

without = pytest.mark.parametrize("lack", WITHOUT.values(), ids=WITHOUT.keys())


def program(lack: str, *words: str) -> list[str]:
    code = f"import sys; {lack}\nfrom poetry.__main__ import main; main()"
    return [sys.executable, "-c", code, *words]


@without
@pytest.mark.parametrize("size", [3_000, LONG], ids=["short", "long"])
def test_poems_are_served(lack: str, size: int, poem_file: PoemFile) -> None:
    """Each reader has its poem, of any length."""
    with running(program(lack, "serve", str(poem_file(size)))) as server:
        assert read_all(server.addresses[0], poem(size), count=5) == {"whole": 5}
        assert server.stop() == 0
        assert "Traceback" not in server.stderr


@without
def test_idle_readers_are_reset(lack: str, poem_file: PoemFile) -> None:
    """A reader that takes nothing is reset by the idle timeout."""
    words = program(lack, "serve", "--idle-timeout", "1", str(poem_file(LONG)))
    with (
        running(words) as server,
        Crowd(server.addresses[0], poem(LONG), PAUSES, count=3) as idle,
    ):
        assert idle.run() == {"reset": 3}
        assert "Traceback" not in server.stderr


@without
@pytest.mark.parametrize("signals", [1, 2])
def test_a_stop_ends(lack: str, signals: int, poem_file: PoemFile) -> None:
    """TERM ends the server after the grace, and at once where it comes twice; readers are reset."""
    grace = "0.5" if signals == 1 else "60"
    words = program(lack, "serve", "--grace", grace, str(poem_file(LONG)))
    with (
        running(words) as server,
        Crowd(server.addresses[0], poem(LONG), PAUSES, count=3) as stalled,
    ):
        stalled.run(until=stalled.begun)
        server.signal(signal.SIGTERM)
        if signals == 2:
            assert eventually(lambda: "draining" in server.stderr or "in flight" in server.stderr)
            server.signal(signal.SIGTERM)
        assert stalled.run() == {"reset": 3}
        assert server.wait() == 0
        assert "Traceback" not in server.stderr


def test_get_gives_up() -> None:
    """Each limit of a download ends it with its line."""
    for options, handler, said in [
        (["--timeout", "1"], stall, b"nothing for 1 s"),
        (["--max-bytes", "10"], lambda sock: whole(sock, bytes(100)), b"more than 10 bytes"),
    ]:
        with serving(handler) as port:
            words = program(WITHOUT["no ctypes"], "get", *options, str(port))
            done = run(words)
        assert done.returncode == 1
        assert said in done.stderr
        assert b"Traceback" not in done.stderr
