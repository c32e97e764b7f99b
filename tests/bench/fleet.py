# SPDX-License-Identifier: MIT
"""The fleet: which servers there are, and how they, the load and the namespace they all live in are started.

Servers have one processor, the load and whatever else runs another. A server says which backend it really runs;
one that does not run what it is named for is not measured. Whoever does not take part is named together with the
reason.
"""

import dataclasses
import fnmatch
import json
import os
import pathlib
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
READY_S = 15
NOT_HERE = 77
FIRST_PORT, LAST_PORT = 2000, 9999
SETTINGS = {
    "net/ipv4/tcp_congestion_control": "reno",  # others pace the loopback
    "net/ipv4/tcp_tw_reuse": "1",
    "net/ipv4/ip_local_port_range": f"{LAST_PORT + 1} 65535",
}


class Trouble(Exception):
    """What ends a run, said in one line."""


@dataclasses.dataclass(frozen=True)
class Server:
    name: str
    program: str
    variant: str
    backend: str  # a regular expression of what it must say that it runs
    group: str  # weir, hand (hand-written), tuned or plain (peers)


INCREMENTAL = "uring-incremental"
SERVERS = [
    Server("weir", "weir", "incremental", INCREMENTAL, "weir"),
    Server("weir-classic", "weir", "classic", "uring-classic", "weir"),
    Server("weir-epoll", "weir", "epoll", "epoll", "weir"),
    Server("weir-spin", "weir", "spin", INCREMENTAL, "weir"),
    Server("weir-large", "weir", "large", INCREMENTAL, "weir"),
    Server("ring", "ring", "ring", INCREMENTAL, "hand"),
    Server("ring-direct", "ring", "direct", INCREMENTAL, "hand"),
    Server("epoll-level", "epoll", "level", "epoll", "hand"),
    Server("epoll-edge", "epoll", "edge", "epoll", "hand"),
    Server("uv-plain", "uv", "plain", "epoll", "plain"),
    Server("uv-tuned", "uv", "tuned", "epoll", "tuned"),
    Server("event-bufferevent", "event", "bufferevent", "epoll", "plain"),
    Server("event-raw", "event", "raw", "epoll", "tuned"),
    Server("ev", "ev", "ev", "epoll", "tuned"),
    Server("asio", "asio", "asio", "epoll", "tuned"),
    Server("node", "node", "net", "epoll", "plain"),
]
GROUPS = {server.name: server.group for server in SERVERS}


def chosen(names):
    """Those of SERVERS that @names means: a server, all variants of a program, or a pattern."""
    picked = []
    for name in names:
        found = [server for server in SERVERS if server.name == name]
        found = found or [
            server for server in SERVERS if server.program == name or fnmatch.fnmatch(server.name, name)
        ]
        if not found:
            raise Trouble(f"no server is called {name}: {' '.join(server.name for server in SERVERS)}")
        picked += found
    return [server for server in SERVERS if server in picked]


# ---- the namespace --------------------------------------------------------------------------------------------


def enter_namespace(script, arguments):
    """Runs @script again, in a network namespace that nobody else is in."""
    if not shutil.which("unshare"):
        raise Trouble("unshare is missing (Debian: util-linux)")
    how = ["-n"] if os.geteuid() == 0 else ["-rn"]
    command = ["unshare", *how, "--", sys.executable, str(script), "--inside", *arguments]
    os.execvp(command[0], command)


def furnish_namespace():
    """Sets it up, and does not believe it: what counts is what is read back."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for name, value in SETTINGS.items():
        path = pathlib.Path("/proc/sys", name)
        path.write_text(value)
        if path.read_text().split() != value.split():
            raise Trouble(f"{name} is {path.read_text().strip()}, not {value}")
    devices = {line.partition(":")[0].strip() for line in open("/proc/net/dev") if ":" in line}
    if devices != {"lo"}:
        raise Trouble(f"the network namespace is not ours alone: {' '.join(sorted(devices))}")
    state = subprocess.run(["ip", "-o", "link", "show", "lo"], stdout=subprocess.PIPE, text=True, check=True).stdout
    if not re.search(r"<[^>]*\bUP\b", state):
        raise Trouble("the loopback device is not up")


def processors():
    """Those of the servers and of the load."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[1 if len(usable) > 1 else 0]


def pinned(processor, command):
    return ["taskset", "-c", str(processor), *map(str, command)]


# ---- servers --------------------------------------------------------------------------------------------------


def cpu_s(pid):
    """The processor time of a process, all its threads'."""
    return time.clock_gettime((~pid << 3) | 2)


class Running:
    """A server's process."""

    def __init__(self, server, port, command, processor):
        self.server, self.port, self.name, self.backend = server, port, server.name, ""
        self.errors = tempfile.TemporaryFile("w+")
        # Some end when their stdin does; the others ask the kernel to end them with us.
        self.process = subprocess.Popen(
            pinned(processor, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors
        )
        self.pid = self.process.pid

    def complaint(self):
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        return lines[-1] if lines else ""

    def wait_ready(self, deadline):
        """'' once it listens; else why it does not take part."""
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self.process.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
                return "is not ready in time"
            some = os.read(self.process.stdout.fileno(), 4096)
            if not some:
                status = self.process.wait()
                return "not here (77)" if status == NOT_HERE else f"ended with {status}: {self.complaint()}"
            line += some
        word, _, self.backend = line.decode(errors="replace").strip().partition(" ")
        if word != "ready":
            return f"says {line!r} instead of ready"
        if not re.search(rf"\b{self.server.backend}\b", self.backend):
            return f"runs {self.backend or '?'}, not {self.server.backend}"
        return ""

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.errors.close()


class Fleet:
    """Starts servers, the load, and knows where they are."""

    def __init__(self, build):
        self.directory = build / "tests" / "bench"
        self.cpu, self.load_cpu = processors()
        self.next_port = FIRST_PORT
        self.backends, self.reasons = {}, {}
        self.is_wrong = False  # a server was not what it is named for, or failed

    def port(self):
        self.next_port = self.next_port + 1 if self.next_port < LAST_PORT else FIRST_PORT
        return self.next_port

    def program(self, name):
        return self.directory / f"bench-{name}"

    def missing(self, server):
        """Why @server cannot run at all; '' if it can."""
        if server.program == "node":
            if not shutil.which("node"):
                return "node is not installed"
            return "" if (HERE / "servers" / "node.js").exists() else "servers/node.js is missing"
        return "" if self.program(server.program).exists() else f"bench-{server.program} is not built"

    def start(self, servers, work, upstream=0, connections=0, prefix=(), processor=None, variants=True):
        """(those that run, {name: why not})."""
        running, absent = [], {}
        for server in servers:
            if why := self.missing(server):
                absent[server.name] = why
                continue
            program = (
                ["node", HERE / "servers" / "node.js"] if server.program == "node" else [self.program(server.program)]
            )
            port = self.port()
            command = [*prefix, *program, work, port, "--variant", server.variant]
            command += ["--upstream", upstream] if upstream else []
            command += ["--connections", connections] if connections else []
            running.append(Running(server, port, command, self.cpu if processor is None else processor))
        deadline = time.monotonic() + READY_S * (4 if prefix else 1)
        for one in list(running):
            why = one.wait_ready(deadline)
            if why:
                absent[one.name] = self.reasons[one.name] = why
                self.is_wrong |= not why.startswith("not here")
                one.stop()
                running.remove(one)
            else:
                self.backends[one.name] = one.backend
        return running, absent

    def load_command(self, *arguments):
        return pinned(self.load_cpu, [self.program("load"), *arguments])


def stop(running):
    for one in running:
        one.stop()


def target(one):
    return ["--server", f"{one.name}:{one.port}:{one.pid}"]


# ---- the load -------------------------------------------------------------------------------------------------


class Load:
    """The load generator: gives what it prints, and takes what it is told."""

    def __init__(self, fleet, *arguments):
        self.errors, self.rest = tempfile.TemporaryFile("w+"), b""
        self.process = subprocess.Popen(
            fleet.load_command(*arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors
        )

    def tell(self, line):
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Trouble(f"the load has ended: {self.complaint()}") from None

    def said(self, timeout_s=60):
        """The next object, or None at the end."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self.rest:
            if not select.select([self.process.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise Trouble(f"the load says nothing for {timeout_s} s")
            some = os.read(self.process.stdout.fileno(), 1 << 16)
            if not some:
                return None
            self.rest += some
        line, _, self.rest = self.rest.partition(b"\n")
        return json.loads(line)

    def expect(self, state):
        found = self.said()
        if not found or found.get("state") != state:
            raise Trouble(f"the load does not get to '{state}': {found or self.complaint()}")

    def complaint(self):
        self.errors.seek(0)
        return self.errors.read().strip()

    def end(self):
        """(its status, what it complained of)."""
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            status = self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        complaint = self.complaint()
        self.process.stdout.close()
        self.errors.close()
        return status, complaint

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Whatever went wrong, it does not stay."""
        if self.process.returncode is None:
            self.process.kill()
            self.end()


def slices(fleet, arguments, running, on_slice):
    """(the slices, bytes verified, what went wrong)."""
    found, verified, is_done = [], 0, False
    with Load(fleet, *arguments, *[word for one in running for word in target(one)]) as load:
        try:
            while said := load.said():
                if "slice" in said:
                    found.append(said["slice"])
                    on_slice(said["slice"])
                elif "done" in said:
                    is_done, verified = True, said["done"].get("verified_bytes", 0)
        except Trouble as trouble:
            return found, verified, str(trouble)
        status, complaint = load.end()
    if status != 0 or not is_done:
        return found, verified, complaint or f"the load ended with {status}"
    return found, verified, ""
