"""What all tests share: poems in files, certificates, and that nothing is skipped in CI."""

from __future__ import annotations

import os
import signal
from asyncio import SelectorEventLoop
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.pollreactor import PollReactor
from twisted.internet.selectreactor import SelectReactor
from twisted.logger import globalLogPublisher

from tests.certificates import Certificates, make_certificates
from tests.faults.readers import poem
from tests.transfers import Log

PoemFile = Callable[[int], Path]

# Background jobs ignore the one, under nohup the other, and so would the processes under test.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

os.environ["PATH"] += ":/usr/sbin:/sbin"  # where Debian has HAProxy and nginx


def pytest_xdist_auto_num_workers() -> int:
    """Two for each core (`-n auto`): half of what the tests take is waiting."""
    return 2 * len(os.sched_getaffinity(0))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In .ci/run, which installs each tool, a test that skips has failed."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and "POETRY_ALL_TOOLS" in os.environ:
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session")
def poem_file(tmp_path_factory: pytest.TempPathFactory) -> PoemFile:
    """A function that gives the file of `readers.poem(size)`."""
    directory = tmp_path_factory.mktemp("poems")

    def write(size: int) -> Path:
        path = directory / f"{size}.txt"
        if not path.exists():
            path.write_bytes(poem(size))
        return path

    return write


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates: good, untrusted, misnamed; and nameless, mail and star, which name no host."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(params=[SelectReactor, PollReactor, EPollReactor, AsyncioSelectorReactor])
def any_reactor(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A reactor of each kind, beside the global one."""
    with closing(SelectorEventLoop()) as loop:
        yield request.param(*[loop] * (request.param is AsyncioSelectorReactor))


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe; reads do not block."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    yield reading, writing
    os.close(reading)
    os.close(writing)


@pytest.fixture
def log() -> Iterator[Log]:
    """What is logged during the test."""
    events = Log()
    globalLogPublisher.addObserver(events)
    yield events
    globalLogPublisher.removeObserver(events)


@pytest.fixture(scope="module", autouse=True)
def processes_of_faults_unmeasured(request: pytest.FixtureRequest) -> Iterator[None]:
    """Measure no branches of a process in the tests of faults and of tools.

    There processes are many, they run what other tests cover, and one that is killed may leave a
    broken file.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name in ("deploy", "faults", "interop"):
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield
