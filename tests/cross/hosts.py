#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Configures weir for machines that it does not run on, and wants to be told so, clearly and before anything is built.

    hosts.py SOURCE_ROOT MESON

What the machine is, a cross file says; what it compiles for, the compiler at hand. Prints TAP.
"""

import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile

root = pathlib.Path(sys.argv[1]).resolve()
meson = sys.argv[2:]
SUPPORTED = "64-bit little-endian Linux"

CROSS = """
[binaries]
c = {compiler}
ar = 'ar'
strip = 'strip'
pkgconfig = 'pkg-config'
[host_machine]
system = '{system}'
cpu_family = '{family}'
cpu = '{family}'
endian = '{endian}'
"""


def compiles(command):
    """Not to a program: libraries for it need not be there."""
    text = "_Static_assert(sizeof(void *) == 4, \"\");\n"
    done = subprocess.run([*command, "-fsyntax-only", "-x", "c", "-"], input=text, text=True, capture_output=True)
    return done.returncode == 0


def configure(scratch, compiler, family, endian, system="linux"):
    """(did it succeed, what it said)."""
    cross = scratch / "cross.ini"
    cross.write_text(CROSS.format(compiler=repr(compiler), family=family, endian=endian, system=system), encoding="utf-8")
    command = [*meson, "setup", scratch / "build", root, f"--cross-file={cross}", "--wrap-mode=nodownload"]
    command += ["-Dallocator=libc", "-Dtests=disabled", "-Dexamples=disabled"]
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode == 0, f"$ {shlex.join(str(c) for c in command)}\n{done.stdout}"


def is_refused(said, words):
    """By us, for the right reason: no missing library, no other sentence."""
    errors = [line for line in said.splitlines() if "ERROR: " in line]
    return len(errors) == 1 and all(word in errors[0] for word in [*words, SUPPORTED])


def main():
    compiler = shutil.which("cc") or shutil.which("gcc")
    narrow = [compiler, "-m32"]
    no_narrow = "the compiler makes no 32-bit code" if not compiles(narrow) else None
    cases = [
        # Meson tries whether the compiler works, and never runs what it makes for another machine.
        ("a_big_endian_machine", [compiler], ("s390x", "big"), ["s390x", "big-endian"], None),
        ("a_32_bit_machine", narrow, ("x86", "little"), ["x86", "32-bit"], no_narrow),
        ("a_32_bit_big_endian_machine", narrow, ("ppc", "big"), ["ppc", "big-endian"], no_narrow),
        ("another_system", [compiler], ("x86_64", "little", "freebsd"), ["freebsd"], None),
        # That it is the machine which was refused above, and not the way it was asked for.
        ("this_machine_described_likewise", [compiler], ("x86_64", "little"), None, None),
    ]
    failed = 0
    print(f"1..{len(cases)}")
    for number, (name, command, machine, words, why_not) in enumerate(cases, 1):
        if why_not is not None:
            print(f"ok {number} # SKIP {name}: {why_not}")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            succeeded, said = configure(pathlib.Path(scratch), command, *machine)
        good = succeeded if words is None else not succeeded and is_refused(said, words)
        failed += not good
        print(f"{'ok' if good else 'not ok'} {number} - {name}", flush=True)
        if not good:
            print("\n".join(f"# {line}" for line in said.splitlines()), flush=True)
    return 1 if failed else 0


sys.exit(main())
