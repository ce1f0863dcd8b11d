"""The benchmarks run, and what README and docs quote is what the newest result says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers import THIS, TUTORIAL
from benchmarks.report import (
    BLOCK,
    BLOCKS,
    RESULTS,
    ROOT,
    documents,
    newest,
    render_all,
    render_blocks,
)
from tests.faults.readers import ENDS


@pytest.mark.parametrize("path", list(documents()), ids=lambda path: path.name)
def test_quoted_figures_are_current(path: Path) -> None:
    """Each block of figures is what `python -m benchmarks.report --write` would write."""
    text = path.read_text(encoding="utf-8")
    assert render_blocks(text, newest()) == text


def test_committed_tables_are_current() -> None:
    """The newest result's Markdown is rendered from its JSON, which is no quick run."""
    result = newest()
    assert not result["quick"]
    written = (RESULTS / f"{result['taken']}.md").read_text(encoding="utf-8")
    assert written == render_all(result)


def test_every_marked_block_is_known() -> None:
    """No page asks for figures that the report cannot render, or opens a block it does not end."""
    for path in documents():
        text = path.read_text(encoding="utf-8")
        names = [match[2] for match in BLOCK.finditer(text)]
        assert set(names) <= set(BLOCKS), path.name
        assert text.count("<!-- figures:") == len(names), path.name


@pytest.fixture(scope="module")
def quick() -> dict[str, dict[str, object]]:
    """A quick run of this server beside the tutorial's."""
    command = [sys.executable, "-m", "benchmarks", "--quick", "--peers", f"{THIS},{TUTORIAL}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    result: dict[str, dict[str, object]] = json.loads(run.stdout)
    return result


@pytest.mark.machine
def test_quick_run_counts_every_reader(quick: dict[str, dict[str, dict[str, object]]]) -> None:
    """Each reader of each cell has one outcome, and none has other bytes than the poem's."""
    for cells in quick["delivery"].values():
        for cell in cells.values():
            assert isinstance(cell, dict)
            assert sum(cell[outcome] for outcome in ENDS) == cell["readers"]
            assert cell["wrong"] == 0


@pytest.mark.machine
def test_quick_run_renders_each_table(quick: dict[str, dict[str, object]]) -> None:
    """Every table can be made of the results of the run."""
    page = render_all(quick)
    assert all(f"## {name}\n" in page for name in BLOCKS)


@pytest.mark.machine
def test_short_soak_counts_each_end() -> None:
    """A soak of seconds, with a stop and a kill, counts how each reader ended."""
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes", "0.1", "--seed", "1"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "| reads fast |" in run.stdout
    assert "| packets lost each way |" in run.stdout or "Packet loss was not tried" in run.stdout
