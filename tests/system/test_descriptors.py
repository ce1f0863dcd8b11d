"""How many connections a process may have."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator

import pytest

from poetry.system import descriptors
from poetry.system.descriptors import (
    RESERVED,
    given_descriptor,
    raise_connection_limit,
    raise_limit,
)


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    """The soft and the hard limit of open files; restored afterwards."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_soft_limit_is_raised_to_the_hard_one(limits: tuple[int, int]) -> None:
    """The soft limit is raised as far as it may be."""
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
    assert raise_limit() == hard
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    assert raise_limit() == hard


def test_connections_take_what_the_hard_limit_leaves(limits: tuple[int, int]) -> None:
    """The number of connections is what the hard limit leaves, and at least one."""
    _, hard = limits
    assert raise_connection_limit() == hard - RESERVED - 4
    assert raise_connection_limit(hard) == 1


def test_infinite_limit_allows_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the hard limit is infinite, or the system has none, any number is allowed."""
    infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: infinite)
    assert (raise_limit(), raise_connection_limit()) == (sys.maxsize, sys.maxsize - RESERVED - 4)
    monkeypatch.setattr(descriptors, "resource", None)
    assert (raise_limit(), raise_connection_limit()) == (sys.maxsize, sys.maxsize - RESERVED - 4)


def test_limit_respects_select(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is no higher than what select can watch, and a soft one is never infinite."""
    raised = []
    monkeypatch.setattr(descriptors, "SELECTABLE", 1024)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    assert raise_limit() == 1024
    assert raised == [(1024, resource.RLIM_INFINITY)]
    assert raise_connection_limit() == 1024 - RESERVED - 4


@pytest.mark.parametrize("error", [OSError(1, "Operation not permitted"), ValueError("too much")])
def test_refused_raise_leaves_the_soft_limit(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Where the system refuses to raise the limit, it is the soft one."""

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(resource, "getrlimit", lambda _: (500, 1000))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_limit() == 500
    assert raise_connection_limit() == 500 - RESERVED - 4


def test_given_descriptors_have_names() -> None:
    """The standard streams have names of their own; those of other processes are files."""
    names = ("/dev/stdin", "/dev/stdout", "/dev/stderr", "/proc/1/fd/3", "/dev/fd/x", "/dev/null")
    assert [given_descriptor(name) for name in names] == [0, 1, 2, None, None, None]


def test_own_descriptor_is_not_a_given_one(pipe: tuple[int, int]) -> None:
    """A name of a descriptor that the process has opened itself, or of none, is an error."""
    for number in (*pipe, 99_999, 10**30):
        with pytest.raises(OSError, match="Bad file descriptor"):
            given_descriptor(f"/dev/fd/{number}")
    os.set_inheritable(pipe[0], True)
    assert given_descriptor(f"/proc/self/fd/{pipe[0]}") == pipe[0]
