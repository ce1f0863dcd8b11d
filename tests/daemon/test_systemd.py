"""systemd's notifications."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from poetry.daemon.systemd import notify
from tests.transfers import Log


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_notified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, abstract: bool
) -> None:
    """systemd learns where the server listens, and since when a reload runs."""
    name = f"@poetry-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(30)
        systemd.bind(name.replace("@", "\0"))
        notify("READY=1")
        assert systemd.recv(100) == b"READY=1"
        notify("RELOADING=1")
        first, second = systemd.recv(100).decode().split("\n")
        assert first == "RELOADING=1"
        assert int(second.removeprefix("MONOTONIC_USEC=")) > 0


def test_missing_notify_socket_does_not_hinder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """Without systemd there is no notification; a socket that is gone is logged, and no more."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    assert not log
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")
    assert [event["event"] for event in log] == ["notify_failed"]
