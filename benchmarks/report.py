"""Tables from a result, and nothing but a result: for its Markdown, the README and docs.

    python -m benchmarks.report            print the newest committed result as Markdown
    python -m benchmarks.report --write    and put its blocks into README.md and docs/*.md

A block stands between <!-- figures: NAME --> and <!-- /figures -->, with line ends or without.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.client import TOO_LONG
from benchmarks.cost import LONG
from benchmarks.delivery import PATIENCE, SCENARIOS, Scenario
from benchmarks.measure import Json
from benchmarks.peers import PEERS, THIS, TUTORIAL
from benchmarks.rows import TABLES, Work
from tests.faults.readers import ENDS

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")
BLOCK = re.compile(r"(<!-- figures: ([\w-]+) -->)(.*?)(<!-- /figures -->)", re.DOTALL)
NOTHING = "n/a"
LIMIT = "†"


def newest() -> Json:
    """The result with the latest date."""
    path = max(RESULTS.glob("*.json"))
    result: Json = json.loads(path.read_text(encoding="utf-8"))
    return result


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ranged(values: Sequence[float]) -> str:
    """The median, and the least and greatest in brackets."""
    middle = number(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({number(min(values))} to {number(max(values))})"


def size_name(size: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def scaled(value: float) -> str:
    """Bytes as a text that people read."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit:
            return f"{number(value / unit)} {name}"
    return f"{max(value, 0):.0f} B"


def a_poem(run: Json, field: str) -> list[float]:
    """`field` divided by the poems of its round, round by round."""
    return [value / readers for value, readers in zip(run[field], run["readers"], strict=True)]


def a_gigabyte(run: Json) -> list[float]:
    return [cpu / sent * 1e9 for cpu, sent in zip(run["server_cpu"], run["bytes"], strict=True)]


def ratios(values: Sequence[float], of: Sequence[float]) -> list[float]:
    return [value / other for value, other in zip(values, of, strict=True)]


def load_was_the_limit(run: Json) -> bool:
    """Whether the load was busy while the server was not: then its rate says nothing."""
    busy = statistics.median(ratios(run["load_cpu"], run["seconds"]))
    server = statistics.median(ratios(run["server_cpu"], run["seconds"]))
    return busy > 0.8 and busy > server


def unserved(run: Json) -> bool:
    return sum(run["whole"]) < sum(run["readers"])


def measured_peers(part: Json) -> list[str]:
    return [peer.name for peer in PEERS if peer.name in part]


def kept(scenario: Scenario, cell: Json) -> float:
    """The share of readers for whom the promise was kept: whole, or knows that it is not."""
    count = cell["whole"] + (cell["reset"] if scenario.knowing else 0)
    return float(count / cell["readers"])


def percent(share: float) -> str:
    """Whole percents; never 100 where one is missing, never 0 where one got through."""
    if 0 < share < 0.01:
        return "<1%"
    return ">99%" if 0.99 < share < 1 else f"{share:.0%}"


def delivery_cell(scenario: Scenario, cell: Json | None) -> str:
    if cell is None:
        return NOTHING
    share = kept(scenario, cell)
    text = percent(share)
    if share == 1:
        return f"**{text}**"
    words = [f"{cell[end]:,} {end}" for end in ENDS[1:] if cell.get(end)]
    return f"{text}: {', '.join(words)}"


def delivery(result: Json) -> str:
    part = result["delivery"]
    head = ["", *(f"{scenario.title}" for scenario in SCENARIOS)]
    names = measured_peers(part[SCENARIOS[0].name])
    asked = ["readers"] + [f"{part[one.name][names[0]]['readers']:,}" for one in SCENARIOS]
    sizes = ["poem"] + [size_name(one.size) for one in SCENARIOS]
    rows = [
        [name, *(delivery_cell(one, part[one.name].get(name)) for one in SCENARIOS)]
        for name in names
    ]
    return table(head, [asked, sizes, *rows]) + (
        "\n\nPercent of the readers that got the whole poem with a clean end (where the server is "
        "killed: that were told that it is not whole). *Reset*: an error instead of the end, so "
        "the reader knows. *Truncated*: a clean end before the last byte, so it cannot know. "
        "*Empty*: a clean end before the first. "
        f"*Waiting*: nothing came for {PATIENCE:.0f} s. nginx has the poem in its configuration, "
        f"at most {size_name(3000)} of it: what needs a long poem is not asked of it ({NOTHING}), "
        "the rest is asked with a short one. Every server with its own queue, as it comes. "
        "Signals go to every process of a server."
    )


def lossless(result: Json, name: str) -> str:
    """The number of scenarios in which every reader was whole, or knew that it was not."""
    cells = [
        (one, result["delivery"][one.name][name])
        for one in SCENARIOS
        if name in result["delivery"][one.name]
    ]
    return f"{sum(kept(one, cell) == 1 for one, cell in cells)} of {len(cells)}"


def memory(result: Json) -> str:
    part = result["delivery"]
    rows = []
    for name in measured_peers(part["stalled"]):
        cells = [
            part[kind][name][field] if name in part[kind] else None
            for kind in ("stalled", "stalled-tls")
            for field in ("bytes_a_reader", "of_machine")
        ]
        rows.append([name, *(NOTHING if cell is None else scaled(cell) for cell in cells)])
    with_kernel = "with the kernel's"
    head = ["memory of a stalled reader of 10 MB", "plain", with_kernel, "TLS", with_kernel]
    return table(head, rows) + (
        "\n\nOf the server's processes, and of the whole machine: both ends of the connection, and "
        "what else changed meanwhile."
    )


def rate(run: Json, values: Sequence[float]) -> str:
    return ranged(values) + (f" {LIMIT}" if load_was_the_limit(run) else "")


def cost(result: Json) -> str:
    short, long = result["cost"]["short"], result["cost"]["long"]
    names = measured_peers(short)
    rows = []
    for name in names:
        run = short[name]
        cpu = a_poem(run, "server_cpu")
        row = [name, ranged([value * 1e6 for value in cpu])]
        row.append(ranged(ratios(cpu, a_poem(short[TUTORIAL], "server_cpu"))))
        row.append(rate(run, ratios(run["whole"], run["seconds"])))
        if name in long:
            run = long[name]
            row.append(ranged(a_gigabyte(run)))
            row.append(ranged(ratios(a_gigabyte(run), a_gigabyte(long[TUTORIAL]))))
            row.append(rate(run, [value / 1e6 for value in ratios(run["bytes"], run["seconds"])]))
        else:
            row += [NOTHING] * 3
        rows.append([*row, lossless(result, name)])
    head = ["", "CPU µs a 3 kB poem", "to the tutorial's", "poems/s"]
    head += ["CPU s a GB (10 MB poems)", "to the tutorial's", "MB/s", "scenarios without loss"]
    return table(head, rows) + (
        f"\n\nMedian (least to greatest) of {len(short[names[0]]['readers'])} interleaved rounds; "
        f"ratios are taken round by round. {LIMIT}: the load was the limit, not the server."
        f"\n\n{behind(result)}"
    )


def ratio(result: Json, part: str, name: str) -> float:
    """The median of the ratios of its CPU to the tutorial's."""
    runs = result["cost"][part]
    if part == "short":
        values = ratios(a_poem(runs[name], "server_cpu"), a_poem(runs[TUTORIAL], "server_cpu"))
    else:
        values = ratios(a_gigabyte(runs[name]), a_gigabyte(runs[TUTORIAL]))
    return statistics.median(values)


def behind(result: Json) -> str:
    """The peers that are cheaper than this server, and how far they keep the promise."""
    sentences = []
    for part, what in (("short", "a short poem"), ("long", "a long one")):
        runs = result["cost"][part]
        ours = ratio(result, part, THIS)
        for name in measured_peers(runs):
            theirs = ratio(result, part, name)
            if theirs < ours:
                sentences.append(
                    f"{what[0].upper()}{what[1:]} costs {name} {number(theirs / ours)} times what "
                    f"it costs this server ({lossless(result, name)} scenarios without loss)."
                )
    return " ".join(sentences) or "No peer is cheaper, for a short poem or a long one."


def by_readers(result: Json) -> str:
    part = result["cost"]["by_readers"]
    counts = list(part)
    rows = []
    for name in measured_peers(part[counts[0]]):
        cpu, used = [], []
        for count in counts:
            run = part[count].get(name)
            if run is None:
                cpu.append(NOTHING)
                used.append(NOTHING)
                continue
            lost = "" if not unserved(run) else f" ({sum(run['whole'])} of {sum(run['readers'])})"
            cpu.append(number(statistics.median(a_poem(run, "server_cpu")) * 1e6) + lost)
            used.append(scaled(statistics.median(a_poem(run, "memory"))))
        rows.append([name, *cpu, *used])
    head = ["", *(f"CPU µs, {int(count):,}" for count in counts)]
    head += [f"memory, {int(count):,}" for count in counts]
    return table(head, rows) + (
        "\n\nCPU and memory a reader, by how many are connected at once (30 kB poem; memory while "
        "all rest after the first byte: what is not in the kernel). "
        "A server that forks is not asked for thousands."
    )


def by_size(result: Json) -> str:
    part = result["cost"]["by_size"]
    rows = []
    for name in measured_peers(part["1000"]):
        row = [name]
        for runs in part.values():
            if name not in runs:
                row.append(NOTHING)
                continue
            largest = runs[name]
            row.append(ranged(ratios(a_gigabyte(largest), a_gigabyte(runs[TUTORIAL]))))
        rows.append([*row, scaled(max(largest["memory"]))])
    head = ["CPU to the tutorial's", *(size_name(int(size)) for size in part), "peak memory"]
    return table(head, rows) + (
        "\n\nBy the size of the poem, four readers at once. Peak memory: of the (first) process, "
        "its files in memory included, after the longest poem that it was asked for."
    )


def client(result: Json) -> str:
    part = result["client"]["by_size"]
    names = list(next(iter(part.values())))
    rows = []
    for name in names:
        row = [name]
        for runs in part.values():
            done = runs.get(name)
            if not done:
                row.append(NOTHING)
                continue
            seconds = statistics.median(run["seconds"] for run in done)
            most = max(run["memory"] for run in done)
            whole = "" if all(run["whole"] for run in done) else ", not whole"
            row.append(f"{number(seconds)} s, {scaled(most)}{whole}")
        rows.append(row)
    return table(["", *(size_name(int(size)) for size in part)], rows) + (
        "\n\nSeconds and peak memory to fetch one poem to a file, its contents compared. "
        f"{NOTHING}: not asked, the size before took more than {TOO_LONG:g} s."
    )


def hundred(result: Json) -> str:
    part = result["client"]["hundred"]
    rows = []
    for name, runs in part["clients"].items():
        seconds = statistics.median(run["seconds"] for run in runs)
        whole = "" if all(run["whole"] for run in runs) else ", not whole"
        rows.append([name, f"{number(seconds)} s{whole}"])
    asked = f"{part['servers']} servers of {number(part['seconds_each'])} s each"
    return table([asked, "all of them"], rows)


def cold(result: Json) -> str:
    part = result["client"]["cold"]
    names = list(dict.fromkeys([*part["get"], *part["serve"]]))
    rows = [
        [name, *(ranged([v * 1000 for v in part[kind][name]]) if name in part[kind] else NOTHING
                 for kind in ("get", "serve"))]
        for name in names
    ]  # fmt: skip
    return table(["cold start, ms", "a short poem fetched", "a server listens"], rows)


def value_of(work: Work, run: Json) -> list[float]:
    """CPU µs a poem, or poems or MB a second, round by round."""
    if not work.rate:
        return [cpu * 1e6 for cpu in a_poem(run, "server_cpu")]
    if work.size < LONG:
        return ratios(run["whole"], run["seconds"])
    return [sent / 1e6 for sent in ratios(run["bytes"], run["seconds"])]


def row(name: str, result: Json) -> str:
    """One of `rows.TABLES`: medians, and in brackets their ratios to the base's, round by round."""
    part, kind = result["rows"][name], TABLES[name]
    works = [work for work in kind.works if work.title in part]
    lines = []
    for peer in kind.peers:
        line = [peer.name]
        for work in works:
            runs = part[work.title]
            if peer.name not in runs:
                line.append(NOTHING)
                continue
            values, of = value_of(work, runs[peer.name]), value_of(work, runs[kind.base])
            lost = f", {sum(runs[peer.name]['whole'])} whole" if unserved(runs[peer.name]) else ""
            limit = f" {LIMIT}" if work.rate and load_was_the_limit(runs[peer.name]) else ""
            middle = number(statistics.median(values))
            line.append(f"{middle} ({ranged(ratios(values, of))}){limit}{lost}")
        lines.append(line)
    marked = f" {LIMIT}: the load was the limit, not the server." if works[-1].rate else ""
    return table([kind.title, *(work.title for work in works)], lines) + (
        f"\n\nMedian, and in brackets to that of {kind.base}: median (least to greatest).{marked}"
    )


def better(result: Json) -> dict[str, list[str]]:
    """The rows in which another peer is better than this server, by more than a twentieth.

    They are grouped by the table, by which of our servers it is, and by who is better.
    """
    found: dict[str, list[str]] = {}
    for name in ("library", "tls", "congestion", "rate"):
        for work in TABLES[name].works:
            runs = result["rows"][name].get(work.title, {})
            medians = {peer: statistics.median(value_of(work, run)) for peer, run in runs.items()}
            for ours in medians:
                if not ours.startswith(THIS):
                    continue
                limit = medians[ours] * (1.05 if work.rate else 0.95)
                beyond = [
                    peer
                    for peer, median in medians.items()
                    if not peer.startswith(THIS) and (median > limit) == work.rate
                ]
                if beyond:
                    kind = {"tls": "TLS", "library": "as a library"}.get(name, name)
                    way = ", ".join(filter(None, [kind, ours.partition(", ")[2]]))
                    found.setdefault(f"{way} ({', '.join(beyond)})", []).append(work.title)
    return found


def machine(result: Json) -> str:
    on, versions = result["machine"], result["versions"]
    tools = ", ".join(f"{name} {version}" for name, version in versions.items())
    missing = [f" Missing: {name} ({reason})." for name, reason in result["missing"].items()]
    return (
        f"Measured on {result['taken']}: {on['processor']}, {on['cores']} cores, Linux "
        f"{on['kernel']}, loopback, congestion control {on['congestion_control']}, server and load "
        f"on a core each. {tools}.{''.join(missing)}"
    )


def let_down(result: Json, name: str) -> int:
    """How many readers, over all scenarios, for whom the promise was not kept."""
    cells = [(one, result["delivery"][one.name][name]) for one in SCENARIOS]
    return sum(round((1 - kept(one, cell)) * cell["readers"]) for one, cell in cells)


def headline(result: Json) -> str:
    short, long = ratio(result, "short", THIS), ratio(result, "long", THIS)
    asked = sum(result["delivery"][one.name][THIS]["readers"] for one in SCENARIOS)
    lost, theirs = let_down(result, THIS), let_down(result, TUTORIAL)
    rows = better(result) if "rows" in result else {}
    lines = "\n".join(f"- {group}: {'; '.join(titles)}" for group, titles in rows.items())
    dearer = (
        f"\n\nThe rows of its tables in which a peer is better than this server:\n\n{lines}"
        if rows
        else ""
    )
    return (
        f"Of {asked:,} readers in {len(SCENARIOS)} scenarios this server let {lost:,} down, the "
        f"tutorial's {theirs:,}. A short poem costs {number(short)} times the tutorial's CPU, a "
        f"long one {number(long)} times."
        f"{dearer}"
    )


BLOCKS: dict[str, Callable[[Json], str]] = {
    "headline": headline,
    "delivery": delivery,
    "memory": memory,
    "cost": cost,
    "by-readers": by_readers,
    "by-size": by_size,
    **{name: partial(row, name) for name in TABLES},
    "client": client,
    "hundred": hundred,
    "cold": cold,
    "machine": machine,
}


def render_all(result: Json) -> str:
    """The whole result as one page."""
    parts = [f"# Measured on {result['taken']}"]
    blocks = {
        name: render for name, render in BLOCKS.items() if "rows" in result or name not in TABLES
    }
    parts += [f"## {name}\n\n{render(result)}" for name, render in blocks.items()]
    return "\n\n".join(parts) + "\n"


def render_blocks(text: str, result: Json) -> str:
    """`text` with every block of figures as `result` has it."""

    def fill(match: re.Match[str]) -> str:
        start, name, old, end = match.groups()
        edge = "\n" if old.startswith("\n") or "\n" in BLOCKS[name](result) else ""
        return f"{start}{edge}{BLOCKS[name](result)}{edge}{end}"

    return BLOCK.sub(fill, text)


def documents() -> Iterator[Path]:
    """The pages that may quote figures."""
    yield from (path for path in (ROOT / "README.md",) if path.exists())
    yield from sorted((ROOT / "docs").glob("*.md"))


def main(write: bool) -> None:
    result = newest()
    if not write:
        print(render_all(result), end="")
        return
    (RESULTS / f"{result['taken']}.md").write_text(render_all(result), encoding="utf-8")
    for path in documents():
        text = path.read_text(encoding="utf-8")
        path.write_text(render_blocks(text, result), encoding="utf-8")


if __name__ == "__main__":
    main("--write" in sys.argv[1:])
