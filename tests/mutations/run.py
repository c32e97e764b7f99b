#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Breaks weir on purpose and expects the tests to notice: each patch in this folder is one mistake, and the line
"test: NAME [ARGUMENT...]" above it names the program that must fail then.

    run.py SOURCE_ROOT MESON [--a-tenth | PATCH...]

All of them take many minutes. With --a-tenth each commit tries a tenth, chosen by its hash; `./dev mutations` tries all.

The source is copied to temporary directories and built there, one for each of a few workers. Each program is first
seen to pass, unchanged. Where it then skips a case, a mistake that nothing else of it notices counts as skipped: this
machine cannot show it. What looks at the machine, its idle time, say, may not notice while that is busy with the others: so
what was not noticed is tried once more when they are done. Prints TAP.
"""

import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

WORKERS = min(2, os.cpu_count() or 1)
HUNG_S = 40
SIM_S = 900  # its seeds may take long on a busy machine, and what hangs it notices by itself

root = pathlib.Path(sys.argv[1]).resolve()
meson = sys.argv[2]
here = pathlib.Path(__file__).resolve().parent
is_a_tenth = sys.argv[3:] == ["--a-tenth"]
only = [] if is_a_tenth else [pathlib.Path(name).stem for name in sys.argv[3:]]
one_at_a_time = threading.Lock()  # programs that look at the machine: its threads, descriptors, idle time


class Failed(Exception):
    pass


class Skipped(Exception):
    pass


class Unseen(Failed):
    pass


def run(command, **options):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode != 0:
        raise Failed(f"$ {' '.join(map(str, command))}\n{done.stdout}exit status {done.returncode}")
    return done.stdout


class Mutation:
    def __init__(self, patch):
        text = patch.read_text(encoding="utf-8")
        self.name = patch.stem.replace("-", "_") + "_is_noticed"
        ((self.program, arguments),) = re.findall(r"^test: (\S+)(.*)$", text, re.MULTILINE)
        self.arguments = arguments.split()
        self.target = "tests/sim" if self.program == "sim" else f"tests/test-{self.program}"
        self.files = self.changed(text)

    @staticmethod
    def hunks(text):
        """{file: [[old text, new text]...]} of a unified diff. Hunks are found by what they say, not by line numbers."""
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

    def changed(self, text):
        """{file: its text with the mistake}; a sentence if it cannot be made any more."""
        files = {}
        for path, hunks in self.hunks(text).items():
            source = (root / path).read_text(encoding="utf-8")
            for old, new in hunks:
                if source.count(old) != 1:
                    return f"{path} has changed: bring the patch up to date"
                source = source.replace(old, new)
            files[path] = source
        return files


class Tree:
    def __init__(self, directory):
        self.source = directory / "source"
        self.build = directory / "build"
        ignore = shutil.ignore_patterns(".git", "build*", "__pycache__")
        shutil.copytree(root, self.source, ignore=ignore)
        run([meson, "setup", self.build, self.source, "-Dexamples=disabled", "-Dtests=enabled"])

    def make(self, *targets):
        run(["ninja", "-C", self.build, *targets])

    def failures(self, mutation, is_broken):
        """What the program says has failed, and whether it skipped anything; it may also crash, or hang."""
        environment = {**os.environ, "CMOCKA_MESSAGE_OUTPUT": "TAP"}
        if is_broken:
            environment["WEIR_TEST_PATIENCE_S"] = "3"  # it is going to wait for what does not come
        command = [self.build / mutation.target, *mutation.arguments]
        is_sim = mutation.program == "sim"
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  errors="replace", timeout=SIM_S if is_sim else HUNG_S, env=environment)
        except subprocess.TimeoutExpired:
            if is_sim:
                raise Failed(f"after {SIM_S} s it was not through with its seeds") from None
            return ["it hung"], False
        found = re.findall(r"^not ok \d+ - (\S+)", done.stdout, re.MULTILINE)
        found += re.findall(r"^sim: (seed \d+ FAILED: .*)$", done.stdout, re.MULTILINE)
        if done.returncode < 0:
            found.append(signal.Signals(-done.returncode).name)
        if done.returncode != 0 and not found:
            found.append(f"exit status {done.returncode}")
        return found, re.search(r"^ok .*# SKIP", done.stdout, re.MULTILINE) is not None

    def notice(self, mutation, clean):
        if isinstance(mutation.files, str):
            raise Failed(mutation.files)
        failures, skips = clean[mutation.program]
        if failures:
            raise Failed(f"{mutation.program} fails already, unchanged: {', '.join(failures)}")
        for path, text in mutation.files.items():
            (self.source / path).write_text(text, encoding="utf-8")
        try:
            self.make(mutation.target)
            if mutation.program == "sim":
                found, _ = self.failures(mutation, True)
            else:
                with one_at_a_time:
                    found, _ = self.failures(mutation, True)
        finally:
            for path in mutation.files:
                shutil.copyfile(root / path, self.source / path)  # with a new time, so that it is built again
        if not found and skips:
            raise Skipped(f"{mutation.program} skips something on this machine")
        if not found:
            raise (Failed if mutation.program == "sim" else Unseen)(f"{mutation.program} did not notice")
        return f"{mutation.program}: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"


def verdict_on(tree, mutation, clean):
    try:
        return "ok", tree.notice(mutation, clean)
    except Skipped as skipped:
        return "skip", str(skipped)
    except Unseen as unseen:
        return "unseen", str(unseen)
    except Exception as failure:  # of this one: the others go on
        return "not ok", str(failure)


def work(tree, todo, clean, results):
    while True:
        try:
            number, mutation = todo.get_nowait()
        except queue.Empty:
            return
        results.put((number, mutation, *verdict_on(tree, mutation, clean)))


def tell(number, mutation, verdict, note):
    print(f"{'ok' if verdict == 'skip' else verdict} {number} - {mutation.name}{' # SKIP' if verdict == 'skip' else ''}")
    for line in note.splitlines():
        print(f"# {line}", flush=True)
    return verdict == "not ok"


def main():
    patches = [patch for patch in sorted(here.glob("*.patch")) if not only or patch.stem in only]
    if is_a_tenth:
        head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True)
        which = int(head.stdout[:8], 16) % 10 if head.returncode == 0 else 0  # without a history: the first tenth
        patches = patches[which::10]
    mutations = [Mutation(patch) for patch in patches]
    print(f"1..{len(mutations)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="weir-mutations-") as directory:
        trees = [Tree(pathlib.Path(directory) / str(i)) for i in range(WORKERS)]
        trees[0].make(*{mutation.target for mutation in mutations})
        clean = {}
        for mutation in mutations:
            if mutation.program not in clean:
                clean[mutation.program] = trees[0].failures(mutation, False)
        todo, results = queue.Queue(), queue.Queue()
        for numbered in enumerate(mutations, 1):
            todo.put(numbered)
        for tree in trees:
            threading.Thread(target=work, args=(tree, todo, clean, results), daemon=True).start()
        failed, again = 0, []
        for _ in mutations:
            number, mutation, verdict, note = results.get()
            if verdict == "unseen":
                again.append((number, mutation))
            else:
                failed += tell(number, mutation, verdict, note)
        for number, mutation in again:
            verdict, note = verdict_on(trees[0], mutation, clean)
            failed += tell(number, mutation, "not ok" if verdict == "unseen" else verdict, note)
    return failed > 0


try:
    sys.exit(main())
except Failed as stop:
    print(f"Bail out! {stop}")
    sys.exit(1)
