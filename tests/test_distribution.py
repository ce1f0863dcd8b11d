"""What goes to PyPI and how: the sdist, the wheel built from it, the workflows, their checkers."""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.processes import ROOT, run

STRAY = (
    "poems/pyvenv.cfg",  # an environment of the reader's in the checkout
    "poems/lib/python3/site-packages/module.py",
    "poem.txt",
    "examples/tutorial/long.txt",  # what the tutorial tells its reader to make
    "twisted/__init__.py",  # either would replace Twisted's own
    "twisted/plugins/__init__.py",
    "twisted/plugins/dropin.cache",
)

NOT_PASSED = ("failure", "cancelled", "skipped")
"""What GitHub calls a job that has not passed."""


class Distribution(NamedTuple):
    """What a build makes; the wheel is built from the sdist."""

    sdist: Path
    wheel: Path


def check(tool: str, *words: str | Path) -> None:
    """Run a tool that is installed beside Python; it has to succeed."""
    command = [Path(sys.executable).with_name(tool), *words]
    done = run(command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    """The sdist and the wheel of a copy of this tree with stray files."""
    tree = tmp_path_factory.mktemp("tree") / "twisted-poetry"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "dropin.cache"))
    for name in STRAY:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("", encoding="utf-8")
    output = tmp_path_factory.mktemp("dist")
    check("pyproject-build", "--no-isolation", "--outdir", output, tree)
    [sdist], [wheel] = output.glob("*.tar.gz"), output.glob("*.whl")
    return Distribution(sdist, wheel)


def test_sdist_contents(built: Distribution) -> None:
    """The sdist has the sources, the tests and the documents, and no stray."""
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "Makefile", "demo.py"} <= names
    assert {"docs/library.md", "deploy/haproxy.cfg", "tests/uses.py"} <= names
    assert {"examples/poems.tac", "examples/tutorial/readers.py"} <= names
    assert names.isdisjoint(STRAY)
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert folders == {"poetry", "twisted", "tests", "benchmarks", "deploy", "docs", "examples"}


def test_wheel_contents(built: Distribution) -> None:
    """The wheel has the package, its plugin and its manual page, and nothing that is Twisted's."""
    with zipfile.ZipFile(built.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = [path for path in (ROOT / "poetry").rglob("*") if path.suffix in (".py", ".txt")]
    expected = {str(path.relative_to(ROOT)) for path in package}
    page = f"{built.wheel.name.rpartition('-py3')[0]}.data/data/share/man/man1/twisted-poetry.1"
    assert names == expected | {"poetry/py.typed", "twisted/plugins/poetry_plugin.py", page}


def test_description(built: Distribution) -> None:
    """The page on PyPI is the README without a link or a picture that leads nowhere there."""
    with zipfile.ZipFile(built.wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        message = message_from_bytes(archive.read(metadata))
    assert message["Description-Content-Type"] == "text/markdown"
    description = str(message.get_payload())
    assert description.startswith("# twisted-poetry\n")
    links = re.findall(r"\]\(([^)]*)\)|^\[[^\]]*\]: *(\S+)|<(?:a|img)\b", description, re.MULTILINE)
    assert [link for link in map("".join, links) if not link.startswith(("https:", "#"))] == []
    assert "docs/library.md" in description


def test_checkers_have_no_complaint(built: Distribution) -> None:
    """Neither twine nor check-wheel-contents nor validate-pyproject has anything to say."""
    check("twine", "check", "--strict", *built)
    check("check-wheel-contents", "--config", ROOT / "pyproject.toml", built.wheel)
    check("validate-pyproject", ROOT / "pyproject.toml")


def github() -> Path:
    """The folder of the workflows; skips where there is none."""
    folder = ROOT / ".github"
    if not folder.exists():
        pytest.skip("an sdist has no workflows")
    return folder


def test_workflows() -> None:
    """zizmor finds no fault in the workflows: least permissions, pinned actions, no kept token."""
    check("zizmor", "--offline", "--no-progress", github())


def test_one_job_stands_for_all() -> None:
    """The job `all` waits for each other job, and fails where one of them did not pass."""
    text = (github() / "workflows" / "ci.yml").read_text(encoding="utf-8")
    jobs = re.findall(r"^  (\w+):$", text.partition("\njobs:\n")[2], re.MULTILINE)
    *others, last = jobs
    assert last == "all"
    [needs] = re.findall(r"^    needs: \[(.*)\]$", text, re.MULTILINE)
    assert needs.split(", ") == others
    assert all(f"contains(needs.*.result, '{each}')" in text for each in NOT_PASSED)


def test_each_python_is_tested() -> None:
    """The workflow tests the versions of Python that the package says it runs on."""
    text = (github() / "workflows" / "ci.yml").read_text(encoding="utf-8")
    [tested] = re.findall(r"^        python: \[(.*)\]$", text, re.MULTILINE)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    assert re.findall(r'"([^"]*)"', tested) == declared


def lints() -> list[str]:
    """The commands that `make test` runs before its tests."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.partition("\ntest: ")[2].partition("coverage")[0]
    return [
        f".venv/bin/{check}" for check in re.findall(r"^\t\$\(BIN\)/(.+)$", recipe, re.MULTILINE)
    ]


def test_lint_job_runs_the_lints() -> None:
    """The job `lint` runs what `make test` runs before its tests."""
    text = (github() / "workflows" / "ci.yml").read_text(encoding="utf-8")
    job = text.partition("\n  lint:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^      - run: (\.venv/.*)", job, re.MULTILINE) == lints()


def test_pre_commit() -> None:
    """Before a commit, what `make test` runs before its tests is run, which takes a second."""
    config = ROOT / ".pre-commit-config.yaml"
    if not config.exists():
        pytest.skip("an sdist has no hooks")
    entries = re.findall(r"^ +entry: (.*)", config.read_text(encoding="utf-8"), re.MULTILINE)
    assert entries == lints()


def test_changelog_names_the_release(built: Distribution) -> None:
    """The newest release in the changelog is this one, and has a date."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.findall(r"^## \[(.*)\] - \d{4}-\d\d-\d\d$", text, re.MULTILINE)[0]
    assert built.sdist.name == f"twisted_poetry-{newest}.tar.gz"
