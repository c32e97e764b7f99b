#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Breaks weir on purpose and expects the tests to notice: each patch in this folder is one mistake, and the line
"test: NAME [ARGUMENT...]" above it names the program that must fail then.

    run.py SOURCE_ROOT MESON [PATCH...]

The source is copied to a temporary directory, built there, and each test is first seen to pass. Prints TAP.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

root = pathlib.Path(sys.argv[1]).resolve()
meson = sys.argv[2]
here = pathlib.Path(__file__).resolve().parent
only = [pathlib.Path(name).stem for name in sys.argv[3:]]


class Failed(Exception):
    pass


def run(command, **options):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode != 0:
        raise Failed(f"$ {' '.join(map(str, command))}\n{done.stdout}exit status {done.returncode}")
    return done.stdout


def parse(text):
    """{file: [(old text, new text)...]} of a unified diff. Hunks are found by what they say, not by line numbers."""
    hunks, path = {}, None
    for line in text.splitlines(keepends=True):
        if line.startswith("+++ b/"):
            path = line[6:].split("\t")[0].strip()
        elif line.startswith("@@"):
            hunks.setdefault(path, []).append(["", ""])
        elif path in hunks and line[0] in " -+\n":
            hunk = hunks[path][-1]
            if line[0] != "+":
                hunk[0] += line[1:] or "\n"
            if line[0] != "-":
                hunk[1] += line[1:] or "\n"
    return hunks


def apply(hunks, tree):
    for path, changes in hunks.items():
        text = (root / path).read_text(encoding="utf-8")
        for old, new in changes:
            if text.count(old) != 1:
                raise Failed(f"{path} has changed: bring the patch up to date")
            text = text.replace(old, new)
        (tree / path).write_text(text, encoding="utf-8")


def restore(hunks, tree):
    for path in hunks:
        shutil.copy(root / path, tree / path)


def target_of(name):
    return "tests/sim" if name == "sim" else f"tests/test-{name}"


def failures(build, name, arguments):
    """What the test program says has failed; it may also crash, or hang."""
    environment = {**os.environ, "CMOCKA_MESSAGE_OUTPUT": "TAP", "WEIR_TEST_PATIENCE_S": "5"}
    try:
        done = subprocess.run([build / target_of(name), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=180,
                              env=environment)
    except subprocess.TimeoutExpired:
        return ["it hung"]
    found = re.findall(r"^not ok \d+ - (\S+)", done.stdout, re.MULTILINE)
    found += re.findall(r"^sim: (seed \d+) FAILED: (.*)$", done.stdout, re.MULTILINE)
    found = [": ".join(it) if isinstance(it, tuple) else it for it in found]
    if done.returncode < 0:
        found.append(signal.Signals(-done.returncode).name)
    if done.returncode != 0 and not found:
        found.append(f"exit status {done.returncode}")
    return found


def mutate(patch, tree, build, clean):
    text = patch.read_text(encoding="utf-8")
    ((name, arguments),) = re.findall(r"^test: (\S+)(.*)$", text, re.MULTILINE)
    arguments = arguments.split()
    hunks = parse(text)
    target = target_of(name)
    if name not in clean:
        run(["ninja", "-C", build, target])
        clean[name] = failures(build, name, arguments)
    if clean[name]:
        raise Failed(f"{name} fails already, unchanged: {', '.join(clean[name])}")
    apply(hunks, tree)
    try:
        run(["ninja", "-C", build, target])
        found = failures(build, name, arguments)
    finally:
        restore(hunks, tree)
        run(["ninja", "-C", build, target])
    if not found:
        raise Failed(f"{name} did not notice")
    return f"{name}: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"


with tempfile.TemporaryDirectory(prefix="weir-mutations-") as directory:
    tree = pathlib.Path(directory) / "source"
    build = pathlib.Path(directory) / "build"
    ignore = shutil.ignore_patterns(".git", "build*", "__pycache__")
    shutil.copytree(root, tree, ignore=ignore, symlinks=False)
    patches = [patch for patch in sorted(here.glob("*.patch")) if not only or patch.stem in only]
    print(f"1..{len(patches)}", flush=True)
    failed = 0
    clean = {}
    try:
        run([meson, "setup", build, tree, "-Dexamples=disabled", "-Dtests=enabled"])
    except Failed as failure:
        print(f"Bail out! {failure}")
        sys.exit(1)
    for number, patch in enumerate(patches, 1):
        name = patch.stem.replace("-", "_") + "_is_noticed"
        try:
            note = mutate(patch, tree, build, clean)
            print(f"ok {number} - {name}\n# {note}", flush=True)
        except Failed as failure:
            failed += 1
            print(f"not ok {number} - {name}")
            for line in str(failure).splitlines():
                print(f"# {line}", flush=True)
sys.exit(failed > 0)
