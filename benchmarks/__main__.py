"""python -m benchmarks: measure everything and write benchmarks/results/DATE.json and .md."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from benchmarks import client, cost, delivery, rows
from benchmarks.measure import CORES, DESCRIPTORS, Json
from benchmarks.peers import PEERS, Peer
from benchmarks.report import RESULTS, render_all

PARTS = {"delivery": delivery.run, "cost": cost.run, "rows": rows.run, "client": client.run}
TOOLS = {
    "socat": ("socat", "-V"),
    "ncat": ("ncat", "--version"),
    "nginx": ("nginx", "-v"),
    "curl": ("curl", "--version"),
}
MODULES = ("twisted", "uvloop")


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def versions() -> dict[str, str]:
    """What was measured with what: the interpreter, modules and tools."""
    found = {"python": platform.python_version()}
    for module in MODULES:
        try:
            found[module] = metadata.version(module)
        except metadata.PackageNotFoundError:
            continue
    for name, command in TOOLS.items():
        try:
            said = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            continue
        version = re.search(r"\d+\.\d[\w.+]*", said.stdout + said.stderr)
        found[name] = version[0] if version else "unknown"
    return found


def kernel(setting: str) -> str:
    return Path("/proc/sys/net", setting).read_text(encoding="ascii").strip()


def machine() -> Json:
    return {
        "processor": processor(),
        "cores": len(CORES),
        "kernel": platform.release(),
        "descriptors": DESCRIPTORS,
        "somaxconn": int(kernel("core/somaxconn")),
        "congestion_control": kernel("ipv4/tcp_congestion_control"),
    }


def missing(wanted: Sequence[Peer]) -> dict[str, str]:
    """Peers and clients that are not measured, and why."""
    servers = {peer.name: reason for peer in wanted if (reason := peer.missing())}
    clients = {one.name: reason for one in client.CLIENTS if (reason := client.missing(one))}
    return {**clients, **servers}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it works")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part; repeatable")
    parser.add_argument("--peers", help="names, separated by commas; default: all")
    parser.add_argument("--results", type=Path, help="directory for the results")
    options = parser.parse_args()
    names = options.peers.split(",") if options.peers else [peer.name for peer in PEERS]
    wanted = [peer for peer in PEERS if peer.name in names]
    if len(wanted) != len(names):
        parser.error(f"the peers are {', '.join(peer.name for peer in PEERS)}")
    able = [peer for peer in wanted if not peer.missing()]
    # the children import this very checkout, wherever they are started from
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    result: Json = {
        "taken": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "quick": options.quick,
        "machine": machine(),
        "versions": versions(),
        "missing": missing(wanted),
    }
    with tempfile.TemporaryDirectory() as directory:
        for name in options.only or PARTS:
            before = time.monotonic()
            result[name] = PARTS[name](able, Path(directory), options.quick)
            print(f"{name}: {time.monotonic() - before:.0f} s", file=sys.stderr, flush=True)
    # a quick run is no result: it goes to standard output, and nowhere else unless told to
    if options.quick and options.results is None:
        json.dump(result, sys.stdout)
        return
    results: Path = options.results or RESULTS
    path = results / f"{result['taken']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if not options.quick and not options.only:
        path.with_suffix(".md").write_text(render_all(result), encoding="utf-8")
    print(path.name)


if __name__ == "__main__":
    main()
