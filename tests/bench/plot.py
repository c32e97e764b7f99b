#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Pictures of a benchmark's results, as SVG: the same results give the same bytes.

    plot.py RESULTS.json DIRECTORY

bench-cpu.svg (the CPU an operation against the best hand-written program's, by workload), bench-latency.svg
(percentiles of some workloads) and bench-memory.svg (by connections), each where there is something to show.
"""

import json
import pathlib
import sys

import matplotlib

sys.dont_write_bytecode = True
sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent)]
matplotlib.use("svg")
matplotlib.rcParams.update(
    {
        "svg.hashsalt": "weir",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
    }
)
from matplotlib import pyplot  # noqa: E402
import stats  # noqa: E402

COLOURS = {"weir": "#c1121f", "hand": "#1d3557", "tuned": "#2a9d8f", "plain": "#b08900"}
MARKERS = "osD^v<>Pph"
PERCENTILES = [("p50_us", "50"), ("p90_us", "90"), ("p99_us", "99"), ("p999_us", "99.9")]
LATENCY = [("echo", 1, 64, 1), ("echo", 50, 64, 1), ("echo", 50, 16384, 16), ("echo", 500, 16384, 16)]
SLOWEST = 4  # more than that many times the reference is at the edge


def looks(results):
    """{server: (colour, marker)}: a group has a colour."""
    seen, found = {}, {}
    for name, group in results.groups.items():
        found[name] = (COLOURS[group], MARKERS[seen.get(group, 0) % len(MARKERS)])
        seen[group] = seen.get(group, 0) + 1
    return found


def write(figure, path):
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    pyplot.close(figure)


def legend_beside(axes):
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def cpu(results, path):
    wanted = [one for one in results.workloads if results.reference(one)]
    if not wanted:
        return
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.28 * len(wanted)))
    for name, (colour, marker) in looks(results).items():
        points = []
        for y, workload in enumerate(wanted):
            ratios = stats.against(workload, name, results.reference(workload), stats.cpu)
            if ratios:
                points.append((y, *ratios))
        if not points:
            continue
        is_weir = name == "weir"
        axes.scatter(
            [min(point[2], SLOWEST) for point in points],
            [point[0] for point in points],
            color=colour,
            marker=marker,
            s=46 if is_weir else 20,
            label=name,
            zorder=3 if is_weir else 2,
            alpha=1 if is_weir else 0.75,
        )
        if is_weir:
            axes.hlines(
                [point[0] for point in points],
                [point[1] for point in points],
                [point[3] for point in points],
                color=colour,
                zorder=2,
            )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(wanted)), [one["name"] for one in wanted])
    axes.invert_yaxis()
    axes.set_xlabel(
        f"the server's CPU an operation / the best hand-written program's (less is better; at {SLOWEST}: that or more)"
    )
    legend_beside(axes)
    write(figure, path)


def latency(results, path):
    wanted = [
        one for one in results.workloads if (one["kind"], one["connections"], one["size"], one["depth"]) in LATENCY
    ]
    if not wanted:
        return
    figure, rows = pyplot.subplots(len(wanted), 1, figsize=(8, 2.8 * len(wanted)), squeeze=False)
    for axes, workload in zip(rows[:, 0], wanted):
        for name, (colour, marker) in looks(results).items():
            values = [
                stats.median([one[key] for one in workload["slices"] if one["server"] == name and one.get(key)])
                for key, _ in PERCENTILES
            ]
            if None not in values:
                axes.plot(
                    range(len(values)),
                    values,
                    color=colour,
                    marker=marker,
                    markersize=4,
                    label=name,
                    linewidth=2 if name == "weir" else 0.8,
                )
        axes.set_yscale("log")
        axes.set_xticks(range(len(PERCENTILES)), [label for _, label in PERCENTILES])
        axes.set_ylabel("microseconds")
        axes.set_title(workload["name"], loc="left")
    rows[-1, 0].set_xlabel("percentile of a slice's messages, median of the slices")
    legend_beside(rows[0, 0])
    figure.tight_layout()
    write(figure, path)


def memory(results, path):
    idle = {name: entry for name, entry in results.memory.get("idle", {}).items() if entry.get("series")}
    if not idle:
        return
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name, (colour, marker) in looks(results).items():
        points = [point for point in idle.get(name, {}).get("series", []) if point[1] > 0]
        if points:
            axes.plot(
                [point[0] for point in points],
                [point[1] / 1024 for point in points],
                color=colour,
                marker=marker,
                markersize=4,
                label=name,
                linewidth=2 if name == "weir" else 0.8,
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("idle connections")
    axes.set_ylabel("KiB of the process beyond what it had when warm")
    legend_beside(axes)
    write(figure, path)


def main(source, directory):
    results = stats.Results(json.loads(pathlib.Path(source).read_text()))
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for draw in cpu, latency, memory:
        draw(results, directory / f"bench-{draw.__name__}.svg")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
