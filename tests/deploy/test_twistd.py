"""The plugin: found as installed from a wheel and as editable, and run by twistd and by twist."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import site
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.conftest import PoemFile
from tests.deploy.tools import tool
from tests.faults.readers import PAUSES, Crowd, poem, read_all
from tests.processes import PATIENCE, ROOT, eventually, run

LONG = 10_000_000
SHORT = 3_000
STARTED = re.compile(r"PoemFactory starting on (\d+)")


def pip(*arguments: str | Path, cwd: Path, python: Path | None = None) -> None:
    """Run pip of this environment, for that of `python`."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("pip is not installed")
    quiet = ["--quiet", "--no-deps", "--disable-pip-version-check"]
    builders = ["hatchling", "editables"] if "--editable" in arguments else ["hatchling"]
    if all(map(importlib.util.find_spec, builders)):
        quiet.append("--no-build-isolation")  # else pip fetches them
    other: list[str | Path] = [] if python is None else ["--python", python]
    action, *rest = arguments
    command = [sys.executable, "-m", "pip", *other, action, *quiet, *rest]
    done = run(command, cwd=cwd, patience=2 * PATIENCE)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    directory = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--wheel-dir", directory, ROOT, cwd=directory)
    [path] = directory.glob("twisted_poetry-*.whl")
    return path


def environment(directory: Path) -> Path:
    """A new environment with what this one has, but without the package; give its `bin`.

    Twisted is copied, so that its plugin folder is the environment's own, as pip would have it.
    """
    venv.create(directory, with_pip=False, symlinks=True)
    purelib = sysconfig.get_path(
        "purelib", vars={"base": str(directory), "platbase": str(directory)}
    )
    folders = map(Path, site.getsitepackages())
    for folder in filter(Path.exists, folders):  # Debian's Python names one that is not there
        for entry in folder.iterdir():
            copy = Path(purelib) / entry.name
            if entry.name == "twisted":
                ignored = shutil.ignore_patterns("test", "__pycache__", "*poetry*", "dropin.cache")
                shutil.copytree(entry, copy, ignore=ignored)
            elif "poetry" not in entry.name and not copy.exists():
                copy.symlink_to(entry)
    for name in ("twistd", "twist"):
        script = directory / "bin" / name
        code = f"from twisted.scripts.{name} import run; run()"
        if name == "twist":
            code = "import sys; from twisted.application.twist._twist import Twist; "
            code += "sys.exit(Twist.main())"
        script.write_text(f"#!{directory / 'bin' / 'python'}\n{code}\n", encoding="utf-8")
        script.chmod(0o755)
    return directory / "bin"


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the package from a wheel, or editable."""
    directory = tmp_path_factory.mktemp(request.param)
    binaries = environment(directory / "env")
    source: list[str | Path] = ["--editable", ROOT]
    if request.param == "wheel":
        source = [request.getfixturevalue("wheel")]
    pip("install", *source, cwd=directory, python=binaries / "python")
    return binaries


@pytest.mark.parametrize("runner", ["twistd", "twist"])
def test_plugin_is_found(installed: Path, runner: str, tmp_path: Path) -> None:
    """Both runners list the plugin; it comes from that environment, or from this tree."""
    done = run([installed / runner, "--help"], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert re.search(rb"^    poetry +Send a poem", done.stdout, re.MULTILINE)
    where = run([installed / "python", "-c", "import poetry; print(poetry.__file__)"], cwd=tmp_path)
    home = ROOT if "editable" in str(installed) else installed.parent
    assert Path(where.stdout.decode().strip()).is_relative_to(home)


@pytest.mark.parametrize("runner", [["twistd", "--nodaemon"], ["twist"]], ids=["twistd", "twist"])
def test_plugin_serves_in_the_foreground(
    installed: Path, runner: list[str], poem_file: PoemFile, tmp_path: Path
) -> None:
    """In the foreground the plugin serves; after TERM a reader in flight has the poem whole."""
    program, *flags = runner
    if program == "twistd":
        flags = [*flags, "--pidfile", str(tmp_path / "pid")]
    options = ["poetry", "--listen", "127.0.0.1:0", str(poem_file(LONG))]
    log = tmp_path / "log"
    with tool([installed / program, *flags, *options], log) as process:
        assert eventually(lambda: STARTED.search(log.read_text()) is not None), log.read_text()
        [port] = set(STARTED.findall(log.read_text()))
        with Crowd(f"127.0.0.1:{port}", poem(LONG), PAUSES, count=3) as crowd:
            crowd.run(until=crowd.begun)
            process.send_signal(signal.SIGTERM)
            assert eventually(lambda: "Received SIGTERM" in log.read_text())
            crowd.resume()
            assert crowd.run() == {"whole": 3}
        process.wait(PATIENCE)


def ended(pid: int) -> bool:
    """Whether a process that is no child of ours is gone, or waits for its parent to notice."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_plugin_serves_as_a_daemon(installed: Path, tmp_path: Path) -> None:
    """A daemon has a pid file and a log file, reloads by HUP, and its pid stops it."""
    pid_file, log, served = tmp_path / "pid", tmp_path / "log", tmp_path / "poem.txt"
    served.write_bytes(poem(SHORT))
    flags = ["--pidfile", str(pid_file), "--logfile", str(log)]
    options = ["poetry", "--listen", "127.0.0.1:0", str(served)]
    done = run([installed / "twistd", *flags, *options], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert eventually(pid_file.exists)
    pid = int(pid_file.read_text())
    try:
        assert eventually(lambda: STARTED.search(log.read_text()) is not None)
        [port] = STARTED.findall(log.read_text())
        assert read_all(f"127.0.0.1:{port}", poem(SHORT), count=3) == {"whole": 3}
        assert eventually(lambda: log.read_text().count("sent poem.txt") == 3)
        served.write_bytes(poem(LONG))
        os.kill(pid, signal.SIGHUP)
        assert eventually(lambda: "read the poems again" in log.read_text())
        with Crowd(f"127.0.0.1:{port}", poem(LONG), PAUSES, count=3) as crowd:
            crowd.run(until=crowd.begun)
            os.kill(pid, signal.SIGTERM)
            assert eventually(lambda: "Received SIGTERM" in log.read_text())
            crowd.resume()
            assert crowd.run() == {"whole": 3}
        assert eventually(lambda: ended(pid))
        assert eventually(lambda: not pid_file.exists())
    finally:
        if not ended(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["no-such-poem.txt"], "Error: no-such-poem.txt: No such file or directory"),
        (["--listen", "somewhere"], "Error: 'somewhere' is no address"),
        (["--listen", "0", "--listen", "0", "a", "b", "c"], "Error: 3 poems and 2 addresses"),
    ],
    ids=["no poem", "no address", "not paired"],
)
def test_usage_error_is_one_line(
    installed: Path, options: list[str], said: str, tmp_path: Path
) -> None:
    """A usage error is one line on standard error and exit code 2."""
    done = run([installed / "twistd", "--nodaemon", "poetry", *options], cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(said.encode())
    assert done.stderr.count(b"\n") == 1
