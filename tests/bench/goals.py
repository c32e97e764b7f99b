# SPDX-License-Identifier: MIT
"""The goals, each a row: what is wanted, what was found, and whether that is enough.

A goal over several workloads shows the worst of them, by name. What could not be measured is not met: it is None,
and the row says so. "Ahead" and "behind" are by the server's processor time an operation, which a saturated load
does not compress.
"""

import statistics

import stats

MOST, LEAST = "at most", "at least"


def row(goal, bound, limit, found, note=""):
    """@found: [(figure, where)]; the worst of them counts."""
    found = [one for one in found if one[0] is not None]
    if not found:
        return {
            "goal": goal,
            "target": f"{bound} {limit:g}",
            "figure": None,
            "met": None,
            "note": note or "not measured",
        }
    worst = (max if bound == MOST else min)(found, key=lambda one: one[0])
    beyond = sum(not is_met(bound, limit, one[0]) for one in found)
    notes = [
        worst[1] if len(found) > 1 else "",
        f"{beyond} of {len(found)} miss it" if beyond and len(found) > 1 else "",
        note,
    ]
    return {
        "goal": goal,
        "target": f"{bound} {limit:g}",
        "figure": worst[0],
        "met": is_met(bound, limit, worst[0]),
        "note": "; ".join(one for one in notes if one),
    }


def is_met(bound, limit, figure):
    return figure <= limit if bound == MOST else figure >= limit


def inverse(value):
    return 1 / value if value else None


def minus(a, b):
    return None if a is None or b is None else a - b


def over(a, b):
    return None if a is None or not b else a / b


# ---- throughput -----------------------------------------------------------------------------------------------


def reference_cost(results):
    found = []
    for workload in results.workloads:
        if workload["kind"] in ("echo", "sink", "source") and workload["connections"] >= 50:
            other = results.reference(workload)
            if other:
                found.append((stats.ratio(workload, "weir", other, "cpu"), f"{workload['name']} ({other})"))
    return [row("CPU an operation / reference, 50 connections and more", MOST, 1.05, found)]


def ahead(results, name, limit):
    cost, pace = (
        [inverse(stats.ratio(workload, "weir", name, figure)) for workload in results.find(kind="echo")]
        for figure in ("cpu", "rate")
    )
    cost, pace = [one for one in cost if one], [1 / one for one in pace if one]
    note = f"operations {statistics.median(pace):.2f}" if pace else ""
    found = [(statistics.median(cost), name)] if cost else []
    return row(f"ahead of {name}: its CPU / weir's, median of echo", LEAST, limit, found, note)


def ahead_of_all(results):
    plain = [ahead(results, name, 1.5) for name in ("uv-plain", "event-bufferevent", "node")]
    return plain + [ahead(results, name, 1.1) for name in ("ev", "event-raw", "asio")]


def not_behind(results):
    cost, pace = [], []
    for workload in results.workloads:
        for other in stats.present(workload):
            if results.groups.get(other) != "tuned":
                continue
            where = f"{workload['name']} ({other})"
            cost.append((stats.ratio(workload, "weir", other, "cpu"), where))
            if not stats.load_bound(workload, "weir") or not stats.load_bound(workload, other):
                pace.append((inverse(stats.ratio(workload, "weir", other, "rate")), where))
    return [
        row("not behind a tuned peer: weir's CPU / its", MOST, 1.03, cost),
        row(
            "not behind a tuned peer: its operations / weir's, unless the load is the bound of both", MOST, 1.03, pace
        ),
    ]


def many_connections(results):
    found, reference = [], []
    for many in results.find(kind="echo", connections=5000):
        for few in results.find(kind="echo", connections=50, size=many["size"], depth=many["depth"]):
            growth = [
                over(stats.median(stats.own(many, name, stats.cpu)), stats.median(stats.own(few, name, stats.cpu)))
                for name in ("weir", results.reference(many))
            ]
            found.append((growth[0], many["name"]))
            reference.append((growth[0] or 0, growth[1], many["name"]))
    worst = max(reference, default=(0, None, ""))
    note = f"the reference itself {worst[1]:.2f}" if worst[1] else ""
    return [row("CPU an operation at 5,000 connections / at 50", MOST, 1.15, found, note)]


def churn(results):
    found = []
    for workload in results.find(kind="churn"):
        other = results.reference(workload)
        found.append((other and stats.ratio(workload, "weir", other, "cpu"), workload["name"]))
    return [row("churn: CPU / reference", MOST, 1.05, found)]


def bulk(results):
    pace, tail, bound = [], [], []
    for connections in 50, 500:
        for workload in results.find(kind="echo", connections=connections, size=16384, depth=16):
            bound.append(stats.load_bound(workload, "weir"))
            for other in "epoll-edge", "uv-tuned":
                where = f"{connections} connections ({other})"
                pace.append((stats.ratio(workload, "weir", other, "rate"), where))
                tail.append((stats.ratio(workload, "weir", other, "p99"), where))
    return [
        row(
            "bulk echo, 16 KiB 16 deep: operations", LEAST, 0.97, pace, "the load is the bound" if any(bound) else ""
        ),
        row("bulk echo, 16 KiB 16 deep: p99", MOST, 1.2, tail),
    ]


def queued_writes(results):
    rows = []
    for other in "uv-plain", "uv-tuned", "asio":
        found = [
            (stats.ratio(workload, "weir", other, "rate"), workload["name"])
            for workload in results.find(kind="source")
        ]
        bound = any(stats.load_bound(workload, "weir") for workload in results.find(kind="source"))
        rows.append(
            row(
                f"queued 64 KiB writes: operations / {other}",
                LEAST,
                1.3,
                found,
                "the load is the bound" if bound else "",
            )
        )
    return rows


def polling(results):
    single = results.find(kind="echo", connections=1, size=64, depth=1)
    many = results.find(kind="echo", connections=50, size=64, depth=1)
    found = [
        (stats.ratio(workload, "weir-spin", other, "rate"), other)
        for workload in single
        for other in stats.present(workload)
        if results.groups.get(other) in ("tuned", "plain")
    ]
    cost = [(stats.ratio(workload, "weir-spin", "weir", "cpu"), "") for workload in many]
    return [
        row("one connection, adaptive polling: echoes / those of a peer that sleeps", LEAST, 3, found),
        row("50 connections, adaptive polling: CPU / without", MOST, 1.05, cost),
    ]


# ---- figures --------------------------------------------------------------------------------------------------


def figure(results, kind, name, key):
    return results.figures.get(kind, {}).get(name, {}).get(key)


def instructions(results):
    hand = [(figure(results, "instructions", name, "message"), name) for name in ("ring", "ring-direct")]
    # What one asks of weir is judged by the program that does the same: replies through the ring.
    more = minus(figure(results, "instructions", "weir", "message"), hand[0][0])
    return [row("instructions an echoed 64 B message, beyond those of ring", MOST, 400, [(more, "")])]


def system_calls(results):
    return [
        row(f"system calls an echo, {text}", MOST, limit, [(figure(results, "syscalls", "weir", key), "")])
        for text, key, limit in (("one connection", "1", 1.05), ("50 connections", "50", 0.07))
    ]


def idle_bytes(entry, state):
    return entry[state] - entry["warm"]


def memory(results):
    idle, hold = (results.memory.get(kind, {}).get("weir", {}) for kind in ("idle", "hold"))
    each = back = held = None
    if "burst" in idle:
        connected = idle_bytes(idle, "connected")
        each = connected / idle["connections"]
        back = over(idle_bytes(idle, "burst"), connected) if connected > 0 else None
    if "sent" in hold:
        held = (hold["sent"] - hold["connected"]) / hold["held"]
    return [
        row("10,000 idle: bytes of the process each, beyond the pool", MOST, 256, [(each, "")]),
        row("10,000 idle: after a burst / before it", MOST, 1.05, [(back, "")]),
        row("10,000 partial messages: bytes more / bytes held", MOST, 8, [(held, "")]),
    ]


def rows(results):
    parts = (
        reference_cost,
        instructions,
        ahead_of_all,
        not_behind,
        system_calls,
        polling,
        memory,
        many_connections,
        churn,
        bulk,
        queued_writes,
    )
    return [one for part in parts for one in part(results)]
