#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compiles the library's own sources against musl, as they are, without a warning.

    musl.py SOURCE_ROOT DIRECTORY [LIBURING_INCLUDE_DIRECTORY]

What is not musl's, the kernel's headers and liburing's, is shown to the compiler by links in DIRECTORY, behind musl's own:
their folder has glibc's headers in it, too. Prints TAP, a case a source; skips where there is no musl-gcc.
"""

import concurrent.futures
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

root, directory = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
liburing = [f"-I{path}" for path in sys.argv[3:]]

# Each stands for its folder, or itself; what they include is found beside them.
WANTED = ["linux/io_uring.h", "asm/errno.h", "asm-generic/errno.h", "liburing.h", "liburing/io_uring.h"]
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
FLAGS += ['-DWEIR_API=__attribute__((visibility("default")))', "-DWEIR_ALLOCATOR_MIMALLOC=0"]

# That what is compiled here is not compiled against glibc after all.
PROBE = """
#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <liburing.h>
#ifdef __GLIBC__
#error "these are glibc's headers"
#endif
"""


def run(command, text=None):
    command = [str(c) for c in command]
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode == 0, f"$ {shlex.join(command)}\n{done.stdout}"


def link_headers(include):
    shutil.rmtree(include, ignore_errors=True)
    include.mkdir(parents=True)
    for name in WANTED:
        good, said = run(["cc", *liburing, "-M", "-x", "c", "-"], f"#include <{name}>\n")
        found = [word for word in re.split(r"[\s\\]+", said) if word.endswith("/" + name)]
        if not good or not found:
            raise SystemExit(f"# where is {name}?\n{said}")
        top = name.split("/", maxsplit=1)[0]
        whole = pathlib.Path(found[0][: -len(name)]) / top
        if not (include / top).exists():
            (include / top).symlink_to(whole)


def main():
    compiler = shutil.which("musl-gcc")
    if compiler is None:
        print("1..1\nok 1 # SKIP musl: there is no musl-gcc", flush=True)
        return 0
    include = directory / "include"
    link_headers(include)
    base = [compiler, *FLAGS, f"-I{root / 'include'}", f"-I{root / 'lib'}", "-idirafter", include]
    sources = sorted((root / "lib").rglob("*.c"))

    def compile_one(source):
        target = directory / "_".join(source.relative_to(root).with_suffix(".o").parts)
        return run([*base, "-c", source, "-o", target])

    cases = [("these_are_musls_headers", run([*base, "-fsyntax-only", "-x", "c", "-"], PROBE))]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        names = [str(s.relative_to(root)) for s in sources]
        cases += zip(names, pool.map(compile_one, sources))
    print(f"1..{len(cases)}")
    for number, (name, (good, said)) in enumerate(cases, 1):
        print(f"{'ok' if good else 'not ok'} {number} - {name}")
        if not good:
            print("\n".join(f"# {line}" for line in said.splitlines()))
    return 0 if len(sources) > 0 and all(good for _, (good, _) in cases) else 1


sys.exit(main())
