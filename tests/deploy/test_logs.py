"""Log lines: what a shipper gets, an event for each trouble, and no flood."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
from pathlib import Path

import pytest

from tests.certificates import Certificates
from tests.conftest import PoemFile
from tests.faults.readers import PAUSES, Crowd, poem, read_all
from tests.processes import PATIENCE, POETRY, eventually, need, run, running

LONG = 10_000_000
SHORT = 3_000
JSON = ("--log-format", "json")

FIELDS = {
    "time": "string",
    "level": "string",
    "event": "string",
    "message": "string",
    "listener": "string",
    "poem": "string",
    "peer": "string",
    "bytes": "number",
    "seconds": "number",
    "outcome": "string",
}

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def test_json_lines_are_flat_objects(poem_file: PoemFile) -> None:
    """jq takes each line as a flat object, a transfer with its fields and their types."""
    jq = need("jq")
    with running([*POETRY, "serve", *JSON, poem_file(SHORT)]) as server:
        assert read_all(server.addresses[0], poem(SHORT), count=3) == {"whole": 3}
        assert eventually(lambda: len(server.logged("transfer")) == 3)
        types = 'select(.event=="transfer") | map_values(type)'
        done = run([jq, "--compact-output", types], stdin=server.stderr.encode())
        assert [json.loads(line) for line in done.stdout.splitlines()] == [FIELDS] * 3
        for event in server.logged("transfer"):
            assert re.fullmatch(TIME, event["time"])
            expected = {"event": "transfer", "level": "info", "outcome": "sent", "bytes": SHORT}
            expected |= {"listener": server.addresses[0], "poem": "3000.txt"}
            assert expected.items() <= event.items()


def test_text(poem_file: PoemFile) -> None:
    """A line for a person: time, level, and the transfer in words."""
    with running([*POETRY, "serve", poem_file(SHORT)]) as server:
        assert read_all(server.addresses[0], poem(SHORT)) == {"whole": 1}
        assert eventually(lambda: server.stderr.endswith("\n"))
        line = rf"{TIME} info  sent 3000\.txt 127\.0\.0\.1:\d+ 3000 bytes in [\d.e-]+ s\n"
        assert re.fullmatch(line, server.stderr)


def test_log_goes_on_after_its_rotation(poem_file: PoemFile, tmp_path: Path) -> None:
    """A log file that is copied and emptied while the server writes goes on from its beginning."""
    log = tmp_path / "poems.log"
    command = f"exec {shlex.join(map(str, POETRY))} serve {poem_file(SHORT)} 2>> {log}"
    with running(["sh", "-c", command]) as server:
        for _ in range(2):
            assert read_all(server.addresses[0], poem(SHORT), count=3) == {"whole": 3}
            assert eventually(lambda: log.read_text().count(" sent ") == 3)
            with log.open("w"):
                assert log.stat().st_size == 0


def test_failed_reload_is_an_event(tmp_path: Path) -> None:
    """A poem that cannot be read again is an error which names it; a later one is read."""
    path = tmp_path / "poem.txt"
    path.write_bytes(b"old\n")
    with running([*POETRY, "serve", *JSON, path]) as server:
        path.unlink()
        server.signal(signal.SIGHUP)
        assert eventually(lambda: bool(server.logged("reload_failed")))
        [event] = server.logged("reload_failed")
        assert event["level"] == "error"
        assert event["poem"] == str(path)
        assert read_all(server.addresses[0], b"old\n") == {"whole": 1}
        path.write_bytes(b"new\n")
        server.signal(signal.SIGHUP)
        assert eventually(lambda: bool(server.logged("reloaded")))
        assert read_all(server.addresses[0], b"new\n") == {"whole": 1}


def test_limit_is_logged_once_for_a_crowd(poem_file: PoemFile) -> None:
    """The limit is logged as reached and as left, once each for one crowd."""
    with running([*POETRY, "serve", *JSON, "--max-connections", "2", poem_file(LONG)]) as server:
        with Crowd(server.addresses[0], poem(LONG), PAUSES, count=6) as crowd:
            crowd.run(until=lambda: sum(map(bool, crowd.received)) == 2)
            assert eventually(lambda: bool(server.logged("limit_reached")))
            crowd.resume()
            assert crowd.run() == {"whole": 6}
        assert eventually(lambda: bool(server.logged("limit_left")))
        limits = server.logged("limit_reached", "limit_left")
        assert [event["event"] for event in limits] == ["limit_reached", "limit_left"]
        assert all(event["limit"] == 2 and event["level"] == "warn" for event in limits)


def test_stop_logs_its_readers(poem_file: PoemFile) -> None:
    """A stop logs how many readers are in flight, and how many it reset after the grace."""
    with (
        running([*POETRY, "serve", *JSON, "--grace", "0.2", poem_file(LONG)]) as server,
        Crowd(server.addresses[0], poem(LONG), PAUSES, count=3) as crowd,
    ):
        crowd.run(until=crowd.begun)
        assert server.stop() == 0
        crowd.resume()
        assert crowd.run() == {"reset": 3}
        [draining], [over] = server.logged("draining"), server.logged("grace_over")
        assert (draining["level"], draining["count"]) == ("info", 3)
        assert (over["level"], over["count"]) == ("warn", 3)
        stopped = server.logged("transfer")
        assert [event["outcome"] for event in stopped] == ["stopped"] * 3


def test_flood_of_handshakes_is_summarized(poem_file: PoemFile, certificates: Certificates) -> None:
    """500 failed handshakes have an event of their own, and few lines."""
    listen = certificates.listen("good")
    with running([*POETRY, "serve", *JSON, "--listen", listen, poem_file(SHORT)]) as server:
        for _ in range(500):
            with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock:
                sock.sendall(b"this is no handshake\r\n")
                while sock.recv(4096):
                    pass
        context = certificates.context()
        assert read_all(server.addresses[0].removeprefix("tls:"), poem(SHORT), context=context) == {
            "whole": 1
        }
        assert server.stop() == 0
        failed = server.logged("handshake_failed")
        assert 0 < len(failed) < 50
        assert all(event["outcome"] == "handshake" for event in failed)
        assert all(event["level"] == "warn" and event["peer"] for event in failed)
        assert len(server.logged()) < 60


@pytest.mark.parametrize(
    ("level", "logged"),
    [("debug", ["sent", "timed_out"]), ("warn", ["timed_out"]), ("error", [])],
)
def test_levels(poem_file: PoemFile, level: str, logged: list[str]) -> None:
    """A level keeps the lines below it out of the log."""
    command = [*POETRY, "serve", *JSON, "--log-level", level, "--idle-timeout", "0.2"]
    with running([*command, poem_file(LONG)]) as server:
        assert read_all(server.addresses[0], poem(LONG)) == {"whole": 1}
        with Crowd(server.addresses[0], poem(LONG), PAUSES) as crowd:
            crowd.run(until=crowd.begun)
            assert server.stop() == 0
        assert [event["outcome"] for event in server.logged("transfer")] == logged
