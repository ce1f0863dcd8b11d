"""How many connections a process may have."""

from __future__ import annotations

import resource
import runpy
import sys
from collections.abc import Iterator

import pytest

from poetry import descriptors
from poetry.descriptors import RESERVED, most_connections, raise_limit


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    """The soft and the hard limit, which are afterwards what they were."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_raise_limit(limits: tuple[int, int]) -> None:
    """The soft limit is raised as far as it may be."""
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
    assert raise_limit() == hard
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    assert raise_limit() == hard


def test_most_connections(limits: tuple[int, int]) -> None:
    """It is what the hard limit leaves, and at least one."""
    _, hard = limits
    assert most_connections() == hard - RESERVED - 3
    assert most_connections(hard) == 1


def test_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the hard limit is infinite, or the system has none, any number goes."""
    infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: infinite)
    assert (raise_limit(), most_connections()) == (sys.maxsize, sys.maxsize)
    monkeypatch.setattr(descriptors, "resource", None)
    assert (raise_limit(), most_connections()) == (sys.maxsize, sys.maxsize)


def test_a_system_without_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be imported where there is no such limit (Windows)."""
    monkeypatch.setitem(sys.modules, "resource", None)
    assert runpy.run_path(str(descriptors.__file__))["most_connections"]() == sys.maxsize
