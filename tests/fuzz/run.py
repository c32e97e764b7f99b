#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs fuzz targets for a time, each from what is kept in tests/fuzz/corpus/ and what earlier runs of the build found.

    run.py --build BUILD [--seconds N] [--keep] [TARGET...]

What it finds on the way stays in BUILD/fuzz/TARGET/, and what crashes in BUILD/fuzz/; with --keep, instead of a run, the
kept corpora are made anew from both: as few files as reach the same code. The last line says how much was run; ends with
0 if nothing was found.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

DONE = re.compile(r"^Done (\d+) runs in", re.MULTILINE)
LONGEST = {"address": 300, "chain": 1024, "error": 4, "options": 512, "pool": 1024, "sockname": 160}


def fuzz(program, target, found, kept, seconds):
    """The runs that were made, and whether they were all good."""
    command = [program, f"-max_total_time={seconds}", f"-max_len={LONGEST[target]}", "-timeout=10", "-rss_limit_mb=1024",
               "-use_value_profile=1", "-print_final_stats=0", f"-artifact_prefix={found.parent}/{target}-", found, kept]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False,
                          timeout=seconds + 60)
    runs = sum(int(number) for number in DONE.findall(done.stderr))
    if done.returncode != 0 or runs == 0:
        print(done.stderr[-20000:], file=sys.stderr)
        print(f"fuzz: {target} FAILED; replay: {program} {found.parent}/{target}-...", flush=True)
        return runs, False
    print(f"fuzz: {target} runs={runs} seconds={seconds}", flush=True)
    return runs, True


def keep(program, target, found, kept):
    """Kept inputs, and whether they are all good."""
    with tempfile.TemporaryDirectory() as fresh:
        command = [program, "-merge=1", "-set_cover_merge=1", "-use_counters=0", f"-max_len={LONGEST[target]}", fresh,
                   kept, found]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            print(done.stderr[-20000:], file=sys.stderr)
            return 0, False
        files = sorted(pathlib.Path(fresh).iterdir())
        shutil.rmtree(kept)
        kept.mkdir()
        for file in files:
            shutil.copy(file, kept)
    print(f"fuzz: {target} kept={len(files)}", flush=True)
    return len(files), True


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("target", nargs="*", help=", ".join(LONGEST))
    arguments = parser.parse_args()
    for target in set(arguments.target) - set(LONGEST):
        parser.error(f"there is no target '{target}': {', '.join(LONGEST)}")
    targets = arguments.target or list(LONGEST)
    total, good = 0, True
    for target in targets:
        program = arguments.build.resolve() / "tests/fuzz" / f"fuzz-{target}"
        found = arguments.build.resolve() / "fuzz" / target
        kept = pathlib.Path(__file__).resolve().parent / "corpus" / target
        found.mkdir(parents=True, exist_ok=True)
        if arguments.keep:
            count, is_good = keep(program, target, found, kept)
        else:
            count, is_good = fuzz(program, target, found, kept, arguments.seconds)
        total, good = total + count, good and is_good
    if good:
        print(f"fuzz: ok targets={len(targets)} {'kept' if arguments.keep else 'runs'}={total}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
