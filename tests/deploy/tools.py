"""What the deployment tests share: real tools, their logs, and a server's metrics."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.processes import PATIENCE, ROOT

DEPLOY = ROOT / "deploy"


@contextmanager
def tool(
    command: Sequence[str | Path], log: Path, *, pass_fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a tool until the block ends, with its output in `log`."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            pass_fds=pass_fds,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait(PATIENCE)


def replaced(text: str, changes: Mapping[str, object]) -> str:
    """The text with each of `changes` made; all of them have to be in it."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, str(new))
    return text


def fetch(url: str) -> str:
    """The page that an HTTP server answers."""
    with urllib.request.urlopen(url, timeout=PATIENCE) as response:
        text: str = response.read().decode()
        return text


def answer(url: str) -> Any:
    """The JSON that an HTTP server answers; None while there is none."""
    try:
        return json.loads(fetch(url))
    except (urllib.error.URLError, ConnectionError):
        return None


def samples(address: str) -> dict[str, float]:
    """The metrics at an address, by name and labels as they are written."""
    lines = fetch(f"http://{address}/metrics").splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}
