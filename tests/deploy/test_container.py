"""The Containerfile, as far as it can be checked without building it: each of its commands."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.conftest import PoemFile
from tests.deploy.tools import DEPLOY, replaced
from tests.faults.readers import poem, read_all
from tests.processes import POETRY, ROOT, eventually, run, running

TEXT = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
LINES = [line.partition(" ")[::2] for line in TEXT.splitlines() if line and line[0] not in "# "]
INSTALLED = "/opt/twisted-poetry/bin/"
SHORT = 3_000


def words_of(instruction: str) -> list[str]:
    """The command of an instruction, written as words, so that no shell runs it."""
    [text] = [rest for name, rest in LINES if name == instruction]
    words: list[str] = json.loads(text[text.index("[") :])
    return words


def here(words: list[str], ports: dict[str, str]) -> list[str]:
    """A command of the image's, with this machine's paths and ports."""
    text = replaced("\0".join(words), {INSTALLED: "", **ports})
    program, *arguments = text.split("\0")
    return [*(POETRY if program == "poetry" else [sys.executable]), *arguments]


def test_image_has_no_shell_and_no_root() -> None:
    """Each command is a list of words, and the last stage runs as a user that has nothing."""
    for name, rest in LINES:
        if name in ("RUN", "CMD", "ENTRYPOINT"):
            assert isinstance(json.loads(rest), list)
    names = [name for name, _ in LINES]
    last = LINES[len(names) - 1 - names[::-1].index("FROM") :]
    [user] = [rest for name, rest in last if name == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert "RUN" not in dict(last)


def test_copied_files_make_the_wheel(tmp_path: Path) -> None:
    """A wheel can be built from the files that the first stage copies."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("pip is not installed")
    for name, rest in LINES:
        if name == "COPY" and not rest.startswith("--from"):
            *sources, to = rest.split()
            for source in sources:
                path = tmp_path / to.lstrip("/")
                if (ROOT / source).is_dir():
                    shutil.copytree(
                        ROOT / source, path, ignore=shutil.ignore_patterns("__pycache__")
                    )
                else:
                    path.mkdir(exist_ok=True)
                    shutil.copy(ROOT / source, path)
    wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    built = run([*wheel, "./source"], cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert list(tmp_path.glob("twisted_poetry-*.whl"))


def test_image_serves_until_term(poem_file: PoemFile) -> None:
    """The command serves a poem named after it; the probe succeeds until TERM has come."""
    command = here(words_of("ENTRYPOINT"), {":10000": ":0", ":9101": ":0"})
    with running([*command, poem_file(SHORT)], listeners=2) as server:
        assert read_all(f"127.0.0.1:{server.port}", poem(SHORT)) == {"whole": 1}
        metrics = server.addresses[1].rpartition(":")[2]
        probe = here(words_of("HEALTHCHECK"), {":9101": f":{metrics}"})
        assert run(probe).returncode == 0
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert eventually(lambda: run(probe).returncode != 0)
