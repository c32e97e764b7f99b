#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Boots Debian's cloud kernels under QEMU, without KVM, and runs weir's test programs on each.

    run.py --build DIRECTORY --mirror URI [--security URI] [--ci] [--only TEXT]... [--test REGEX]... [--jobs N] [--times N]
           [--log FILE]
    run.py --self-test

Each kernel boots with an initramfs that holds the tests of the suites unit, api, kernel and conformance, the libraries
they need, and busybox; there is no disk and no network but the loopback. The machine has 512 MiB and one processor, some
ten times slower than a real one. A mode that a kernel cannot have is skipped, but what it can have is known here
(expected_mode): a kernel on which weir makes do with less than that has failed.

--ci takes three of the kernels, and of the tests those of unit and conformance, in less than three minutes on two idle
processors; --only takes kernels with TEXT in their name. --log writes what Meson would, for tests/tally.py. Prints the
failures, then a table, then one line:

    kernels: ok kernels=N passed=N failed=0 skipped=N
"""

import argparse
import concurrent.futures
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

sys.dont_write_bytecode = True
sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(__file__).resolve().parents[1])]
import packages  # noqa: E402
import tally  # noqa: E402

SUITES = {"unit", "api", "kernel", "conformance"}
CI_SUITES = {"unit", "conformance"}
MEMORY_MIB = 512
MACHINES = 2  # at a time
MACHINE_S = 1500  # from power on to power off
SLOWER = 6  # a test may take so many times its limit on a real machine
PATIENCE_S = 90  # of a test that waits for something to happen
TAIL = 25  # lines of a console or of a test's output

# What says nothing under emulation.
LEFT_OUT = {
    "defaults": "reads the headers, which are not there",
    "chain-unit": "computes for long, and nothing of it is the kernel's",
    "pool-random": "likewise",
    "pool-reserve": "likewise",
}

# What --ci has no time for: they compute on a scripted edge, and no kernel hears of them.
CI_LEFT_OUT = {"heap", "pool", "pool-budget", "sendq", "sendq-mark", "sendq-short", "slice", "slice-threads"}

# Besides what Meson runs alone: they fill the kernel's memory for sockets, which is little here, and the kernel then resets
# connections, whoever's they are; or two threads of theirs wait for each other, and with others on the one processor long.
ALONE = {"churn", "integrity", "workers", "two-loops"}

# What stands for the suite "conformance" in --ci in a tree that has none.
CI_INSTEAD = {"stream-read", "stream-write", "stream-end", "pipe", "metered", "loop-watch"}

# Of each the newest or the oldest package to be had; which of the alternatives there is; settings.
MATRIX = [
    # (series to choose from, which, is one of --ci, sysctls, run as)
    (["6.1"], "newest", True, [], ""),
    (["6.12"], "oldest", False, [], ""),
    (["6.12"], "newest", True, [], ""),
    (["6.16"], "newest", False, [], ""),
    (["6.18"], "newest", False, [], ""),
    (["6.18"], "newest", False, ["kernel.io_uring_disabled=1"], "weir"),  # root may have it
    (["6.18"], "newest", False, ["kernel.io_uring_disabled=2"], ""),
    (["7.1", "7.0"], "newest", False, [], ""),
    ([""], "newest", True, [], ""),
]


def say(text):
    print(f"kernels: {text}", file=sys.stderr, flush=True)


def expected_mode(release, sysctls):
    if sysctls:
        return "epoll"
    version = packages.numbers(release)[:3]
    return "incremental" if version >= [6, 15] or version[:2] == [6, 12] and version[2] >= 31 else "classic"


# ---- what runs ------------------------------------------------------------------------------------------------


class Test:
    def __init__(self, entry):
        self.name = entry["name"]
        self.program = pathlib.Path(entry["cmd"][0])
        self.suites = {suite.split(":")[-1] for suite in entry["suite"]}
        self.mode = entry["env"].get("WEIR_TEST_MODE", "auto")
        self.is_alone = not entry["is_parallel"] or self.program.name.removeprefix("test-") in ALONE
        self.limit_s = entry["timeout"] * SLOWER

    def is_wanted(self, suites):
        return self.suites & suites and "slow" not in self.suites and self.name not in LEFT_OUT


def tests_of(build, is_ci):
    listed = subprocess.run(["meson", "introspect", "--tests", build], stdout=subprocess.PIPE, text=True, check=True)
    tests = [Test(entry) for entry in json.loads(listed.stdout) if len(entry["cmd"]) == 1]
    wanted = [test for test in tests if test.is_wanted(CI_SUITES if is_ci else SUITES)]
    if is_ci:
        wanted = [test for test in wanted if test.name not in CI_LEFT_OUT]
        if not any("conformance" in test.suites for test in wanted):
            programs = {f"test-{name}" for name in CI_INSTEAD}
            wanted += [test for test in tests if test.program.name in programs]
    return wanted


def libraries_of(programs):
    """{path in the machine: path here} of the dynamic linker and of what it looks for: in /lib, too."""
    found = {}
    for program in programs:
        listed = subprocess.run(["ldd", program], stdout=subprocess.PIPE, text=True, check=True).stdout
        for name, path in re.findall(r"^\s*(?:(\S+) => )?(/\S+) \(0x", listed, re.MULTILINE):
            found[f"/lib/{name}" if name else path] = pathlib.Path(path).resolve()
    return found


class Archive:
    """An initramfs: cpio's "newc" format, which the kernel unpacks."""

    def __init__(self):
        self.parts, self.known, self.number = [], set(), 0

    def entry(self, name, mode, data):
        self.number += 1
        fields = [self.number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        for part in head, data:
            self.parts.append(part + b"\0" * (-len(part) % 4))

    def directory(self, path):
        if path not in self.known and path != "":
            self.directory(path.rpartition("/")[0])
            self.known.add(path)
            self.entry(path, 0o040755, b"")

    def file(self, path, data, mode=0o755):
        path = path.lstrip("/")
        self.directory(path.rpartition("/")[0])
        self.entry(path, 0o100000 | mode, data)

    def data(self):
        self.entry("TRAILER!!!", 0, b"")
        return b"".join(self.parts)


def stripped(program):
    """Without what a debugger reads: it would fill the small machine's memory."""
    with tempfile.NamedTemporaryFile() as small:
        if shutil.which("strip") and subprocess.run(["strip", "-o", small.name, program]).returncode == 0:
            return pathlib.Path(small.name).read_bytes()
    return program.read_bytes()


class Image:
    """What all machines have in common; the list of tests and the settings are each one's own archive, behind it."""

    def __init__(self, build, tests):
        mode = build / "tests" / "kernels-mode"
        programs = sorted({test.program for test in tests})
        base = Archive()
        for directory in "proc", "sys", "dev", "tmp", "bin", "tests", "etc":
            base.directory(directory)
        base.file("init", (pathlib.Path(__file__).parent / "init.sh").read_bytes())
        base.file("bin/busybox", pathlib.Path(shutil.which("busybox")).read_bytes())
        base.file("etc/passwd", b"root:x:0:0::/:/bin/sh\nweir:x:1000:1000::/:/bin/sh\n", 0o644)
        base.file("tests/mode", stripped(mode))
        for program in programs:
            base.file(f"tests/{program.name}", stripped(program))
        for path, source in sorted(libraries_of([mode, *programs]).items()):
            base.file(path, source.read_bytes())
        self.base = base.data()

    def write(self, path, tests, settings):
        own = Archive()
        twins = {test.program for test in tests if test.mode == "auto"}
        lines = [f"{test.name} {'alone' if test.is_alone else 'along'} {test.mode} "
                 f"{'twin' if test.program in twins else 'single'} {test.limit_s} /tests/{test.program.name}\n"
                 for test in tests]
        own.file("tests/list", "".join(lines).encode(), 0o644)
        own.file("tests/settings", "".join(f"{key}='{value}'\n" for key, value in settings.items()).encode(), 0o644)
        path.write_bytes(self.base + own.data())


# ---- a machine ------------------------------------------------------------------------------------------------


class Machine:
    def __init__(self, name, package, is_ci, sysctls, run_as):
        self.name, self.package, self.is_ci, self.sysctls, self.run_as = name, package, is_ci, sysctls, run_as
        self.passed = self.failed = self.skipped = self.seconds = 0
        self.mode, self.release, self.reason, self.failures = "-", "", "", []
        self.durations, self.log = {}, []

    def note(self, name, result, output):
        self.log.append({"name": f"{self.name} {name}", "result": result, "stdout": "\n".join(output)})

    def fail(self, name, output):
        self.failed += 1
        self.note(name, "FAIL", [])
        self.failures.append((name, output[-TAIL:]))

    def boot(self, kernel, image, tests, jobs, scratch, logs):
        begun = time.monotonic()
        if self.sysctls:
            tests = [test for test in tests if test.mode in ("auto", "epoll")]
        initramfs = pathlib.Path(scratch, re.sub(r"\W", "_", self.name))
        image.write(initramfs, tests, {"JOBS": jobs, "PATIENCE_S": PATIENCE_S, "SYSCTLS": " ".join(self.sysctls),
                                       "RUN_AS": self.run_as})
        # It does not outlive us.
        command = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-M", "microvm,acpi=off", "-cpu", "max", "-m", str(MEMORY_MIB), "-nodefaults",
                   "-no-reboot", "-serial", "stdio", "-display", "none", "-kernel", str(kernel), "-initrd", str(initramfs),
                   "-append", "console=ttyS0 reboot=t panic=-1 loglevel=1"]
        log = logs / f"{initramfs.name}.log"
        with open(log, "wb", buffering=0) as out:
            ended = watch(command, begun + MACHINE_S, out)
        initramfs.unlink()
        self.seconds = time.monotonic() - begun
        console = log.read_text(encoding="utf-8", errors="replace").replace("\r", "").split("\n")
        self.read(console, {test.name for test in tests}, ended)

    def read(self, console, unheard, ended):
        """What came of each test, from what the machine said; a test that it said nothing of has failed."""
        test, output, is_done = None, [], False
        for line in console:
            word, _, rest = line[3:].partition(" ") if line.startswith("@@ ") else ("", "", "")
            if word == "kernel":
                self.release = rest
            elif word == "mode":
                asked, got, why = (rest + "  ").split(" ", 2)
                if asked == "auto":
                    self.mode, self.reason = got, why.strip()
            elif word == "unset":
                self.fail(f"sysctl {rest}", [])
            elif word == "skip":
                self.skipped += 1
                self.note(rest, "SKIP", [])
                unheard.discard(rest)
            elif word == "same":
                unheard.discard(rest)
            elif word == "begin":
                test, output = rest, []
            elif word == "end" and test:
                _, status, ticks = rest.split()
                self.durations[test] = int(ticks) / 100
                self.count(test, output, int(status))
                unheard.discard(test)
                test = None
            elif word == "done":
                is_done = True
            else:
                output.append(line)
        if not is_done:
            self.fail("(the machine)", console + [f"({ended})"])
        elif unheard:
            self.fail("(not run)", sorted(unheard))
        expected = expected_mode(self.release, self.sysctls)
        if self.mode != expected:
            self.fail("(mode)", [f"AUTO chose {self.mode}, not {expected}: {self.reason}"])

    def count(self, name, output, status):
        result = {0: "OK", 77: "SKIP", 137: "TIMEOUT"}.get(status, "FAIL")
        self.note(name, result, output)
        passed, failed, skipped = tally.count(self.log[-1])
        self.passed += passed
        self.skipped += skipped
        if failed:
            first = next((i for i, line in enumerate(output) if line.startswith("not ok")), len(output))
            self.failed += len(failed)
            shown = output[max(0, first - 8):][:TAIL] + [f"(exit status {status})"]
            self.failures.append((f"{name}: {', '.join(failed)}", shown))

    def row(self):
        return [self.name, self.mode, str(self.passed), str(self.failed), str(self.skipped), f"{self.seconds:.0f} s"]


def watch(command, deadline, log):
    """How it ended. What it says goes to @log at once."""
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    ended = "it took too long"
    while time.monotonic() < deadline:
        if select.select([machine.stdout], [], [], 1)[0]:
            some = os.read(machine.stdout.fileno(), 1 << 16)
            if not some:
                ended = f"qemu ended with {machine.wait()}"
                break
            log.write(some)
    machine.kill()
    machine.wait()
    return ended


def self_test():
    """What a machine may say, and what is to be made of it."""
    start = ["@@ kernel 6.18.15+deb13-cloud-amd64", "@@ mode auto incremental"]
    good = ["@@ begin a", "1..2", "ok 1 - x", "ok 2 - y", "", "@@ end a 0 50"]
    epoll = ["@@ kernel 6.18.15", "@@ mode auto epoll why"]
    wrong = 0
    cases = [
        ("all_pass", [], start + good + ["@@ done"], (2, 0, 0)),
        ("one_fails", [], start + ["@@ begin a", "1..1", "not ok 1 - x", "@@ end a 1 5", "@@ done"], (0, 1, 0)),
        ("time_out", [], start + ["@@ begin a", "1..2", "ok 1 - x", "@@ end a 137 5", "@@ done"], (1, 1, 0)),
        ("without_its_mode", [], start + ["@@ skip a", "@@ done"], (0, 0, 1)),
        ("not_run", [], start + ["@@ done"], (0, 1, 0)),
        ("panic_in_a_test", [], start + ["@@ begin a", "ok 1 - x", "Kernel panic - not syncing"], (0, 1, 0)),
        ("panic_at_the_end", [], start + good + ["Kernel panic - not syncing"], (2, 1, 0)),
        ("does_not_boot", [], ["No space left"], (0, 2, 0)),
        ("a_lesser_mode", [], epoll + good + ["@@ done"], (2, 1, 0)),
        ("forbidden", ["kernel.io_uring_disabled=2"], epoll + good + ["@@ done"], (2, 0, 0)),
        ("not_forbidden", ["kernel.io_uring_disabled=2"], start + good + ["@@ done"], (2, 1, 0)),
        ("setting_refused", ["a=b"], ["@@ unset a=b"] + epoll + good + ["@@ done"], (2, 1, 0)),
    ]
    for number, (name, sysctls, console, wanted) in enumerate(cases, 1):
        machine = Machine(name, None, False, sysctls, "")
        machine.read(console, {"a"}, "ended")
        found = (machine.passed, machine.failed, machine.skipped)
        logged = [tally.count(line) for line in machine.log]
        if (sum(n for n, _, _ in logged), sum(len(n) for _, n, _ in logged), sum(n for _, _, n in logged)) != found:
            found = "what is logged is not what is counted"
        wrong += found != wanted
        print(f"{'ok' if found == wanted else 'not ok'} {number} - {name}")
    print(f"1..{len(cases)}")
    return 1 if wrong else 0


# ---- all of them ------------------------------------------------------------------------------------------------


def matrix(found, options):
    """The machines, and the names of those that are not to be had."""
    machines, missing = [], []
    for series, which, is_ci, sysctls, run_as in MATRIX:
        picked = [package for package in (packages.pick(found, one, which) for one in series) if package]
        settings = "".join(f" {setting.rpartition('.')[2]}" for setting in sysctls)
        version = picked[0]["version"].partition("-")[0] if picked else f"{series[0]} ({which})".lstrip()
        name = version + settings
        if options.ci and not is_ci or options.only and not any(text in name for text in options.only):
            continue
        if picked:
            machines.append(Machine(name, picked[0], is_ci, sysctls, run_as))
        else:
            missing.append((name, "the mirror has no such package"))
    return machines, missing


def table(machines, missing, out):
    for machine in machines:
        for name, output in machine.failures:
            print(f"\n{machine.name}: FAILED {name}", file=out)
            for line in output:
                print(f"    {line}", file=out)
    rows = [["kernel", "auto", "passed", "failed", "skipped", "time"]] + [machine.row() for machine in machines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print(file=out)
    for row in rows:
        cells = [cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))]
        print("  ".join(cells), file=out)
    for name, why in missing:
        print(f"{name.ljust(widths[0])}  skipped: {why}", file=out)
    passed = sum(machine.passed for machine in machines)
    failed = sum(machine.failed for machine in machines)
    skipped = sum(machine.skipped for machine in machines) + len(missing)
    good = passed > 0 and failed == 0
    print(f"kernels: {'ok' if good else 'FAILED'} kernels={len(machines)} passed={passed} failed={failed} "
          f"skipped={skipped}", file=out)
    return 0 if good else 1


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--mirror", default="")
    parser.add_argument("--security", default="")
    parser.add_argument("--ci", action="store_true")
    parser.add_argument("--only", action="append")
    parser.add_argument("--jobs", type=int, default=3)
    parser.add_argument("--test", action="append", help="a regular expression")
    parser.add_argument("--log", type=pathlib.Path, help="a file to write, a line of JSON a test")
    parser.add_argument("--times", type=int, default=0, help="the slowest programs of each kernel")
    options = parser.parse_args()
    build = options.build.resolve()

    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "weir" / "kernels"
    cache.mkdir(parents=True, exist_ok=True)
    try:
        found = packages.index(cache, options.mirror, options.security, say)
    except packages.Unavailable as reason:
        say(str(reason))
        found = []
    machines, missing = matrix(found, options)
    tests = tests_of(build, options.ci)
    if options.test:
        tests = [test for test in tests if any(re.fullmatch(pattern, test.name) for pattern in options.test)]
    image = Image(build, tests)
    ran = []
    logs = build / "kernels"  # what each machine said
    logs.mkdir(exist_ok=True)

    def one(machine, scratch):
        try:
            kernel = packages.kernel(cache, machine.package)
        except packages.Unavailable as reason:
            missing.append((machine.name, str(reason)))
            return
        machine.boot(kernel, image, tests, options.jobs, scratch, logs)
        ran.append(machine)
        say(f"{machine.name}: {machine.mode}, {machine.passed} passed, {machine.failed} failed, "
            f"{machine.skipped} skipped in {machine.seconds:.0f} s")

    with tempfile.TemporaryDirectory(prefix="weir-kernels-") as scratch:
        with concurrent.futures.ThreadPoolExecutor(MACHINES) as pool:
            for done in [pool.submit(one, machine, scratch) for machine in machines]:
                done.result()
    if options.times:
        for machine in machines:
            slowest = sorted(machine.durations.items(), key=lambda item: -item[1])
            print(machine.name, "".join(f" {name} {seconds:.1f}" for name, seconds in slowest[: options.times]))
    if options.log:
        lines = [line for machine in ran for line in machine.log]
        lines += [{"name": f"{name}: {why}", "result": "SKIP"} for name, why in missing]
        options.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return table([machine for machine in machines if machine in ran], missing, sys.stdout)


if __name__ == "__main__":
    sys.exit(self_test() if sys.argv[1:] == ["--self-test"] else main())
