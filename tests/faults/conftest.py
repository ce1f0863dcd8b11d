"""What the fault tests share: the commands under test, and enough descriptors."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest

from tests.processes import Command

NAIVE: Command = (sys.executable, Path(__file__).with_name("naive.py"))
BARE: Command = (sys.executable, Path(__file__).with_name("bare.py"))


@pytest.fixture(scope="session", autouse=True)
def plenty_of_descriptors() -> None:
    """Let the crowds have as many sockets as the hard limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
