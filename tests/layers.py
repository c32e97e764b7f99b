#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The folders of lib/ are the architecture; this checks that they mean it.

    layers.py SOURCE_ROOT [ARCHIVE...]   check the tree, and what the objects in the archives call
    layers.py --self-test                check the checks, over made-up trees

Prints TAP.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

# Bottom to top: a layer may include itself and what stands before it, less what FORBIDDEN says.
LAYERS = ["base", "edge", "memory", "backend", "loop", "socket"]
FORBIDDEN = {"memory": {"edge"}}  # memory knows no kernel

# System headers that only some layers may include.
RESERVED = {
    "liburing.h": {"edge"},
    "liburing/io_uring.h": {"edge", "backend"},
    "linux/io_uring.h": set(),  # liburing's copy is the newer one
}

# A library does not print, does not end its process and does not take signals.
NEVER_CALLED = """
    printf fprintf vprintf vfprintf dprintf vdprintf __printf_chk __fprintf_chk __vprintf_chk __vfprintf_chk
    puts fputs putchar putc fputc fwrite perror psignal stdout stderr syslog openlog
    exit _exit _Exit quick_exit abort atexit
    signal bsd_signal sysv_signal __sysv_signal sigaction raise kill system popen
""".split()
# But for the function that reports a mistake in a library built to stop at one.
MAY_STOP = "weir__mistake"

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.MULTILINE)


def allowed(layer):
    below = LAYERS[: LAYERS.index(layer) + 1]
    return set(below) - FORBIDDEN.get(layer, set())


def sources(root):
    return sorted(p for p in (root / "lib").rglob("*") if p.suffix in (".c", ".h"))


def check_includes(root):
    """Yields a sentence for each include that reaches where it must not."""
    for path in sources(root):
        relative = path.relative_to(root)
        layer = relative.parts[1] if len(relative.parts) > 2 else None
        if layer not in LAYERS:
            yield f"{relative}: not in a layer (known are: {', '.join(LAYERS)})"
            continue
        for kind, name in INCLUDE.findall(path.read_text(encoding="utf-8")):
            if name in RESERVED:
                if layer not in RESERVED[name]:
                    yield f"{relative}: <{name}> does not belong in {layer}"
                continue
            if name.startswith("liburing"):
                yield f"{relative}: <{name}> is no header of liburing that we use"
                continue
            if name == "weir.h" or name.startswith("weir/"):
                continue
            if kind == "<":
                continue
            target = name.split("/")[0]
            if "/" not in name or target not in LAYERS:
                yield f'{relative}: "{name}": write it from lib/ on, as "layer/file.h"'
            elif target not in allowed(layer):
                yield f'{relative}: {layer} must not include "{name}"'


def check_listed(root):
    """Yields a sentence for each source file that the build has forgotten."""
    listed = set(re.findall(r"'(\w+/\w+\.c)'", (root / "lib/meson.build").read_text(encoding="utf-8")))
    for path in sources(root):
        name = str(path.relative_to(root / "lib"))
        if path.suffix == ".c" and name not in listed:
            yield f"lib/{name}: not in lib/meson.build"


def check_tests_listed(root):
    """Yields a sentence for each C file of the tests that no build file names: a test that is not built cannot fail."""
    tests = root / "tests"
    scripts = " ".join(path.read_text(encoding="utf-8") for path in tests.rglob("*.py"))
    for path in sorted(tests.rglob("*.c")):
        names = {path.name} if f'"{path.name}"' in scripts else set()
        for folder in path.parents:
            if (folder / "meson.build").is_file():
                listed = (folder / "meson.build").read_text(encoding="utf-8")
                wanted = {str(path.relative_to(folder))}
                if path.stem.startswith("fuzz_"):  # tests/fuzz/meson.build makes the names
                    wanted.add(path.stem.removeprefix("fuzz_"))
                names |= {name for name in wanted if f"'{name}'" in listed}
            if folder == tests:
                break
        if not names:
            yield f"tests/{path.relative_to(tests)}: in no meson.build"


def check_calls(listing):
    """Yields a sentence for each forbidden symbol in the output of nm over archives."""
    objects = {}
    for line in listing.splitlines():
        if line.endswith(":"):
            current = objects.setdefault(line[:-1], (set(), set()))
        elif line.strip():
            *_, kind, name = line.split()
            current[0 if kind == "U" else 1].add(name.split("@")[0])
    for name, (undefined, defined) in sorted(objects.items()):
        if MAY_STOP in defined:
            undefined -= {"abort", "fprintf", "__fprintf_chk", "fputs", "fwrite", "stderr"}
        for symbol in sorted(undefined & set(NEVER_CALLED)):
            yield f"{name}: uses {symbol}"


def nm(archives):
    return subprocess.run(["nm", *archives], check=True, capture_output=True, text=True).stdout


class Tap:
    def __init__(self):
        self.count = self.failed = 0

    def case(self, name, findings):
        findings = list(findings)
        self.count += 1
        self.failed += bool(findings)
        print(f"{'not ok' if findings else 'ok'} {self.count} - {name}")
        for finding in findings:
            print(f"# {finding}")

    def end(self):
        print(f"1..{self.count}")
        return 1 if self.failed else 0


def self_test():
    tap = Tap()

    def tree(files):
        root = pathlib.Path(tempfile.mkdtemp(dir=scratch))
        (root / "lib").mkdir()
        (root / "lib/meson.build").write_text("files('base/a.c')\n")
        for name, text in files.items():
            path = root / "lib" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root

    def expect(name, check, what, wanted):
        found = list(check(what))
        wrong = [] if len(found) == len(wanted) and all(w in f for w, f in zip(wanted, found)) else found or ["nothing"]
        tap.case(name, [f"found: {w}" for w in wrong])

    with tempfile.TemporaryDirectory() as scratch:
        fine = {
            "base/a.c": '#include "base/b.h"\n#include <stdio.h>\n#include "weir/base.h"\n',
            "edge/a.h": '#include <liburing.h>\n#include "base/b.h"\n',
            "memory/a.h": '#include "base/b.h"\n#include <weir.h>\n',
            "backend/a.h": '#include <liburing/io_uring.h>\n#include "memory/a.h"\n#include "edge/a.h"\n',
            "socket/a.h": '#include "loop/a.h"\n#include "socket/b.h"\n',
        }
        expect("a_tree_in_order_passes", check_includes, tree(fine), [])
        for name, files, wanted in [
            ("an_upward_include_is_found", {"memory/a.c": '#include "backend/x.h"\n'}, "memory must not include"),
            ("memory_knows_no_kernel", {"memory/a.c": ' # include "edge/x.h"\n'}, "memory must not include"),
            ("backend_has_no_liburing", {"backend/a.c": "#include <liburing.h>\n"}, "does not belong in backend"),
            ("quotes_hide_nothing", {"loop/a.c": '#include "liburing.h"\n'}, "does not belong in loop"),
            ("loop_has_no_io_uring", {"loop/a.c": "#include <liburing/io_uring.h>\n"}, "does not belong in loop"),
            ("other_headers_of_liburing", {"edge/a.c": "#include <liburing/compat.h>\n"}, "no header of liburing"),
            ("the_kernel_s_copy", {"edge/a.c": "#include <linux/io_uring.h>\n"}, "does not belong in edge"),
            ("a_neighbour_without_its_layer", {"loop/a.c": '#include "timer.h"\n'}, "write it from lib/ on"),
            ("a_way_up_and_down", {"loop/a.c": '#include "../socket/a.h"\n'}, "write it from lib/ on"),
            ("an_unknown_folder", {"utils/a.c": ""}, "not in a layer"),
            ("a_file_beside_the_folders", {"a.c": ""}, "not in a layer"),
        ]:
            expect(name, check_includes, tree(files), [wanted])
        expect("a_listed_file_passes", check_listed, tree({"base/a.c": "", "base/a.h": ""}), [])
        expect("a_forgotten_file_is_found", check_listed, tree({"base/b.c": ""}), ["lib/base/b.c: not in"])
        tests = pathlib.Path(tempfile.mkdtemp(dir=scratch))
        for name, text in {"meson.build": "'unit/a.c'", "unit/a.c": "", "unit/forgotten.c": ""}.items():
            (tests / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
            (tests / "tests" / name).write_text(text)
        expect("a_forgotten_test_is_found", check_tests_listed, tests, ["tests/unit/forgotten.c: in no"])

    expect("harmless_calls_pass", check_calls, "a.o:\n   U snprintf\n   U weir_x\n0000 T weir__y\n", [])
    expect("printing_is_found", check_calls, "a.o:\n  U puts\nb.o:\n  U malloc\n", ["a.o: uses puts"])
    expect("a_version_hides_nothing", check_calls, "a.o:\n  U exit@GLIBC_2.2.5\n", ["a.o: uses exit"])
    expect("abort_is_found", check_calls, "a.o:\n  U abort\n0000 T weir__y\n", ["a.o: uses abort"])
    expect("a_mistake_may_abort", check_calls, "a.o:\n  U abort\n  U stderr\n0000 T weir__mistake\n", [])
    expect("a_mistake_may_not_exit", check_calls, "a.o:\n  U exit\n0000 T weir__mistake\n", ["a.o: uses exit"])
    return tap.end()


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    root, archives = pathlib.Path(sys.argv[1]), sys.argv[2:]
    tap = Tap()
    tap.case("layers_include_only_what_is_below", check_includes(root))
    tap.case("every_source_file_is_built", check_listed(root))
    tap.case("every_test_is_built", check_tests_listed(root))
    if archives:
        tap.case("library_neither_prints_nor_ends_its_process", check_calls(nm(archives)))
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())
