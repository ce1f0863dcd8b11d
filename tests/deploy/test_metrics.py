"""Metrics, as promtool and a real Prometheus take them."""

from __future__ import annotations

import json
import os
import re
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.conftest import PoemFile
from tests.deploy.tools import DEPLOY, answer, fetch, samples, tool
from tests.faults.readers import PAUSES, Crowd, poem, read_all
from tests.processes import PATIENCE, POETRY, eventually, listening_port, need, run, running

pytest.importorskip("prometheus_client", reason="needs twisted-poetry[metrics]")

LONG = 10_000_000
SHORT = 3_000
QUERIES = {
    'poetry_poems_total{outcome="sent",poem="3000.txt"}': 5.0,
    'poetry_poems_total{outcome="timed_out"}': 0.0,
    'sum(increase(poetry_poems_total{outcome!="sent"}[1m]))': 0.0,
    'poetry_bytes_total{poem="3000.txt"}': 5.0 * SHORT,
    "count(poetry_build_info)": 1.0,
    "process_start_time_seconds > bool 0": 1.0,
    "poetry_open_connections": 0.0,
    "poetry_waiting_connections": 0.0,
    'poetry_poem_size_bytes{poem="3000.txt"}': float(SHORT),
    "poetry_transfer_seconds_count": 5.0,
    "poetry_last_reload_success": 1.0,
    'up{job="poetry"}': 1.0,
}


def test_promtool_accepts_the_metrics(poem_file: PoemFile) -> None:
    """promtool has no complaint about the metrics, with transfers of two outcomes."""
    command = (*POETRY, "serve", "--metrics", "0", "--idle-timeout", "0.2", poem_file(LONG))
    with running(command, listeners=2) as server:
        assert read_all(server.addresses[0], poem(LONG)) == {"whole": 1}
        with Crowd(server.addresses[0], poem(LONG), PAUSES) as crowd:
            crowd.run(until=crowd.begun)
            failed = 'poetry_poems_total{outcome="timed_out",poem="10000000.txt"}'
            assert eventually(lambda: samples(server.addresses[1])[failed] == 1)
        text = fetch(f"http://{server.addresses[1]}/metrics")
    done = run([need("promtool"), "check", "metrics"], stdin=text.encode())
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_poem_name_that_is_not_utf_8_is_a_label(tmp_path: Path) -> None:
    """A poem whose name is no text has a label of text, and the page is there."""
    path = tmp_path / os.fsdecode(b"po\xe8me.txt")
    path.write_bytes(poem(SHORT))
    with running([*POETRY, "serve", "--metrics", "0", path], listeners=2) as server:
        assert read_all(server.addresses[0], poem(SHORT)) == {"whole": 1}
        sent = r'poetry_poems_total{outcome="sent",poem="po\\xe8me.txt"}'
        assert eventually(lambda: samples(server.addresses[1])[sent] == 1)


def test_alerts_use_known_metrics(poem_file: PoemFile) -> None:
    """promtool takes the alerts, and they use only metrics that the server has."""
    rules = DEPLOY / "alerts.yml"
    done = run([need("promtool"), "check", "rules", rules])
    assert done.returncode == 0, done.stdout + done.stderr
    with running([*POETRY, "serve", "--metrics", "0", poem_file(SHORT)], listeners=2) as server:
        text = fetch(f"http://{server.addresses[1]}/metrics")
    asked = set(re.findall(r"poetry_\w+", rules.read_text(encoding="utf-8")))
    assert asked
    assert all(f"# TYPE {name} " in text for name in asked)


def test_alerts_fire_where_they_should() -> None:
    """Each alert fires at its threshold, and not below: tests/deploy/alerts_test.yml."""
    rules, tests = DEPLOY / "alerts.yml", Path(__file__).with_name("alerts_test.yml")
    done = run([need("promtool"), "test", "rules", tests])
    assert done.returncode == 0, done.stdout + done.stderr
    alerts = set(re.findall(r"alert: (\w+)", rules.read_text(encoding="utf-8")))
    assert alerts == set(re.findall(r"alertname: (\w+)", tests.read_text(encoding="utf-8")))


def dashboard() -> list[str]:
    """The queries of the dashboard, with Grafana's variables replaced."""
    board = json.loads((DEPLOY / "dashboard.json").read_text(encoding="utf-8"))
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return [expr.replace("$__rate_interval", "1m").replace("$instance", ".*") for expr in found]


def test_prometheus_scrapes(poem_file: PoemFile, tmp_path: Path) -> None:
    """A Prometheus scrapes the server, and answers with the numbers of its readers."""
    with running([*POETRY, "serve", "--metrics", "0", poem_file(SHORT)], listeners=2) as server:
        assert read_all(server.addresses[0], poem(SHORT), count=5) == {"whole": 5}
        scrape = {
            "job_name": "poetry",
            "scrape_interval": "250ms",
            "scrape_timeout": "250ms",
            "static_configs": [{"targets": [server.addresses[1]]}],
        }
        config = tmp_path / "prometheus.yml"
        config.write_text(json.dumps({"scrape_configs": [scrape]}))  # JSON is YAML
        command = [
            need("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            "--web.listen-address=127.0.0.1:0",
        ]

        def asked(query: str) -> float | None:
            port = listening_port(prometheus.pid)
            found: Any = answer(f"http://127.0.0.1:{port}/api/v1/query?query={quote(query)}")
            if not found or not found["data"]["result"]:
                return None
            return float(found["data"]["result"][0]["value"][1])

        log = tmp_path / "log"
        with tool(command, log) as prometheus:
            assert eventually(lambda: listening_port(prometheus.pid) is not None), log.read_text()
            assert eventually(lambda: asked(next(iter(QUERIES))) == 5.0), log.read_text()
            # A scrape that comes too late on a busy machine takes them back until the next one.
            assert eventually(lambda: {query: asked(query) for query in QUERIES} == QUERIES)
            # Each query of the dashboard has an answer, which may be "not a number".
            for query in dashboard():
                assert eventually(lambda: asked(query) is not None), query  # noqa: B023


def test_metrics_are_served_at_the_limit(poem_file: PoemFile) -> None:
    """At the limit the metrics are still served, and say how many readers wait."""
    limit = ["--max-connections", "2", "--metrics", "0"]
    with (
        running([*POETRY, "serve", *limit, poem_file(LONG)], listeners=2) as server,
        Crowd(server.addresses[0], poem(LONG), PAUSES, count=5) as crowd,
    ):
        crowd.run(until=lambda: sum(map(bool, crowd.received)) == 2)
        expected = {
            "poetry_open_connections": 2.0,
            "poetry_max_connections": 2.0,
            "poetry_waiting_connections": 3.0,
        }
        assert eventually(lambda: expected.items() <= samples(server.addresses[1]).items())
        crowd.resume()
        assert crowd.run() == {"whole": 5}


def test_scrapers_cannot_take_the_readers_descriptors(poem_file: PoemFile) -> None:
    """Idle connections to the metrics, more than there are descriptors, leave readers theirs."""
    command = [*POETRY, "serve", "--metrics", "0", str(poem_file(SHORT))]
    with running(command, listeners=2, descriptors=100) as server, ExitStack() as stack:
        host, port = server.addresses[1].rsplit(":", 1)
        for _ in range(120):
            stack.enter_context(socket.create_connection((host, int(port)), PATIENCE))
        assert read_all(server.addresses[0], poem(SHORT), count=200, at_once=50) == {"whole": 200}
