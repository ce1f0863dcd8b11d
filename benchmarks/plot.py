"""python -m benchmarks.plot: the newest committed result as one picture, from its JSON only."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from benchmarks.delivery import SCENARIOS
from benchmarks.measure import Json
from benchmarks.peers import PEERS, THIS, TUTORIAL
from benchmarks.report import (
    RESULTS,
    a_gigabyte,
    a_poem,
    kept,
    measured_peers,
    newest,
    number,
    percent,
    ratios,
)

SHADES = ("#e4796c", "#f6d98b", "#dfe8a3", "#7cc79b")
OURS, THEIRS = "#1b7f5c", "#9aa5b1"
LABELS = {
    "speaks": "reader\nspeaks first",
    "half-closes": "reader\nhalf-closes first",
    "stopped": "server told\nto stop",
    "killed": "server killed:\nreader told so",
    "descriptors": "3,000 readers,\n256 descriptors",
    "burst": "4,000 readers\nat once",
}


def draw_delivery(axes: Axes, result: Json) -> None:
    """A row a server, a column a scenario: green where the promise was kept for all readers."""
    part = result["delivery"]
    names = measured_peers(part[SCENARIOS[0].name])
    shares = [
        [
            kept(scenario, part[scenario.name][name]) if name in part[scenario.name] else None
            for scenario in SCENARIOS
        ]
        for name in names
    ]
    filled = [[float("nan") if share is None else share for share in row] for row in shares]
    colours = LinearSegmentedColormap.from_list("kept", SHADES).with_extremes(bad="#eceff1")
    axes.imshow(filled, cmap=colours, vmin=0, vmax=1, aspect="auto")
    for row, line in enumerate(shares):
        for column, share in enumerate(line):
            text = "not asked" if share is None else percent(share)
            weight = "bold" if share == 1 else "normal"
            axes.text(column, row, text, ha="center", va="center", weight=weight, fontsize=9)
    axes.set_xticks(range(len(SCENARIOS)), [LABELS[one.name] for one in SCENARIOS], fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.get_yticklabels()[names.index(THIS)].set_fontweight("bold")
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_title("Readers that got the whole poem", weight="bold", pad=12)
    for side in axes.spines.values():
        side.set_visible(False)


def draw_bars(axes: Axes, title: str, values: dict[str, list[float]]) -> None:
    """A bar a server, the tutorial at 1; what is far longer than the rest is cut and labelled."""
    names = [peer.name for peer in PEERS if peer.name in values][::-1]
    medians = [statistics.median(values[name]) for name in names]
    end = 4.0
    colours = [OURS if name == THIS else THEIRS for name in names]
    axes.barh(names, [min(median, end) for median in medians], color=colours)
    for row, (name, median) in enumerate(zip(names, medians, strict=True)):
        low, high = min(values[name]), max(values[name])
        if high < end:
            axes.plot([low, high], [row, row], color="#37474f", linewidth=1)
        where = max(high, median) if high < end else min(median, end)
        inside = where > end * 0.85
        axes.text(
            where - 0.08 if inside else where + 0.08, row, number(median),
            va="center", ha="right" if inside else "left", fontsize=9,
        )  # fmt: skip
    axes.axvline(1, color="#37474f", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, end)
    axes.set_xlabel("server CPU, times the tutorial's (less is better)", fontsize=9)
    axes.set_title(title, weight="bold")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw(result: Json, path: Path) -> None:
    short, long = result["cost"]["short"], result["cost"]["long"]
    figure = plt.figure(figsize=(10, 7.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.25, 1], squeeze=False)[:, 0]
    draw_delivery(top.subplots(), result)
    left, right = bottom.subplots(1, 2)
    tutorials = a_poem(short[TUTORIAL], "server_cpu")
    draw_bars(
        left,
        "A 3 kB poem",
        {name: ratios(a_poem(run, "server_cpu"), tutorials) for name, run in short.items()},
    )
    draw_bars(
        right,
        "A 10 MB poem",
        {name: ratios(a_gigabyte(run), a_gigabyte(long[TUTORIAL])) for name, run in long.items()},
    )
    # no date and fixed ids: the same JSON gives the same bytes
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    result = newest()
    path = RESULTS / f"{result['taken']}.svg"
    mpl.rcParams["svg.hashsalt"] = "poem"
    draw(result, path)
    print(path.name)


if __name__ == "__main__":
    main()
