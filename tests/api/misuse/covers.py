#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Is every public function misused?

    covers.py INCLUDE_DIR [LIBRARY]

Each function that the headers declare (and the library exports) must occur in each of arguments.c, thread.c and
state.c: with NULL and wrong structures, on a stranger's thread, at the wrong time. So a function that is new fails here
until its misuse is tested. Prints TAP.
"""

import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def calls(text):
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return set(re.findall(r"\b(weir_\w+)\s*\(", text)) | set(re.findall(r"\(w, (weir_\w+)\)", text))


def exported(library):
    listing = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].partition("@")[0] for line in listing.splitlines() if line.split()[-2] == "T"}


def main():
    headers = "".join(p.read_text(encoding="utf-8") for p in sorted(pathlib.Path(sys.argv[1], "weir").glob("*.h")))
    public = set(re.findall(r"WEIR_API\s[^;(]*?\b(weir_\w+)\s*\(", headers))
    if len(sys.argv) > 2:
        public |= exported(sys.argv[2])
    failed = len(public) < 20
    print(f"{'not ok' if failed else 'ok'} 1 - functions_are_found")
    files = ["arguments.c", "thread.c", "state.c"]
    for number, name in enumerate(files, start=2):
        missing = sorted(public - calls((HERE / name).read_text(encoding="utf-8")))
        failed = failed or bool(missing)
        print(f"{'not ok' if missing else 'ok'} {number} - every_function_occurs_in_{name.removesuffix('.c')}")
        for function in missing:
            print(f"# {function} does not")
    print(f"1..{1 + len(files)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
