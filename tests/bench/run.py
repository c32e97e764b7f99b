#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Measures weir side by side with hand-written programs and its peers.

    run.py --build DIRECTORY [--quick] [--only REGEX] [--servers NAME,...] [--rounds N] [--slice-ms MS] [--seed N]
           [--verify] [--json FILE] [--pictures DIRECTORY] [--list]
    run.py --self-test

Everything runs in a network namespace of its own. The servers of a workload are all up at the same time, on one
processor; the load, on another, keeps its connections to all of them open and rotates over them in short shuffled
slices, so that a ratio compares what happened within the same second. What it prints: each workload with all
servers; weir against the best hand-written program and the best peer; figures that noise cannot touch; memory; the
goals, each met or not; and last

    bench: cpu weir/reference max=R median=R weir/best-peer max=R median=R

--only takes workloads (see --list) in whose name REGEX is found; --servers takes names, programs (all their
variants) and patterns. A full run takes some 20 minutes, --quick less than one. Status 1: a server or a workload
failed.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import re
import resource
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent)]
import fleet as fleets  # noqa: E402
import measure  # noqa: E402
import report  # noqa: E402
import selftest  # noqa: E402
import stats  # noqa: E402

ROUNDS, QUICK_ROUNDS = 9, 7
# Of a workload whose bytes flow one way: left alone for some seconds they take some tenths of one to flow as before. In
# slices of 120 ms now this server's connections stood still and now that one's.
FLOW_SLICES = 5
WRITE = 65536
OVERHEAD_S = 0.045  # of a slice: warming up, and what is in flight at its end
IDLE_S, IDLE_LIMIT_S = 0.2, 0.002
SPARE_DESCRIPTORS = 200
MANY, PARTIAL = 10000, 100
SLOW_RATE, SLOW_S = 4 << 20, 4
QUICK_SERVERS = ["weir", "ring", "ring-direct", "epoll-edge", "uv-tuned"]
SIZES = {64: "64 B", 1024: "1 KiB", 16384: "16 KiB"}


@dataclasses.dataclass(frozen=True)
class Workload:
    kind: str
    connections: int
    size: int = WRITE
    depth: int = 1
    is_quick: bool = False

    @property
    def flows(self):
        return self.kind in ("sink", "source")

    @property
    def name(self):
        size = f" x {SIZES[self.size]}" if self.size in SIZES else ""
        return f"{self.kind} {self.connections}{size}{f' x {self.depth}' if self.depth > 1 else ''}"

    def arguments(self):
        return [
            "--workload",
            self.kind,
            "--connections",
            self.connections,
            "--size",
            self.size,
            "--depth",
            self.depth,
        ]


def workloads():
    quick = {(50, 64, 1), (50, 16384, 16), (1, 64, 1)}
    found = [
        Workload("echo", connections, size, depth, (connections, size, depth) in quick)
        for connections in (1, 50, 500, 5000)
        for size in SIZES
        for depth in (1, 16)
    ]
    found += [
        Workload(kind, connections, is_quick=(kind, connections) == ("sink", 50))
        for kind in ("sink", "source")
        for connections in (1, 50)
    ]
    return found + [Workload("proxy", 50, 1024), Workload("churn", 50, 64)]


LEFT_OUT = {"echo 5000 x 16 KiB x 16": "1.2 GiB in flight, which says more of the kernel's limits than of any server"}
MEASURES = ["figures: instructions", "figures: system calls", "memory: idle", "memory: hold", "memory: slow reader"]


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Progress:
    """One line on a terminal; now and then a line elsewhere."""

    def __init__(self):
        self.begun, self.planned_s, self.done_s, self.said_at, self.text = time.monotonic(), 0, 0, 0, ""

    def show(self, text, done_s):
        elapsed_s, is_terminal = time.monotonic() - self.begun, sys.stderr.isatty()
        if time.monotonic() - self.said_at < (0.2 if is_terminal else 15):
            return
        self.said_at = time.monotonic()
        share = (self.done_s + done_s) / self.planned_s if self.planned_s else 1
        # At first the plan knows better than what little has passed.
        left_s = max(self.planned_s - self.done_s - done_s, 0) * (
            elapsed_s / max(share * self.planned_s, 1) if share > 0.1 else 1
        )
        line = f"bench: {text}, {left_s / 60:.0f} min left" if left_s >= 90 else f"bench: {text}, {left_s:.0f} s left"
        print(f"\r{line:<100}" if is_terminal else line, end="" if is_terminal else "\n", file=sys.stderr, flush=True)


def machine_time():
    """(when, what all processes of the machine used, and what the hypervisor kept from them; ours), in seconds."""
    fields = [int(field) / os.sysconf("SC_CLK_TCK") for field in open("/proc/stat").readline().split()[1:]]
    ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    stolen = fields[7] if len(fields) > 7 else 0
    return time.monotonic(), sum(fields[:3]) + stolen, sum(one.ru_utime + one.ru_stime for one in ours)


def disturbance(before):
    """The share of a processor that others took since; our own processes must have ended."""
    now = machine_time()
    elapsed, all_s, ours_s = (after - earlier for after, earlier in zip(now, before))
    return max(all_s - ours_s, 0) / elapsed


# ---- throughput -----------------------------------------------------------------------------------------------


class Bench:
    def __init__(self, options, servers):
        self.options, self.servers = options, servers
        self.fleet, self.progress = fleets.Fleet(options.build), Progress()
        self.is_failed = False

    def run(self, workload):
        """The workload's entry in the results."""
        entry = dataclasses.asdict(workload) | {
            "name": workload.name,
            "slices": [],
            "absent": {},
            "verified_bytes": 0,
        }
        upstreams, begun_s = [], self.progress.done_s
        try:
            if workload.kind == "proxy":
                ring = [server for server in fleets.SERVERS if server.name == "ring"]
                upstreams, absent = self.fleet.start(ring, "echo", processor=self.fleet.load_cpu)
                if not upstreams:
                    raise fleets.Trouble(f"no upstream: ring {absent['ring']}")
            batches = self.batches(workload)
            entry["batches"] = len(batches)
            for number, batch in enumerate(batches):
                self.progress.done_s = begun_s + number / len(batches) * self.cost_s(workload)
                self.run_batch(workload, number, batch, upstreams[0].port if upstreams else 0, entry)
        except fleets.Trouble as trouble:
            entry["absent"]["(all)"] = str(trouble)
            self.is_failed = True
        finally:
            fleets.stop(upstreams)
        self.progress.done_s = begun_s + self.cost_s(workload)
        return entry

    def batches(self, workload):
        """All at a time if the load's descriptors suffice; else some, with weir and, if they can, the references."""
        usable = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_DESCRIPTORS
        room = usable // workload.connections
        if room >= len(self.servers):
            return [self.servers]
        base = [server for server in self.servers if server.name == "weir" or server.group == "hand"]
        if room <= len(base):
            base = [server for server in base if server.name == "weir"]
        if room <= len(base):
            raise fleets.Trouble(
                f"{workload.connections} connections to {len(base) + 1} servers need more than "
                f"{usable} descriptors (ulimit -n)"
            )
        others, step = [server for server in self.servers if server not in base], room - len(base)
        missing = [server for server in others if self.fleet.missing(server)]  # these take no room
        others = [server for server in others if server not in missing]
        found = [base + others[i : i + step] for i in range(0, len(others), step)] or [base]
        return [found[0] + missing, *found[1:]]

    def run_batch(self, workload, number, servers, upstream, entry):
        while servers:
            work = "echo" if workload.kind == "churn" else workload.kind
            before = machine_time()
            running, absent = self.fleet.start(servers, work, upstream=upstream, connections=workload.connections)
            entry["absent"].update(absent)
            if not running:
                return
            try:
                self.see_idle(running, entry)
                found, verified, trouble = fleets.slices(
                    self.fleet,
                    self.arguments(workload, entry["batches"]),
                    running,
                    lambda one, n=len(running): self.tick(workload, one, n, entry["batches"]),
                )
            finally:
                fleets.stop(running)
            entry["disturbed"] = max(entry.get("disturbed", 0), disturbance(before))
            if not trouble:
                # What weir and the references do in a later batch is there for its ratios, and counts like the rest.
                entry["slices"] += [one | {"batch": number} for one in found]
                entry["verified_bytes"] += verified
                return
            self.is_failed = True
            say(f"{workload.name}: {trouble}")
            named = [
                one.server for one in running if re.search(rf"(?<![\w-]){re.escape(one.name)}(?![\w-])", trouble)
            ]
            if not named:
                raise fleets.Trouble(trouble)
            # The others are asked again, without those.
            entry["absent"].update({server.name: f"FAILED: {trouble.splitlines()[-1]}" for server in named})
            servers = [server for server in servers if server not in named and server.name not in absent]

    def rounds(self, workload, batches):
        """Fewer for each of many batches, and of long slices, or they would take the most of the time."""
        is_long = self.slice_ms(workload) > self.options.slice_ms
        return self.options.rounds if batches == 1 and not is_long else (self.options.rounds + 1) // 2

    def slice_ms(self, workload):
        return self.options.slice_ms * (FLOW_SLICES if workload.flows and not self.options.quick else 1)

    def arguments(self, workload, batches):
        options = self.options
        more = ["--rounds", self.rounds(workload, batches)]
        more += ["--slice-ms", self.slice_ms(workload), "--seed", options.seed]
        if self.fleet.cpu != self.fleet.load_cpu and stats.is_alone(workload.kind, workload.connections, workload.depth):
            more.append("--spin")
        return workload.arguments() + more + (["--verify"] if options.verify else [])

    def see_idle(self, running, entry):
        """A server that uses its processor while nothing is asked of it takes it from the others."""
        before = {one.name: fleets.cpu_s(one.pid) for one in running}
        time.sleep(IDLE_S)
        for one in running:
            used = fleets.cpu_s(one.pid) - before[one.name]
            if used > IDLE_LIMIT_S and one.server.program != "node":  # node is still compiling itself
                entry.setdefault("not_idle", {})[one.name] = used

    def tick(self, workload, one, servers, batches):
        rounds = self.rounds(workload, batches)
        done_s = (one["round"] + 1) / rounds * self.cost_s(workload) / batches
        self.progress.show(f"{workload.name}, round {one['round'] + 1}/{rounds}, {servers} servers", done_s)

    def cost_s(self, workload):
        try:
            batches = self.batches(workload)
        except fleets.Trouble:
            return 0
        slices = self.rounds(workload, len(batches)) * sum(map(len, batches))
        slice_s = self.slice_ms(workload) / 1000 + OVERHEAD_S + workload.connections * workload.depth / 4e5
        return slices * slice_s + len(batches)

    # ---- the rest -------------------------------------------------------------------------------------------------

    def each(self, what, measured, wanted):
        found = {}
        for number, server in enumerate(wanted):
            self.progress.show(f"{what}, {server.name}", self.measure_s(what, number))
            found[server.name] = measured(server)
            self.is_failed |= found[server.name].get("failed", False)
        return found

    def measure_s(self, what, servers):
        return (
            servers
            * {
                "figures: instructions": 9,
                "figures: system calls": 4,
                "memory: idle": 16,
                "memory: hold": 8,
                "memory: slow reader": 6,
            }[what]
        )

    def measured(self, raw, what):
        """One of MEASURES, for all servers."""
        fleet, servers = self.fleet, self.servers
        if what == "figures: instructions":
            few = [one for one in servers if one.name in ("weir", "ring")] if self.options.quick else servers
            raw["figures"]["instructions"] = self.each(what, lambda one: measure.instructions(fleet, one), few)
        elif what == "figures: system calls":
            raw["figures"]["syscalls"] = self.each(what, self.system_calls, servers)
        elif what == "memory: idle":
            counts = [] if self.options.quick else [1000, 3000]
            raw["memory"]["idle"] = self.each(what, lambda one: measure.idle(fleet, one, MANY, counts), servers)
        elif what == "memory: hold":
            raw["memory"]["hold"] = self.each(what, lambda one: measure.hold(fleet, one, MANY, PARTIAL), servers)
        else:
            raw["memory"]["slow"] = self.each(what, lambda one: measure.slow(fleet, one, SLOW_RATE, SLOW_S), servers)

    def system_calls(self, server):
        found = {}
        for connections in 1, 50:
            found |= measure.system_calls(self.fleet, server, connections)
            if "reason" in found:
                break
        return found


# ---- all of it ------------------------------------------------------------------------------------------------


def planned(options):
    """(workloads, measures, what is left out)."""

    def wanted(name):
        return not options.only or re.search(options.only, name)

    chosen = [one for one in workloads() if wanted(one.name) and (one.is_quick or not options.quick or options.only)]
    left_out = [f"{one.name}: {LEFT_OUT[one.name]}" for one in chosen if one.name in LEFT_OUT]
    if options.quick and not options.only:
        left_out.append("all but what --quick has time for")
        measures = ["figures: instructions"]
    else:
        measures = [name for name in MEASURES if wanted(name)]
    if options.only:
        left_out.append(f"what --only '{options.only}' does not take")
    return [one for one in chosen if one.name not in LEFT_OUT], measures, left_out


def raise_limit():
    """Descriptors: as many as one may have. What is not allowed is done without."""
    try:
        most = int(pathlib.Path("/proc/sys/fs/nr_open").read_text())
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[0], most))
    except (OSError, ValueError):
        pass


def processor_name():
    found = re.search(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{found[1] if found else platform.machine()} x {os.cpu_count()}"


def measure_all(options, servers):
    bench = Bench(options, servers)
    if not bench.fleet.program("load").exists():
        raise fleets.Trouble(f"{bench.fleet.program('load')} is not built")
    os.sched_setaffinity(0, {bench.fleet.load_cpu})
    raise_limit()
    chosen, measures, left_out = planned(options)
    raw = {
        "machine": {
            "kernel": f"Linux {platform.release()}",
            "processor": processor_name(),
            "cpu": bench.fleet.cpu,
            "load_cpu": bench.fleet.load_cpu,
        },
        "settings": {key: getattr(options, key) for key in ("rounds", "slice_ms", "seed", "verify", "quick")},
        "workloads": [],
        "figures": {},
        "memory": {},
        "left_out": left_out,
    }
    progress = bench.progress
    progress.planned_s = sum(map(bench.cost_s, chosen)) + sum(bench.measure_s(one, len(servers)) for one in measures)
    for workload in chosen:
        raw["workloads"].append(bench.run(workload))
    for what in measures:
        bench.measured(raw, what)
        progress.done_s += bench.measure_s(what, len(servers))
    if sys.stderr.isatty():
        print(f"\r{'':<100}\r", end="", file=sys.stderr, flush=True)
    raw["servers"] = [dataclasses.asdict(server) | described(bench, server, servers) for server in fleets.SERVERS]
    return raw, bench.is_failed or bench.fleet.is_wrong


def described(bench, server, servers):
    """What it said that it runs, and if it did not, why."""
    fleet = bench.fleet
    backend = fleet.backends.get(server.name, "")
    reason = "" if backend else fleet.missing(server) or fleet.reasons.get(server.name, "")
    return {"backend": backend, "reason": reason or ("" if server in servers else "not asked for")}


def draw(path, directory):
    """Matplotlib may be there for the system's python only."""
    for python in sys.executable, "/usr/bin/python3":
        if subprocess.run([python, "-c", "import matplotlib"], stderr=subprocess.DEVNULL).returncode == 0:
            script = pathlib.Path(__file__).resolve().parent / "plot.py"
            return subprocess.run([python, script, path, directory]).returncode == 0
    say("no pictures: matplotlib is missing (Debian: python3-matplotlib)")
    return False


def listing(options):
    fleet = fleets.Fleet(options.build)
    for one in workloads():
        print(one.name + (f"  (left out: {LEFT_OUT[one.name]})" if one.name in LEFT_OUT else ""))
    print("\n".join(MEASURES))
    for server in fleets.SERVERS:
        print(f"{server.name:<18} {server.program} --variant {server.variant:<12} {fleet.missing(server)}".rstrip())
    return 0


def options_of(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True, help="a build directory with the option bench")
    parser.add_argument("--quick", action="store_true", help="few servers and workloads, in less than a minute")
    parser.add_argument("--only", default="", metavar="REGEX", help="workloads and measures with this in their name")
    parser.add_argument("--servers", default="", metavar="NAME,...", help="names, programs, patterns")
    parser.add_argument("--rounds", type=int, default=0, help="how often the load goes around")
    parser.add_argument("--slice-ms", type=int, default=120, help="how long it stays with a server")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the servers in a round")
    parser.add_argument("--verify", action="store_true", help="see every byte that is echoed")
    parser.add_argument("--json", type=pathlib.Path, help="write everything there")
    parser.add_argument("--pictures", type=pathlib.Path, help="draw into this directory")
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.build = options.build.resolve()
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    if options.pictures and not options.json:
        options.json = options.build / "bench.json"
    return options


def main(arguments):
    options = options_of(arguments)
    try:
        names = options.servers.split(",") if options.servers else QUICK_SERVERS if options.quick else ["*"]
        servers = fleets.chosen(names)
        if options.list:
            return listing(options)
        if not options.inside:
            fleets.enter_namespace(pathlib.Path(__file__).resolve(), arguments)
        fleets.furnish_namespace()
        raw, is_failed = measure_all(options, servers)
    except (fleets.Trouble, OSError, subprocess.CalledProcessError) as trouble:
        say(str(trouble))
        return 1
    except KeyboardInterrupt:
        return 130
    if options.json:
        raw["goals"] = report.goals.rows(stats.Results(raw))
        options.json.write_text(json.dumps(raw, indent=1) + "\n")
    if options.pictures:
        is_failed |= not draw(options.json, options.pictures)
    report.table(raw, sys.stdout)
    return 1 if is_failed else 0


if __name__ == "__main__":
    sys.exit(selftest.run() if "--self-test" in sys.argv else main(sys.argv[1:]))
