"""The examples of docs/library.md, as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import PATIENCE

TEXT = (Path(__file__).parents[1] / "docs" / "library.md").read_text(encoding="utf-8")
BLOCKS: list[str] = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
FIRST_LINE = "# test_poems.py\n"
PROGRAMS = [block for block in BLOCKS if not block.startswith(FIRST_LINE)]
TESTS = [block for block in BLOCKS if block.startswith(FIRST_LINE)]


def run(directory: Path, *words: str) -> str:
    """Run Python to its end, without a complaint; give what it printed."""
    result = subprocess.run(
        [sys.executable, "-W", "error", *words],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_programs(program: str, tmp_path: Path) -> None:
    """Each example runs."""
    run(tmp_path, "-c", program)


@pytest.mark.parametrize("runner", ["trial", "pytest"])
def test_testing_your_code(runner: str, tmp_path: Path) -> None:
    """The example of a test passes under both runners; trial finds the reactor clean."""
    (test,) = TESTS
    (tmp_path / "test_poems.py").write_text(test, encoding="utf-8")
    if runner == "trial":
        words = ["-m", "twisted.trial", "test_poems"]
        passed = "successes=2"
    else:
        words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_poems.py"]
        passed = "2 passed"
    assert passed in run(tmp_path, *words)
