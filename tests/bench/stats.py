# SPDX-License-Identifier: MIT
"""What the slices say: pure functions, from the raw results to ratios, references and goals.

A ratio is taken inside a round, where the machine was in the same mood for both, and the median of the rounds is what
counts, with the quartiles as its spread. `results` is what run.py writes as JSON:

    {"servers": [{"name", "group", ...}], "workloads": [{"name", "kind", "connections", "size", "depth",
     "slices": [...], "absent": {...}}], "figures": {...}, "memory": {...}}
"""

import statistics

THROUGHPUT = {"echo", "sink", "source", "proxy"}
LOAD_BOUND = 0.95  # of its processor


# ---- one slice ------------------------------------------------------------------------------------------------


def rate(one):
    return one["operations"] / one["seconds"] if one["operations"] and one["seconds"] else None


def cpu(one):
    return one["server_cpu_s"] / one["operations"] if one["operations"] and one["server_cpu_s"] else None


def p99(one):
    return one.get("p99_us") or None


FIGURES = {"rate": rate, "cpu": cpu, "p99": p99}


def is_bound(one):
    return one["load_cpu_s"] > LOAD_BOUND * one["seconds"]


# ---- many -----------------------------------------------------------------------------------------------------


def quartiles(values):
    """(lower, median, upper), or None of nothing."""
    values = list(values)
    if not values:
        return None
    if len(values) == 1:
        return (values[0],) * 3
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def median(values):
    found = quartiles(values)
    return found and found[1]


def own(workload, server, figure):
    """A server's figures, one a round."""
    found = (figure(one) for one in workload["slices"] if one["server"] == server)
    return [value for value in found if value is not None]


def paired(workload, mine, other, figure):
    """mine / other of each round that has both."""
    rounds = {}
    for one in workload["slices"]:
        rounds.setdefault((one.get("batch", 0), one["round"]), {})[one["server"]] = one
    ratios = []
    for _, servers in sorted(rounds.items()):
        if mine in servers and other in servers:
            above, below = figure(servers[mine]), figure(servers[other])
            if above is not None and below is not None:
                ratios.append(above / below)
    return ratios


def ratio(workload, mine, other, figure):
    return median(paired(workload, mine, other, FIGURES[figure]))


def against(workload, name, other, figure):
    """The quartiles of name / other; where they were never in a round together, the median by way of weir."""
    direct = quartiles(paired(workload, name, other, figure))
    if direct:
        return direct
    first, second = (median(paired(workload, *pair, figure)) for pair in ((name, "weir"), ("weir", other)))
    return (first * second,) * 3 if first and second else None


def present(workload):
    return sorted({one["server"] for one in workload["slices"]})


def is_alone(kind, connections, depth):
    """One message at a time, and nobody else: the load spins then, and is never the bound."""
    return kind == "echo" and connections * depth == 1


def load_bound(workload, server):
    """Whether the load, not the server, set the pace. A proxy's upstream shares the load's processor."""
    if is_alone(workload["kind"], workload["connections"], workload["depth"]):
        return False
    mine = [is_bound(one) for one in workload["slices"] if one["server"] == server]
    return bool(mine) and (workload["kind"] == "proxy" or 2 * sum(mine) > len(mine))


def best(workload, groups, wanted):
    """The server of these groups that costs least an operation, or None."""
    costs = [(median(own(workload, name, cpu)), name) for name in present(workload) if groups.get(name) in wanted]
    return min((cost for cost in costs if cost[0] is not None), default=(None, None))[1]


def is_throughput(workload):
    return workload["kind"] in THROUGHPUT


class Results:
    def __init__(self, raw):
        self.raw = raw
        self.workloads = [one for one in raw["workloads"] if one["slices"]]
        self.groups = {one["name"]: one["group"] for one in raw["servers"]}
        self.figures, self.memory = raw.get("figures", {}), raw.get("memory", {})

    def reference(self, workload):
        return best(workload, self.groups, {"hand"})

    def best_peer(self, workload):
        return best(workload, self.groups, {"tuned", "plain"})

    def find(self, **wanted):
        return [one for one in self.workloads if all(one[key] == value for key, value in wanted.items())]

    def against(self, pick, figure="cpu"):
        """[(weir / pick(workload), the workload's name)] over the throughput workloads."""
        found = []
        for workload in filter(is_throughput, self.workloads):
            other = pick(workload)
            value = other and ratio(workload, "weir", other, figure)
            if value is not None:
                found.append((value, workload["name"]))
        return found


def last_line(results):
    def part(name, found):
        values = [value for value, _ in found]
        if not values:
            return f"{name} max=- median=-"
        return f"{name} max={max(values):.3f} median={statistics.median(values):.3f}"

    return (
        f"bench: cpu {part('weir/reference', results.against(results.reference))} "
        f"{part('weir/best-peer', results.against(results.best_peer))}"
    )
