#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Is every public function misused?

    covers.py INCLUDE_DIR [LIBRARY]
    covers.py --self-test

What each function that the headers declare (and the library exports) must be put through follows from its declaration
and its documentation, so a function that is new fails here, by its name, until its misuse is tested:

  arguments.c  it is given NULL for its object: the first parameter, if that is a handle or a slice
  thread.c     on a stranger's thread it is -EPERM, or, where any thread may call it, not. (Functions that have no error
               to return are called there, and the test knows what they say.)
  state.c      each end that its documentation tells of is met: -ESHUTDOWN, -EPIPE, and "-EBADF: closed"

What is looked at is the text of a call and the error expected of it, not what the test does around them. Prints TAP.
"""

import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
FILES = ("arguments.c", "thread.c", "state.c")


def split(text):
    """The arguments of a call whose text begins behind its parenthesis, and what follows it."""
    depth, begin, arguments = 1, 0, []
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if depth == 0 or (depth == 1 and c == ","):
            arguments.append(text[begin:i].strip())
            begin = i + 1
        if depth == 0:
            return arguments, text[i + 1 :]
    return arguments, ""


class Function:
    def __init__(self, name, returns, arguments, documentation):
        self.name = name
        self.documentation = documentation
        first = re.match(r"(?:const )?weir_(loop|pool|slice|stream|listener|timer|chain|watch|signal) \*", arguments[0])
        self.object = first.group(1) if first else None
        self.has_errors = returns in ("int", "int64_t")
        # base.h: references, the pool and slices are any thread's, and so is what says so.
        self.is_any_threads = (
            self.object in (None, "pool", "slice")
            or name.endswith(("_ref", "_unref"))
            or re.search(r"any thread", documentation, re.IGNORECASE) is not None
        )

    def ends(self, functions):
        """The errors that tell that something is over. "as weir_x()" is what x returns."""
        returns = self.documentation.rpartition("Return:")[2]
        found = set(re.findall(r"-ESHUTDOWN|-EPIPE|-EBADF(?=:? (?:once )?closed)", returns))
        for other in re.findall(r"\bas (weir_\w+)\(\)", returns):
            found |= functions[other].ends(functions)
        return found


def parse(headers):
    functions, documentation = {}, ""
    for match in re.finditer(r"/\*\*(.*?)\*/|WEIR_API ([^;(]*?)(weir_\w+)\(([^;]*)\);", headers, re.DOTALL):
        if match.group(1) is not None:
            documentation = re.sub(r"\s*\n \*\s*|\s+", " ", match.group(1))
        else:
            returns = match.group(2).replace("WEIR_MUST_CHECK", "").strip()
            arguments = re.sub(r"\s+", " ", match.group(4)).split(", ")
            functions[match.group(3)] = Function(match.group(3), returns, arguments, documentation)
            documentation = ""
    return functions


def cases(text):
    """[(function, arguments, the error expected or "")] of a test's source."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    found = []
    for match in re.finditer(r"\b(weir_\w+)\(", text):
        arguments, rest = split(text[match.end() :])
        expected = re.match(r"[^;]*?(-E[A-Z0-9]+)\b", rest)
        found.append((match.group(1), arguments, expected.group(1) if expected else ""))
    return found + [(name, [], "") for name in re.findall(r"\(w, (weir_\w+)\)", text)]


def exported(library):
    listing = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].partition("@")[0] for line in listing.splitlines() if line.split()[-2] == "T"}


def judge(functions, public, sources):
    """[(what holds, [who breaks it])]"""
    arguments, thread, state = (cases(sources[name]) for name in FILES)
    verdicts = [("functions_are_found", [] if len(public) >= 20 else [f"{len(public)} functions"])]
    verdicts.append(("every_function_is_declared", sorted(public - functions.keys())))
    for name, found in zip(FILES, (arguments, thread, state)):
        called = {call for call, _, _ in found}
        verdicts.append((f"every_function_occurs_in_{name.removesuffix('.c')}", sorted(public - called)))

    null = {call for call, given, _ in arguments if given and given[0] == "NULL"}
    missing = [f.name for f in functions.values() if f.object is not None and f.name not in null]
    verdicts.append(("every_function_is_given_null_for_its_object", missing))

    refused = {call for call, _, error in thread if error == "-EPERM"}
    allowed = {call for call, _, error in thread if error != "-EPERM"}
    missing = [f.name for f in functions.values() if f.has_errors and not f.is_any_threads and f.name not in refused]
    verdicts.append(("every_function_of_the_loops_thread_is_refused_to_a_stranger", missing))
    missing = [f.name for f in functions.values() if f.is_any_threads and f.name not in allowed]
    verdicts.append(("every_function_of_any_thread_is_allowed_to_a_stranger", missing))

    met = {(call, error) for call, _, error in state}
    missing = [f"{f.name}: {e}" for f in functions.values() for e in sorted(f.ends(functions)) if (f.name, e) not in met]
    verdicts.append(("every_end_that_is_documented_is_met", missing))
    return verdicts


SELF_HEADERS = """
/** weir_loop_spin() - the loop's thread. Return: 0; -ESHUTDOWN: it is closed. */
WEIR_API WEIR_MUST_CHECK int weir_loop_spin(weir_loop *loop,
                                            int times);
/** weir_loop_turn() - Return: as weir_loop_spin(). */
WEIR_API int weir_loop_turn(weir_loop *loop);
/** weir_loop_call() - any thread. 0; -EINVAL. */
WEIR_API int weir_loop_call(weir_loop *loop);
/** weir_loop_fd() - -EBADF once closed. */
WEIR_API int weir_loop_fd(const weir_loop *loop);
"""
SELF_GOOD = {
    "arguments.c": """mistake(weir_loop_spin(NULL, f(1, 2)), -EINVAL); mistake(weir_loop_turn(NULL), -EINVAL);
                      mistake(weir_loop_call(NULL), -EINVAL); mistake(weir_loop_fd(NULL), -EINVAL);""",
    "thread.c": """mistake(weir_loop_spin(l, 1), -EPERM); mistake(weir_loop_turn(l), -EPERM);
                   fine(weir_loop_call(l), 0); mistake(weir_loop_fd(l), -EPERM);""",
    "state.c": """refused(weir_loop_spin(l, 1), -ESHUTDOWN); refused(weir_loop_turn(l), -ESHUTDOWN);
                  fine(weir_loop_call(l), 0); refused(weir_loop_fd(l), -EBADF);""",
}


def self_test():
    functions = parse(SELF_HEADERS)
    checks = []

    def check(name, holds):
        checks.append(holds)
        print(f"{'ok' if holds else 'not ok'} {len(checks)} - {name}")

    def broken(name, old, new):
        sources = {**SELF_GOOD, name: SELF_GOOD[name].replace(old, new)}
        return {who for _, missing in judge(functions, set(functions), sources)[1:] for who in missing}

    spin, turn, call = ({f"weir_loop_{name}"} for name in ("spin", "turn", "call"))
    check("good_sources_lack_nothing", broken("state.c", "", "") == set())
    check("a_function_not_given_null_is_named", broken("arguments.c", "turn(NULL", "turn(l") == turn)
    check("null_for_another_argument_is_not_enough", broken("arguments.c", "NULL, f(1, 2)", "l, NULL") == spin)
    check("a_function_a_stranger_may_call_is_named", broken("thread.c", "turn(l), -EPERM", "turn(l), 0") == turn)
    check("a_function_a_stranger_may_not_call_is_named", broken("thread.c", "call(l), 0", "call(l), -EPERM") == call)
    spin_over, turn_over, fd_over = {"weir_loop_spin: -ESHUTDOWN"}, {"weir_loop_turn: -ESHUTDOWN"}, {"weir_loop_fd: -EBADF"}
    check("an_end_that_is_not_met_is_named", broken("state.c", "1), -ESHUTDOWN", "1), 0") == spin_over)
    check("an_end_that_is_as_anothers_is_named", broken("state.c", "turn(l), -ESHUTDOWN", "turn(l), 0") == turn_over)
    check("a_closed_descriptor_not_asked_for_is_named", broken("state.c", "-EBADF", "0") == fd_over)
    check("a_function_that_is_not_declared_is_named", judge(functions, {"weir_x"}, SELF_GOOD)[1][1] == ["weir_x"])
    print(f"1..{len(checks)}")
    return 0 if all(checks) else 1


def main():
    if sys.argv[1] == "--self-test":
        return self_test()
    functions = parse("".join(p.read_text(encoding="utf-8") for p in sorted(pathlib.Path(sys.argv[1], "weir").glob("*.h"))))
    public = set(functions)
    if len(sys.argv) > 2:
        public |= exported(sys.argv[2])
    verdicts = judge(functions, public, {name: (HERE / name).read_text(encoding="utf-8") for name in FILES})
    for number, (what, missing) in enumerate(verdicts, start=1):
        print(f"{'not ok' if missing else 'ok'} {number} - {what}")
        for who in missing:
            print(f"# not {who}")
    print(f"1..{len(verdicts)}")
    return 1 if any(missing for _, missing in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
