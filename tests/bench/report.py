# SPDX-License-Identifier: MIT
"""The table a person reads, from the raw results."""

import goals
import stats

DISTURBED = 0.05  # of a processor


def number(value, digits=2):
    if value is None:
        return "-"
    if abs(value) >= 10000:
        return f"{value:,.0f}"
    return f"{value:.{digits}f}"


def spread(values):
    found = stats.quartiles(values)
    return f"{found[1]:.2f} ({found[0]:.2f}-{found[2]:.2f})" if found else "-"


def columns(rows, left, out):
    """Aligned: the first @left columns to the left, the rest to the right."""
    if not rows:
        return
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
        ]
        print(("  " + "  ".join(cells)).rstrip(), file=out)


def heading(text, out):
    print(f"\n{text}", file=out)


# ---- parts ----------------------------------------------------------------------------------------------------


def head(raw, out):
    machine = raw["machine"]
    print(
        f"weir bench: {machine['kernel']}, {machine['processor']}; servers on CPU {machine['cpu']}, "
        f"load on CPU {machine['load_cpu']}",
        file=out,
    )
    if machine["cpu"] == machine["load_cpu"]:
        print("THERE IS ONLY ONE CPU: servers and load take it from each other", file=out)
    settings = raw["settings"]
    print(
        f"congestion control reno, {settings['rounds']} rounds of {settings['slice_ms']} ms slices, seed "
        f"{settings['seed']}; {verified(raw)}",
        file=out,
    )
    disturbed = [one["name"] for one in raw["workloads"] if one.get("disturbed", 0) > DISTURBED]
    if disturbed:
        print(f"THE MACHINE WAS NOT QUIET in {len(disturbed)} of {len(raw['workloads'])} workloads", file=out)
    heading("servers, and the backend that each said it runs", out)
    rows = [[server["name"], server["backend"] or "-", server["reason"]] for server in raw["servers"]]
    columns(rows, 3, out)


def verified(raw):
    if not raw["settings"]["verify"]:
        return "bytes not verified (--verify)"
    return f"{sum(one.get('verified_bytes', 0) for one in raw['workloads']):,} bytes verified"


def block(results, workload, out):
    """One workload, a line a server; ratios are weir / that server."""
    reference, peer = results.reference(workload), results.best_peer(workload)
    chosen = f"   reference {reference or '-'}, best peer {peer or '-'}"
    heading(f"{workload['name']}{chosen}", out)
    rows = [["server", "ops/s", "CPU us/op", "p50 us", "p99 us", "weir/: ops", "CPU", "p99", ""]]
    for name in sorted(stats.present(workload), key=list(results.groups).index):
        ratios = [
            [] if name == "weir" else stats.paired(workload, "weir", name, figure)
            for figure in (stats.rate, stats.cpu, stats.p99)
        ]
        mine = [
            stats.median(stats.own(workload, name, figure))
            for figure in (stats.rate, stats.cpu, lambda one: one.get("p50_us") or None, stats.p99)
        ]
        rows.append(
            [
                name,
                number(mine[0], 0),
                number(mine[1] and mine[1] * 1e6),
                number(mine[2], 1),
                number(mine[3], 1),
                *map(spread, ratios),
                "L" if stats.load_bound(workload, name) else "",
            ]
        )
    columns(rows, 1, out)
    for name, why in sorted(workload["absent"].items()):
        print(f"  {name}: {why}", file=out)
    if workload.get("batches", 1) > 1:
        print(
            f"  in {workload['batches']} parts, weir in each: descriptors did not suffice for all at a time", file=out
        )
    if workload.get("disturbed", 0) > DISTURBED:
        print(f"  DISTURBED: other processes took {workload['disturbed']:.0%} of a processor meanwhile", file=out)
    for name, seconds in sorted(workload.get("not_idle", {}).items()):
        print(f"  {name} used {seconds * 1e3:.1f} ms of its processor while nothing was asked of it", file=out)


def summary(results, out):
    heading("weir / the reference, and / the best peer: medians of paired ratios (quartiles)", out)
    rows = [["workload", "reference", "ops", "CPU", "p99", "best peer", "ops", "CPU", "p99"]]
    for workload in results.workloads:
        row = [workload["name"]]
        for other in results.reference(workload), results.best_peer(workload):
            ratios = [
                stats.paired(workload, "weir", other, figure) if other else []
                for figure in (stats.rate, stats.cpu, stats.p99)
            ]
            bound = " L" if stats.load_bound(workload, "weir") else ""
            row += [
                other or "-",
                number(stats.median(ratios[0])) + bound,
                spread(ratios[1]),
                number(stats.median(ratios[2])),
            ]
        rows.append(row)
    columns(rows, 2, out)
    if any(stats.load_bound(workload, name) for workload in results.workloads for name in stats.present(workload)):
        print(
            "  L: load-bound. The load used more than 95 % of its processor, so ratios of operations are compressed:\n"
            "     the CPU an operation is the figure.",
            file=out,
        )


def figures(results, out):
    instructions, calls = results.figures.get("instructions", {}), results.figures.get("syscalls", {})
    if not instructions and not calls:
        return
    heading("figures that noise cannot touch (64 B echo; instructions in user space, 50 connections)", out)
    rows = [["server", "instr./message", "instr./KiB", "allocations/op", "syscalls/op 1", "syscalls/op 50", ""]]
    for name in results.groups:
        if name in instructions or name in calls:
            mine, called = instructions.get(name, {}), calls.get(name, {})
            reasons = {entry["reason"] for entry in (mine, called) if "reason" in entry}
            rows.append(
                [
                    name,
                    number(mine.get("message"), 1),
                    number(mine.get("kib"), 2),
                    number(mine.get("allocations"), 3),
                    number(called.get("1"), 3),
                    number(called.get("50"), 3),
                    f"not measured: {'; '.join(sorted(reasons))}" if reasons else "",
                ]
            )
    columns([row[:-1] + ["  " + row[-1]] for row in rows], 1, out)


def memory(results, out):
    kinds = results.memory
    if not kinds:
        return
    rows = [["server", "state", "process B", "B/connection", "kernel B/connection", ""]]
    for kind, states in ("idle", ("connected", "burst")), ("hold", ("connected", "sent")):
        for name, entry in kinds.get(kind, {}).items():
            if "reason" in entry:
                rows.append([name, kind, "-", "-", "-", f"not measured: {entry['reason']}"])
                continue
            for state in states:
                each = (entry[state] - entry["warm"]) / entry["connections"]
                kernel = (entry[f"kernel_{state}"] - entry["kernel_warm"]) / entry["connections"]
                rows.append([name, f"{kind}, {state}", f"{entry[state]:,}", f"{each:,.0f}", f"{kernel:,.0f}", ""])
    for name, entry in kinds.get("slow", {}).items():
        if "reason" in entry:
            rows.append([name, "slow reader", "-", "-", "-", f"not measured: {entry['reason']}"])
        else:
            rows.append(
                [
                    name,
                    "slow reader, peak",
                    f"{entry['peak']:,}",
                    "-",
                    "-",
                    f"{entry['peak'] - entry['warm']:,} more than before; {entry['under_way']:,} under way at most",
                ]
            )
    heading(
        "memory: the process's own pages (private clean and dirty), beyond those it had when warm;\n"
        "kernel: slab and socket buffers of the whole machine, both ends",
        out,
    )
    columns([row[:-1] + ["  " + row[-1]] for row in rows], 2, out)


def goal_table(rows, out):
    heading("goals", out)
    table = [["", "target", "figure", "goal", ""]]
    for row in rows:
        met = {True: "met", False: "NOT MET", None: "?"}[row["met"]]
        table.append(
            [met, row["target"], number(row["figure"], 3), row["goal"], f"({row['note']})" if row["note"] else ""]
        )
    columns(table, 5, out)


def table(raw, out):
    results = stats.Results(raw)
    head(raw, out)
    for workload in raw["workloads"]:
        if workload["slices"]:
            block(results, workload, out)
        else:
            heading(f"{workload['name']}: not measured", out)
            for name, why in sorted(workload["absent"].items()):
                print(f"  {name}: {why}", file=out)
    for text in raw["left_out"]:
        print(f"\nleft out: {text}", file=out)
    if results.workloads:
        summary(results, out)
    figures(results, out)
    memory(results, out)
    goal_table(goals.rows(results), out)
    print(f"\n{stats.last_line(results)}", file=out)
