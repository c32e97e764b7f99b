#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What must not compile, and what a C++ program makes of the headers.

    compile.py INCLUDE_DIR BUILD_DIR [LIBRARY]

A mistake must be refused, and the same file without it (RIGHT is defined) taken, so that it is refused for the right
reason. The C++ program is compiled, linked with the library (a shared one) and run. Prints TAP.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]

# Every function whose result is marked, with arguments that fit into ignored.c.
CALLS = {
    "weir_loop_new": "weir_loop_new(NULL, &loop)",
    "weir_chain_new": "weir_chain_new(loop, 1, &chain)",
    "weir_chain_push": "weir_chain_push(chain, slice)",
    "weir_chain_peek": "weir_chain_peek(chain, 0, 1, &shown)",
    "weir_chain_take": "weir_chain_take(chain, 1, slice)",
    "weir_chain_drop": "weir_chain_drop(chain, 1)",
    "weir_chain_write": "weir_chain_write(chain, 1, stream)",
    "weir_loop_run": "weir_loop_run(loop)",
    "weir_loop_run_once": "weir_loop_run_once(loop, 0)",
    "weir_loop_post": "weir_loop_post(loop, NULL, NULL)",
    "weir_listener_open": "weir_listener_open(loop, NULL, NULL, &listener)",
    "weir_listener_adopt": "weir_listener_adopt(loop, 0, NULL, &listener)",
    "weir_slice_keep": "weir_slice_keep(slice, slice)",
    "weir_slice_sub": "weir_slice_sub(slice, 0, 0, slice)",
    "weir_slice_new": "weir_slice_new(pool, 1, &data, slice)",
    "weir_slice_copy": "weir_slice_copy(pool, NULL, 1, slice)",
    "weir_slice_wrap": "weir_slice_wrap(pool, NULL, 1, NULL, NULL, slice)",
    "weir_stream_dial": "weir_stream_dial(loop, NULL, NULL, &stream)",
    "weir_stream_adopt": "weir_stream_adopt(loop, 0, NULL, &stream)",
    "weir_stream_detach": "weir_stream_detach(stream, &fd)",
    "weir_stream_set_option": "weir_stream_set_option(stream, 1, 1)",
    "weir_stream_write": "weir_stream_write(stream, NULL, 0)",
    "weir_stream_write_slice": "weir_stream_write_slice(stream, slice)",
    "weir_stream_write_external": "weir_stream_write_external(stream, NULL, 0, NULL, NULL)",
    "weir_stream_writev": "weir_stream_writev(stream, slice, 1)",
    "weir_stream_flush": "weir_stream_flush(stream, NULL, NULL)",
    "weir_stream_pipe": "weir_stream_pipe(stream, stream)",
    "weir_stream_pipe_both": "weir_stream_pipe_both(stream, stream)",
    "weir_timer_new": "weir_timer_new(loop, NULL, NULL, &timer)",
    "weir_watch_new": "weir_watch_new(loop, 0, NULL, NULL, &watch)",
    "weir_signal_new": "weir_signal_new(loop, 1, NULL, NULL, &signal)",
    "weir_signal_start": "weir_signal_start(signal)",
}

count = failed = 0


def case(name, finding):
    global count, failed
    count += 1
    failed += bool(finding)
    print(f"{'not ok' if finding else 'ok'} {count} - {name}")
    for line in (finding or "").rstrip().splitlines():
        print(f"# {line}")


def skipped(name, why):
    global count
    count += 1
    print(f"ok {count} # SKIP {name}: {why}")


def compiles(compiler, include, source, *flags):
    command = [compiler, "-std=gnu11", *WARNINGS, "-c", "-o", os.devnull, "-I", include, *flags,
               str(HERE / source)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode == 0, done.stderr


def refused(compiler, include, source, word, *flags):
    """What is wrong, if not exactly the mistake is refused."""
    good, errors = compiles(compiler, include, source, "-DRIGHT", *flags)
    if not good:
        return f"{compiler} refuses the file without the mistake:\n{errors}"
    good, errors = compiles(compiler, include, source, *flags)
    if good:
        return f"{compiler} takes it"
    return None if word in errors else f"{compiler} refuses it for another reason:\n{errors}"


def marked(include):
    text = "".join(p.read_text(encoding="utf-8") for p in sorted(pathlib.Path(include, "weir").glob("*.h")))
    return set(re.findall(r"WEIR_API WEIR_MUST_CHECK int (weir_\w+)\(", text))


def cxx(include, library, build):
    """What is wrong with the C++ program."""
    with tempfile.TemporaryDirectory(dir=build) as directory:
        program = str(pathlib.Path(directory, "raii"))
        command = ["g++", "-std=c++17", "-O1", *WARNINGS, "-I", include, str(HERE / "raii.cpp"), library, "-o", program]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            return done.stderr
        # The soname's link may not be there: meson makes it beside the library.
        environment = dict(os.environ, LD_LIBRARY_PATH=str(pathlib.Path(library).parent))
        done = subprocess.run([program], capture_output=True, text=True, env=environment, timeout=60)
        return f"it ended with {done.returncode}\n{done.stderr}" if done.returncode != 0 else None


def main():
    include, build = sys.argv[1:3]
    library = sys.argv[3] if len(sys.argv) > 3 else None
    for compiler in ("gcc", "clang"):
        if not shutil.which(compiler):
            skipped(compiler, "not here")
            continue
        case(f"{compiler}_refuses_unref_of_a_borrowed_slice", refused(compiler, include, "borrowed.c", "qualifier"))
        for name, call in CALLS.items():
            finding = refused(compiler, include, "ignored.c", "unused-result", f"-DCALL={call}")
            case(f"{compiler}_refuses_an_ignored_result_of_{name}", finding)
    case("every_marked_function_is_tried", "\n".join(sorted(marked(include) ^ set(CALLS))))
    if not shutil.which("g++"):
        skipped("a_cxx17_program_compiles_links_and_runs", "no g++")
    elif library is None:
        skipped("a_cxx17_program_compiles_links_and_runs", "no shared library in this build")
    else:
        case("a_cxx17_program_compiles_links_and_runs", cxx(include, library, build))
    print(f"1..{count}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
