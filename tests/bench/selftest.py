# SPDX-License-Identifier: MIT
"""run.py --self-test: statistics, goals and what is read of other programs, against cases with a known outcome."""

import io

import goals
import measure
import report
import stats

GROUPS = {
    "weir": "weir",
    "weir-spin": "weir",
    "ring": "hand",
    "epoll-edge": "hand",
    "uv-tuned": "tuned",
    "uv-plain": "plain",
}


def piece(number, server, operations=1000, cpu_s=0.05, load_s=0.05, p99_us=100.0):
    return {
        "round": number,
        "server": server,
        "seconds": 0.1,
        "operations": operations,
        "bytes": 64 * operations,
        "server_cpu_s": cpu_s,
        "load_cpu_s": load_s,
        "p50_us": p99_us / 2,
        "p99_us": p99_us,
    }


def workload(pieces, kind="echo", connections=50, size=64, depth=1):
    return {
        "name": f"{kind} {connections}",
        "kind": kind,
        "connections": connections,
        "size": size,
        "depth": depth,
        "slices": pieces,
        "absent": {},
    }


def results(*workloads, figures=None, memory=None):
    servers = [{"name": name, "group": group, "backend": "epoll", "reason": ""} for name, group in GROUPS.items()]
    return stats.Results(
        {"servers": servers, "workloads": list(workloads), "figures": figures or {}, "memory": memory or {}}
    )


# Round 0 was slow for both, round 1 for nobody, round 2 has one of them only, in round 3 one did nothing.
MOODS = workload(
    [
        piece(0, "weir", 500, 0.04),
        piece(0, "ring", 1000, 0.04),
        piece(1, "weir", 3000, 0.06),
        piece(1, "ring", 2000, 0.05),
        piece(2, "ring", 9000),
        piece(3, "weir", 0),
        piece(3, "ring", 1000),
    ]
)

# weir costs 1.2 of ring, 0.5 of uv-tuned, 0.25 of uv-plain; ring is the reference.
STEADY = [
    piece(n, server, 1000, cpu_s)
    for n in range(3)
    for server, cpu_s in (
        ("weir", 0.06),
        ("ring", 0.05),
        ("epoll-edge", 0.07),
        ("uv-tuned", 0.12),
        ("uv-plain", 0.24),
    )
]

DUMP = """fn=(1) serve
+3 10
cfn=(2) malloc
calls=5 0
+1 50
cfn=(3) free
calls=5 0
+1 50
cfn=(4) operator new(unsigned long)
calls=2 0
+1 9

fn=(4)
cfn=(2)
calls=2 0
+1 8
fn=(5) mi_free
cfn=(6) mi_malloc_small
calls=1 0

fn=(7) deep'2
cfn=(6)
calls=3 0
summary: 4242
"""


def goal(text, found):
    """The first goal in whose name @text is."""
    return next(row for row in goals.rows(found) if text in row["goal"])


def figure_of(text, found):
    row = goal(text, found)
    return (row["figure"] and round(row["figure"], 6), row["met"])


def bulk(p99_us, operations):
    pieces = [piece(n, "weir", 1000, p99_us=120.0) for n in range(3)]
    pieces += [piece(n, "epoll-edge", operations, p99_us=p99_us) for n in range(3)]
    return results(workload(pieces, size=16384, depth=16))


def idle(connected, burst):
    return results(
        memory={
            "idle": {
                "weir": {"connections": 10000, "cold": 0, "warm": 1000000, "connected": connected, "burst": burst}
            }
        }
    )


def tables():
    """That the table is written of whatever was measured, also of nothing: its last line."""
    raw = results(workload(STEADY)).raw | {
        "machine": {"kernel": "Linux", "processor": "p", "cpu": 0, "load_cpu": 1},
        "left_out": ["that"],
        "settings": {"rounds": 3, "slice_ms": 120, "seed": 1, "verify": False},
        "figures": {"instructions": {"weir": {"reason": "why"}}, "syscalls": {"weir": {"1": 1.0}}},
        "memory": {"slow": {"weir": {"reason": "why"}}},
    }
    out = io.StringIO()
    report.table(raw, out)
    return out.getvalue().splitlines()[-1]


def cases():
    steady, none = results(workload(STEADY)), results()
    grown = results(workload(STEADY), workload([one | {"server_cpu_s": 0.12} for one in STEADY], connections=5000))
    bound = [piece(n, "weir", load_s=0.096) for n in range(2)] + [piece(2, "weir", load_s=0.05)]
    figures = {
        "instructions": {"weir": {"message": 1401.0}, "ring": {"message": 1000.0}},
        "syscalls": {"weir": {"1": 1.04, "50": 0.08}},
    }
    counts = results(figures=figures)
    yield "quartiles", stats.quartiles([4, 1, 3, 2, 5]), (2, 3, 4)
    yield "quartiles_of_one", stats.quartiles([7]), (7, 7, 7)
    yield "quartiles_of_nothing", stats.quartiles([]), None
    yield "ratios_are_paired", stats.paired(MOODS, "weir", "ring", stats.rate), [0.5, 1.5]
    yield "cpu_an_operation", [round(one, 3) for one in stats.paired(MOODS, "weir", "ring", stats.cpu)], [2.0, 0.8]
    apart = workload([piece(0, "weir", 1000), piece(0, "ring", 500), piece(0, "weir", 3000) | {"batch": 1}])
    yield "batches_are_not_mixed", stats.paired(apart, "weir", "ring", stats.rate), [2.0]
    parts = workload(
        [
            piece(0, "ring", 500),
            piece(0, "weir", 1000),
            piece(0, "ev", 100) | {"batch": 1},
            piece(0, "weir", 400) | {"batch": 1},
        ]
    )
    yield "by_way_of_weir", stats.against(parts, "ev", "ring", stats.rate), (0.5, 0.5, 0.5)
    yield "not_by_way_of_weir", stats.against(parts, "weir", "ring", stats.rate), (2.0, 2.0, 2.0)
    yield "load_bound", stats.load_bound(workload(bound), "weir"), True
    yield "not_load_bound", stats.load_bound(workload(bound[1:]), "weir"), False
    yield "who_spins_is_not_the_bound", stats.load_bound(workload(bound, connections=1), "weir"), False
    yield "a_proxys_load_is_bound_by_any", stats.load_bound(workload(bound[1:], "proxy"), "weir"), True
    yield "reference", steady.reference(workload(STEADY)), "ring"
    yield "best_peer", steady.best_peer(workload(STEADY)), "uv-tuned"
    yield "no_reference", none.reference(workload([piece(0, "weir")])), None
    yield "last_line", stats.last_line(steady), (
        "bench: cpu weir/reference max=1.200 median=1.200 " "weir/best-peer max=0.500 median=0.500"
    )
    yield "last_line_of_nothing", stats.last_line(
        none
    ), "bench: cpu weir/reference max=- median=- weir/best-peer max=- median=-"
    yield "churn_is_no_throughput", stats.last_line(results(workload(STEADY, "churn"))), stats.last_line(none)
    yield "the_table_ends_with_it", tables(), stats.last_line(steady)
    yield "goal_missed", figure_of("CPU an operation / reference", steady), (1.2, False)
    yield "goal_not_measured", figure_of("CPU an operation / reference", none), (None, None)
    yield "one_connection_does_not_count_there", figure_of(
        "CPU an operation / reference", results(workload(STEADY, connections=1))
    ), (None, None)
    yield "ahead", figure_of("ahead of uv-plain", steady), (4.0, True)
    yield "ahead_of_who_is_not_there", figure_of("ahead of node", steady), (None, None)
    yield "not_behind", figure_of("not behind a tuned peer: weir's CPU", steady), (0.5, True)
    yield "instructions", figure_of("instructions an echoed", counts), (401.0, False)
    yield "system_calls_of_one", figure_of("system calls an echo, one", counts), (1.04, True)
    yield "system_calls_of_fifty", figure_of("system calls an echo, 50", counts), (0.08, False)
    yield "connections_raise_the_cost", figure_of("CPU an operation at 5,000", grown), (2.0, False)
    yield "bulk_tail", figure_of("deep: p99", bulk(100.0, 1000)), (1.2, True)
    yield "bulk_tail_missed", figure_of("deep: p99", bulk(99.0, 1000)), (1.212121, False)
    yield "bulk_pace", figure_of("deep: operations", bulk(100.0, 1040)), (0.961538, False)
    yield "idle", figure_of("10,000 idle: bytes", idle(3560000, 3560000)), (256.0, True)
    yield "idle_missed", figure_of("10,000 idle: bytes", idle(3570000, 3560000)), (257.0, False)
    yield "back_after_a_burst", figure_of("10,000 idle: after", idle(3000000, 3110000)), (1.055, False)
    yield "allocations", measure.counted(DUMP), (4242, 11)
    yield "perf", measure.perf_count("# started\n\n1234,,raw_syscalls:sys_enter,99,100.00,,\n"), 1234
    yield "perf_may_not", measure.perf_count("<not supported>,,raw_syscalls:sys_enter,0,100.00,,\n"), None


def run():
    wrong, number = 0, 0
    for number, (name, found, wanted) in enumerate(cases(), 1):
        wrong += found != wanted
        print(f"{'ok' if found == wanted else 'not ok'} {number} - {name}")
        if found != wanted:
            print(f"# found {found!r}, not {wanted!r}")
    print(f"1..{number}")
    return 1 if wrong else 0
