"""What docs/library.md says: its programs run, its signatures and its outcomes are the code's."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

import pytest

import poetry
from poetry.errors import PoemError
from tests.processes import ROOT, run

TEXT = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
PROGRAMS: list[str] = re.findall(
    r"(?<!-->\n)^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE
)  # those that are quoted from examples/ run in test_examples.py
PUBLIC = [getattr(poetry, name) for name in poetry.__all__]
FUNCTIONS = [each for each in PUBLIC if inspect.isfunction(each)]
WITH_PARAMETERS = [
    *FUNCTIONS,
    poetry.PoetryService,
    poetry.PoetryServerFactory,
    poetry.PoetryClientFactory,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_documented_programs_run(program: str) -> None:
    """Each example runs."""
    words = [sys.executable, "-W", "error", "-c", program]
    done = run(words)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("public", [*FUNCTIONS, poetry.PoetryService])
def test_signatures_are_documented(public: Any) -> None:
    """A signature is documented with each of its parameters and their defaults."""
    signature = inspect.signature(public)
    parameters = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    bare = inspect.Signature(parameters)
    assert f"`{public.__name__}{bare}`" in " ".join(TEXT.split())


@pytest.mark.parametrize("public", WITH_PARAMETERS)
def test_parameters_are_in_the_reference(public: Any) -> None:
    """Each parameter of what is public is in the reference of the API."""
    function = public.__init__ if inspect.isclass(public) else public
    named = re.findall(r"@param (\w+):", inspect.getdoc(function) or "")
    assert [each for each in inspect.signature(public).parameters if each not in named] == []


def test_outcomes_are_documented() -> None:
    """The table of errors has each error with its outcome, and no other."""
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", TEXT, re.MULTILINE)
    errors = {each for each in PUBLIC if inspect.isclass(each) and issubclass(each, PoemError)}
    assert dict(rows) == {each.__name__: each.outcome for each in errors - {PoemError}}
