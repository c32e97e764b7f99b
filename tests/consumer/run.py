#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Builds tests/consumer as a stranger would, and runs it: with weir as a Meson subproject, and with an installed weir
found by pkg-config, shared and static.

    run.py SOURCE_ROOT MESON

Prints TAP.
"""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile

root = pathlib.Path(sys.argv[1]).resolve()
meson = sys.argv[2:]
consumer = root / "tests/consumer"
count = failed = 0


class Failed(Exception):
    pass


def run(command, **options):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode != 0:
        raise Failed(f"$ {shlex.join(str(c) for c in command)}\n{done.stdout}exit status {done.returncode}")
    return done.stdout


def case(name, function, *arguments):
    global count, failed
    count += 1
    try:
        function(*arguments)
        print(f"ok {count} - {name}", flush=True)
    except Failed as failure:
        failed += 1
        print(f"not ok {count} - {name}")
        for line in str(failure).splitlines():
            print(f"# {line}", flush=True)


def subproject(scratch):
    project, build = scratch / "project", scratch / "project/build"
    project.mkdir()
    for name in ("meson.build", "consumer.c"):
        shutil.copy(consumer / name, project)
    (project / "subprojects").mkdir()
    (project / "subprojects/weir").symlink_to(root)
    run([*meson, "setup", build, project])
    run(["ninja", "-C", build])
    for unwanted in ("tests", "examples"):
        if any((build / "subprojects/weir").glob(f"{unwanted}/*")):
            raise Failed(f"a subproject builds weir's {unwanted}")
    run([build / "consumer"], timeout=30)


def install(scratch, prefix):
    build = scratch / "weir"
    options = ["-Dtests=disabled", "-Dexamples=disabled", "-Ddefault_library=both", "-Dlibdir=lib"]
    run([*meson, "setup", build, root, f"--prefix={prefix}", *options])
    run([*meson, "install", "-C", build, "--quiet"])


def installed_files(prefix):
    found = {str(p.relative_to(prefix)) for p in prefix.rglob("*") if not p.is_dir()}
    headers = {str(p.relative_to(root)) for p in (root / "include").rglob("*.h")}
    version = run([*meson, "introspect", root / "meson.build", "--projectinfo"]).split('"version": "')[1].split('"')[0]
    wanted = headers | {"lib/libweir.a", "lib/libweir.so", "lib/libweir.so.0", f"lib/libweir.so.{version}"}
    wanted |= {"lib/pkgconfig/weir.pc"}
    if found != wanted:
        raise Failed(f"too much: {sorted(found - wanted)}\ntoo little: {sorted(wanted - found)}")


def against_installed(scratch, prefix, static):
    environment = dict(os.environ)
    paths = [str(prefix / "lib/pkgconfig"), environment.get("PKG_CONFIG_PATH", "")]
    environment["PKG_CONFIG_PATH"] = ":".join(p for p in paths if p)
    asked = ["pkg-config", *(["--static"] if static else []), "--cflags", "--libs", "weir"]
    flags = run(asked, env=environment).split()
    program = scratch / ("static" if static else "shared")
    if static:  # both are installed: say which
        flags = ["-l:libweir.a" if flag == "-lweir" else flag for flag in flags]
    run(["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", consumer / "consumer.c", *flags, "-o", program])
    linked = "libweir.so.0" in run(["readelf", "-d", program])
    if linked == static:
        raise Failed(f"linked to libweir.so.0: {linked}")
    run([program], timeout=30, env={**os.environ, "LD_LIBRARY_PATH": str(prefix / "lib")})


with tempfile.TemporaryDirectory(prefix="weir-consumer-") as directory:
    scratch = pathlib.Path(directory)
    prefix = scratch / "prefix"
    case("subproject_builds_and_runs", subproject, scratch)
    case("library_installs", install, scratch, prefix)
    case("just_the_wanted_files_are_installed", installed_files, prefix)
    case("program_with_the_shared_library_runs", against_installed, scratch, prefix, False)
    case("program_with_the_static_library_runs", against_installed, scratch, prefix, True)
print(f"1..{count}")
sys.exit(1 if failed else 0)
