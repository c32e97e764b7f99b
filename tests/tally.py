#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Counts what `meson test` really ran, test case by test case.

    tally.py NAME=TESTLOG.json...   one line a build, the failed cases, and the sum as the last line
    tally.py --self-test

Meson counts programs; the tests print TAP, a line a case. A program that crashed before it ran all it had planned, one
that failed without a failed case, and a build without a log each count as failed. Ends with 0 if nothing failed and
something passed.
"""

import json
import pathlib
import re
import sys
import tempfile

CASE = re.compile(r"^(not )?ok\b\s*\d*\s*(?:- )?(.*)$")
PLAN = re.compile(r"^1\.\.(\d+)")
SKIP = re.compile(r"#\s*skip\b\s*", re.IGNORECASE)


def count(test):
    """(passed, [failed], skipped) of one program."""
    passed = skipped = planned = 0
    failed = []
    for line in test.get("stdout", "").splitlines():
        plan, case = PLAN.match(line), CASE.match(line)
        if plan:
            planned += int(plan.group(1))
        elif case:
            # cmocka 1.1.5 says "not ok" of a case that was skipped
            if SKIP.search(case.group(2)):
                skipped += 1
            elif case.group(1):
                failed.append(case.group(2))
            else:
                passed += 1
    ran = passed + len(failed) + skipped
    good = test["result"] in ("OK", "SKIP", "EXPECTEDFAIL")
    if not good and not failed or planned > ran:
        failed.append(f"({test['result'].lower()} after {ran} of {planned} cases)")
    if not ran and good:  # a program that speaks no TAP is one case
        if test["result"] == "SKIP":
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def tally(logs, out):
    total = [0, 0, 0]
    for name, path in logs:
        sums, lines = [0, 0, 0], []
        try:
            tests = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except OSError:
            tests = []
            sums[1] += 1
            lines.append("did not build, or ran no test")
        for test in tests:
            passed, failed, skipped = count(test)
            sums = [sums[0] + passed, sums[1] + len(failed), sums[2] + skipped]
            lines += [f"{test['name']}: {case}" for case in failed]
        print(f"{name:16} {sums[0]:5} passed {sums[1]:5} failed {sums[2]:5} skipped", file=out)
        for line in lines:
            print(f"    FAILED  {line}", file=out)
        total = [a + b for a, b in zip(total, sums)]
    print(f"{total[0]} passed, {total[1]} failed, {total[2]} skipped", file=out)
    return 0 if total[0] > 0 and total[1] == 0 else 1


def self_test():
    wrong = 0
    for number, (name, result, stdout, wanted) in enumerate(
        [
            ("all_pass", "OK", "1..2\nok 1 - a\nok 2 - b\n# ok - group\n", (2, 0, 0)),
            ("one_fails", "FAIL", "1..2\nok 1 - a\nnot ok 2 - b\n# 0x1 != 0x2\n# not ok - group\n", (1, 1, 0)),
            ("skipped_as_cmocka_says_it", "OK", "1..2\nok 1 - a\nnot ok 2 # SKIP b\n", (1, 0, 1)),
            ("skipped_as_tap_says_it", "OK", "ok 1 - a\nok 2 # SKIP b: no compiler\n1..2\n", (1, 0, 1)),
            ("crash_in_the_second", "FAIL", "1..3\nok 1 - a\n", (1, 1, 0)),
            ("failure_then_crash", "FAIL", "1..3\nok 1 - a\nnot ok 2 - b\n", (1, 2, 0)),
            ("failure_after_the_last_case", "FAIL", "1..1\nok 1 - a\n", (1, 1, 0)),
            ("two_groups", "OK", "1..1\nok 1 - a\n1..1\nok 1 - b\n", (2, 0, 0)),
            ("left_early_with_0", "OK", "1..2\nok 1 - a\n", (1, 1, 0)),
            ("time_out", "TIMEOUT", "1..2\nok 1 - a\n", (1, 1, 0)),
            ("silent_failure", "FAIL", "", (0, 1, 0)),
            ("silent_success", "OK", "", (1, 0, 0)),
            ("silent_skip", "SKIP", "", (0, 0, 1)),
        ],
        1,
    ):
        passed, failed, skipped = count({"result": result, "stdout": stdout, "name": "x"})
        found = (passed, len(failed), skipped)
        wrong += found != wanted
        print(f"{'ok' if found == wanted else 'not ok'} {number} - {name}")
    with tempfile.TemporaryDirectory() as scratch:
        empty, passing = pathlib.Path(scratch, "empty"), pathlib.Path(scratch, "passing")
        empty.write_text("")
        passing.write_text(json.dumps({"name": "x", "result": "OK"}) + "\n")
        with open("/dev/null", "w", encoding="utf-8") as null:
            missing = ("y", pathlib.Path(scratch, "none"))
            verdicts = [tally(logs, null) for logs in ([("x", passing)], [("x", empty)], [("x", passing), missing])]
    wrong += verdicts != [0, 1, 1]
    print(f"{'ok' if verdicts == [0, 1, 1] else 'not ok'} {number + 1} - no_test_or_no_log_is_a_failure")
    print(f"1..{number + 1}")
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--self-test"]:
        sys.exit(self_test())
    sys.exit(tally([(n, pathlib.Path(p)) for n, _, p in (a.partition("=") for a in sys.argv[1:])], sys.stdout))
