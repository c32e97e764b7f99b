#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Builds tests/consumer as a stranger would, and runs it: with weir as a Meson subproject, and with an installed weir,
shared and static, that Meson finds, or a Makefile by pkg-config, or a compiler that is told no more than where it is.

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


def new_project(directory):
    directory.mkdir()
    for name in ("meson.build", "consumer.c"):
        shutil.copy(consumer / name, directory)


def subproject(scratch):
    project, build = scratch / "project", scratch / "project/build"
    new_project(project)
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


def finding(prefix):
    paths = [str(prefix / "lib/pkgconfig"), os.environ.get("PKG_CONFIG_PATH", "")]
    return {**os.environ, "PKG_CONFIG_PATH": ":".join(p for p in paths if p)}


def run_linked(program, prefix, static):
    linked = "libweir.so.0" in run(["readelf", "-d", program])
    if linked == static:
        raise Failed(f"linked to libweir.so.0: {linked}")
    found = {} if static else {"LD_LIBRARY_PATH": str(prefix / "lib")}
    run([program], timeout=30, env={**os.environ, **found})


def compile_consumer(program, flags):
    run(["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", consumer / "consumer.c", *flags, "-o", program])


def by_meson(scratch, prefix, static):
    project = scratch / ("meson-static" if static else "meson-shared")
    new_project(project)
    run([*meson, "setup", project / "build", project, f"-Dprefer_static={str(static).lower()}"], env=finding(prefix))
    run(["ninja", "-C", project / "build"])
    run_linked(project / "build/consumer", prefix, static)


def by_pkg_config(scratch, prefix, static):
    asked = ["pkg-config", *(["--static"] if static else []), "--cflags", "--libs", "weir"]
    flags = run(asked, env=finding(prefix)).split()
    if static:  # both are installed: say which
        flags = ["-l:libweir.a" if flag == "-lweir" else flag for flag in flags]
    program = scratch / ("static" if static else "shared")
    compile_consumer(program, flags)
    run_linked(program, prefix, static)


def by_hand(scratch, prefix):
    compile_consumer(scratch / "by-hand", [f"-I{prefix}/include", f"-L{prefix}/lib", "-lweir"])
    run_linked(scratch / "by-hand", prefix, False)


with tempfile.TemporaryDirectory(prefix="weir-consumer-") as directory:
    scratch = pathlib.Path(directory)
    prefix = scratch / "prefix"
    case("subproject_builds_and_runs", subproject, scratch)
    case("library_installs", install, scratch, prefix)
    case("just_the_wanted_files_are_installed", installed_files, prefix)
    for static in (False, True):
        kind = "static" if static else "shared"
        case(f"meson_finds_the_{kind}_library", by_meson, scratch, prefix, static)
        case(f"pkg_config_finds_the_{kind}_library", by_pkg_config, scratch, prefix, static)
    case("the_shared_library_needs_nothing_said_of_what_it_needs", by_hand, scratch, prefix)
print(f"1..{count}")
sys.exit(1 if failed else 0)
