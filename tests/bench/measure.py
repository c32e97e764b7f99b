# SPDX-License-Identifier: MIT
"""What noise cannot touch: instructions and allocations of a server (callgrind), its system calls (perf), and memory.

Instructions: the server runs under callgrind, a client with 50 connections sends to all and then reads from all.
Once the server is warm the counters are set to zero, N messages are echoed, and what was counted is dumped; then 2
N. The difference is N messages and nothing else. Received kilobytes likewise, in the workload sink.

System calls: raw_syscalls:sys_enter of the server's process; at one connection while a client (this file, run as a
program) sends it so many messages, and three times as many; at 50 while the load runs on it, briefly and for long. A
difference is free of connecting, warming up and ending.

Memory of the process: pages that are its own (Private_Clean + Private_Dirty of smaps_rollup). Of the kernel: Slab of
/proc/meminfo and the sockets' buffers of /proc/net/sockstat: of both ends of each connection, and of the whole machine.
"""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import fleet as fleets

MESSAGE, CONNECTIONS = 64, 50
ECHOES = 2000  # of one connection
ROUNDS = 40  # so many times 50 messages are N
WRITE, WRITES, SINKS = 65536, 16, 8  # so many writes on so many connections are N of sink
ALLOCATORS = re.compile(
    r"^(__libc_)?(malloc|calloc|realloc|reallocarray|memalign|aligned_alloc|posix_memalign)$"
    r"|^mi_(?!.*free)\w*(alloc|new|strdup)\w*$|^operator new|^_Zn[wa]"
)


# ---- callgrind ------------------------------------------------------------------------------------------------


def counted(text):
    """(instructions, allocations) of a callgrind dump. An allocator's own calls of another are not counted again."""
    names, total, allocations, caller = {}, 0, 0, ""

    def name(field):
        number, _, spelled = field.partition(" ")
        if spelled:
            names[number] = spelled
        return re.sub(r"'\d+$", "", names.get(number, number))

    callee = ""
    for line in text.splitlines():
        key, _, rest = line.partition("=")
        if key == "fn":
            caller = name(rest)
        elif key == "cfn":
            callee = name(rest)
        elif key == "calls" and ALLOCATORS.search(callee) and not ALLOCATORS.search(caller):
            allocations += int(rest.split()[0])
        elif line.startswith("summary:"):
            total = int(line.split()[1])
    return total, allocations


class Callgrind:
    def __init__(self, directory):
        self.out = pathlib.Path(directory, "out")
        self.prefix = ["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={self.out}"]
        self.dumps = 0

    def command(self, pid, word):
        done = subprocess.run(
            ["vgdb", f"--pid={pid}", word], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
        )
        if done.returncode != 0:
            raise fleets.Trouble(f"vgdb {word}: {done.stdout.strip()}")

    def count(self, pid, work):
        """What @work costs, and what is asked of the allocator meanwhile."""
        self.command(pid, "zero")
        work()
        self.command(pid, "dump")
        self.dumps += 1
        return counted(pathlib.Path(f"{self.out}.{self.dumps}").read_text(errors="replace"))

    def difference(self, pid, work):
        once = self.count(pid, lambda: work(1))
        twice = self.count(pid, lambda: work(2))
        return twice[0] - once[0], twice[1] - once[1]


def connect(port, number):
    made = []
    for _ in range(number):
        made.append(socket.create_connection(("127.0.0.1", port), 10))
        made[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def echo(connections, rounds):
    message = bytes(range(MESSAGE))
    for _ in range(rounds):
        for one in connections:
            one.sendall(message)
        for one in connections:
            got = b""
            while len(got) < MESSAGE:
                some = one.recv(MESSAGE - len(got))
                if not some:
                    raise fleets.Trouble("the server closed a connection")
                got += some
            if got != message:
                raise fleets.Trouble("the echo differs")


def wait_read(port):
    """Until the server has read what it was sent."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        waiting = 0
        for line in open("/proc/net/tcp").readlines()[1:]:
            fields = line.split()
            sent, received = (int(part, 16) for part in fields[4].split(":"))
            if fields[3] == "01":
                waiting += received if fields[1].endswith(f":{port:04X}") else 0
                waiting += sent if fields[2].endswith(f":{port:04X}") else 0
        if not waiting:
            time.sleep(0.05)
            return
        time.sleep(0.005)
    raise fleets.Trouble("the server does not read")


def sink(connections, port, writes):
    block = bytes(WRITE)
    for _ in range(writes):
        for one in connections:
            one.sendall(block)
    wait_read(port)


def under_callgrind(fleet, server, work, measured):
    """What @measured(callgrind, running) says of a server that runs @work, or {"reason"}."""
    with tempfile.TemporaryDirectory(prefix="weir-bench-") as directory:
        callgrind = Callgrind(directory)
        running, absent = fleet.start([server], work, prefix=callgrind.prefix)
        if not running:
            return {"reason": absent[server.name]}
        try:
            return measured(callgrind, running[0])
        except (OSError, fleets.Trouble, subprocess.TimeoutExpired) as why:
            return {"reason": str(why), "failed": True}
        finally:
            fleets.stop(running)


def of_messages(callgrind, one):
    connections = connect(one.port, CONNECTIONS)
    echo(connections, ROUNDS)
    instructions, allocations = callgrind.difference(one.pid, lambda times: echo(connections, times * ROUNDS))
    messages = ROUNDS * CONNECTIONS
    return {"message": instructions / messages, "allocations": allocations / messages}


def of_kilobytes(callgrind, one):
    connections = connect(one.port, SINKS)
    sink(connections, one.port, 2)
    instructions, _ = callgrind.difference(one.pid, lambda times: sink(connections, one.port, times * WRITES))
    return {"kib": instructions / (WRITES * SINKS * WRITE / 1024)}


def instructions(fleet, server):
    if not shutil.which("valgrind") or not shutil.which("vgdb"):
        return {"reason": "valgrind is not installed"}
    if server.program == "node":
        return {"reason": "compiles itself as it runs, which callgrind cannot follow"}
    found = under_callgrind(fleet, server, "echo", of_messages)
    return found if "reason" in found else found | under_callgrind(fleet, server, "sink", of_kilobytes)


# ---- system calls ---------------------------------------------------------------------------------------------


def perf_count(text):
    """The count in perf stat's -x, output, or None."""
    for line in text.splitlines():
        fields = line.split(",")
        if len(fields) > 2 and "sys_enter" in fields[2]:
            return int(fields[0]) if fields[0].isdigit() else None
    return None


def perf_complaint(text):
    """The line that says why, of the many that perf writes."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [
        line
        for line in lines
        if re.search(r"permission|not supported|unknown|can't|cannot|No such", line, re.IGNORECASE)
    ]
    return [*telling, *lines, "counts nothing"][0]


def under_perf(one, command):
    """(system calls of the server while @command runs, what that prints)."""
    with tempfile.NamedTemporaryFile("r") as out:
        perf = ["perf", "stat", "-x,", "-o", out.name, "-e", "raw_syscalls:sys_enter", "-p", one.pid, "--", *command]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        done = subprocess.run(list(map(str, perf)), text=True, timeout=60, **pipes)
        calls = perf_count(out.read())
    if calls is None or done.returncode != 0:
        raise fleets.Trouble(f"perf: {perf_complaint(done.stderr)}")
    return calls, done.stdout


def calls_of_one(fleet, one):
    """One connection's are counted exactly: so many echoes, and three times as many."""
    client = fleets.pinned(fleet.load_cpu, [sys.executable, "-B", __file__, one.port])
    few, many = (under_perf(one, [*client, rounds])[0] for rounds in (ECHOES, 3 * ECHOES))
    return (many - few) / (2 * ECHOES)


def calls_of_many(fleet, one, connections):
    """How many echoes share a call is a matter of the pace, so the load sets it."""
    counts = []
    for slice_ms in 150, 900:
        what = (
            f"--workload echo --connections {connections} --size {MESSAGE} --depth 1 --rounds 1 --slice-ms {slice_ms}"
        )
        calls, said = under_perf(one, fleet.load_command(*what.split(), *fleets.target(one)))
        counts.append((calls, sum(int(number) for number in re.findall(r'"operations": *(\d+)', said))))
    (few, brief), (many, long) = counts
    return (many - few) / (long - brief)


def system_calls(fleet, server, connections):
    """System calls an echo, or {"reason"}."""
    if not shutil.which("perf"):
        return {"reason": "perf is not installed"}
    running, absent = fleet.start([server], "echo")
    if not running:
        return {"reason": absent[server.name]}
    try:
        one = running[0]
        found = calls_of_one(fleet, one) if connections == 1 else calls_of_many(fleet, one, connections)
        return {str(connections): found}
    except (OSError, fleets.Trouble, subprocess.TimeoutExpired, ZeroDivisionError) as why:
        return {"reason": str(why)}
    finally:
        fleets.stop(running)


# ---- memory ---------------------------------------------------------------------------------------------------


def private_bytes(pid):
    text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * sum(int(number) for number in re.findall(r"^Private_(?:Clean|Dirty): +(\d+)", text, re.MULTILINE))


def kernel_bytes():
    slab = int(re.search(r"^Slab: +(\d+)", pathlib.Path("/proc/meminfo").read_text(), re.MULTILINE)[1]) * 1024
    pages = re.search(r"^TCP: .* mem (\d+)", pathlib.Path("/proc/net/sockstat").read_text(), re.MULTILINE)[1]
    return slab + int(pages) * os.sysconf("SC_PAGE_SIZE")


def settled(pid):
    """Its own bytes, when they do not change any more; at most two seconds are waited."""
    last = -1
    for _ in range(8):
        time.sleep(0.25)
        now = private_bytes(pid)
        if now == last:
            break
        last = now
    return now


def note(entry, one, state):
    entry[state] = settled(one.pid)
    entry[f"kernel_{state}"] = kernel_bytes()


def warm(fleet, one, work):
    """A few connections touch what the server has once, however many there will be."""
    with fleets.Load(fleet, "--workload", work, "--connections", 64, *fleets.target(one)) as load:
        load.expect("connected")
        load.tell("send 1024" if work == "hold" else "burst 65536")
        load.expect("sent" if work == "hold" else "burst")
        load.tell("quit")
        load.expect("closed")
        load.end()


def with_connections(fleet, one, work, connections, steps):
    """The process's bytes cold, warm, with all connections, and after each of @steps: (what to tell, the state)."""
    entry = {"connections": connections}
    note(entry, one, "cold")
    warm(fleet, one, work)
    note(entry, one, "warm")
    with fleets.Load(fleet, "--workload", work, "--connections", connections, *fleets.target(one)) as load:
        load.expect("connected")
        note(entry, one, "connected")
        for words, state in steps:
            load.tell(words)
            load.expect(state)
            time.sleep(1)  # what is given back, is given back in its own time
            note(entry, one, state)
        load.tell("quit")
        load.expect("closed")
        load.end()
    return entry


def guarded(fleet, server, work, measured, **more):
    running, absent = fleet.start([server], work, **more)
    if not running:
        return {"reason": absent[server.name]}
    try:
        return measured(running[0])
    except (OSError, fleets.Trouble) as why:
        return {"reason": str(why), "failed": True}
    finally:
        fleets.stop(running)


def idle(fleet, server, connections, counts):
    """Idle connections: @connections of them also after a burst, and [connections, bytes beyond warm] of each count."""
    series = []
    for count in counts:
        entry = guarded(
            fleet, server, "echo", lambda one, n=count: with_connections(fleet, one, "idle", n, []), connections=count
        )
        if "reason" in entry:
            return entry
        series.append([count, entry["connected"] - entry["warm"]])
    entry = guarded(
        fleet,
        server,
        "echo",
        lambda one: with_connections(fleet, one, "idle", connections, [("burst 1024", "burst")]),
        connections=connections,
    )
    if "reason" not in entry:
        entry["series"] = [*series, [connections, entry["connected"] - entry["warm"]]]
    return entry


def hold(fleet, server, connections, size):
    entry = guarded(
        fleet,
        server,
        "hold",
        lambda one: with_connections(fleet, one, "hold", connections, [(f"send {size}", "sent")]),
        connections=connections,
    )
    return entry | {"held": connections * size}


def slow(fleet, server, rate, seconds):
    """A sender at full speed through the server to a reader at @rate bytes a second: what the process holds at most."""
    upstream = fleet.port()

    def measured(one):
        entry = {"warm": settled(one.pid), "rate": rate, "peak": 0, "samples": []}
        what = f"--workload slow --connections 1 --upstream-port {upstream} --rate {rate} --seconds {seconds}"
        with fleets.Load(fleet, *what.split(), *fleets.target(one)) as load:
            load.expect("listening")
            load.tell("go")
            while said := load.said():
                if "sample" in said:
                    entry["samples"].append(said["sample"] | {"private": private_bytes(one.pid)})
            status, complaint = load.end()
        if status != 0 or not entry["samples"]:
            raise fleets.Trouble(complaint or f"the load ended with {status}")
        entry["peak"] = max(sample["private"] for sample in entry["samples"])
        entry["under_way"] = max(sample["sent"] - sample["received"] for sample in entry["samples"])
        return entry

    return guarded(fleet, server, "proxy", measured, upstream=upstream)


if __name__ == "__main__":
    echo(connect(int(sys.argv[1]), 1), int(sys.argv[2]))
