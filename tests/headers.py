#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The public headers, as a compiler, a binding and a reader see them.

    headers.py INCLUDE_DIR [LIBRARY]

Each header compiles alone, in each language and by each compiler that is there; what `cpp -P -DWEIR_PARSE` leaves is
plain C; every function is documented and named by the rules, and declared if and only if the library (a shared one)
exports it. Prints TAP.
"""

import pathlib
import re
import shutil
import subprocess
import sys

WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
MODES = {
    "c99": (["gcc", "clang"], ["-x", "c", "-std=c99", "-Wc++-compat", "-Wstrict-prototypes", "-Wpadded"]),
    "c11": (["gcc", "clang"], ["-x", "c", "-std=c11", "-Wstrict-prototypes"]),
    "c++17": (["g++", "clang++"], ["-x", "c++", "-std=c++17"]),
}
SYSTEM_HEADERS = {"stddef.h", "stdint.h"}  # all that a binding's author has to know

count = failed = 0


def case(name, findings):
    global count, failed
    findings = list(findings)
    count += 1
    failed += bool(findings)
    print(f"{'not ok' if findings else 'ok'} {count} - {name}")
    for finding in findings:
        for line in finding.rstrip().splitlines():
            print(f"# {line}")


def skipped(name, why):
    global count
    count += 1
    print(f"ok {count} # SKIP {name}: {why}")


def run(command, text=""):
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def compile_alone(mode, header, include):
    compilers, flags = MODES[mode]
    for compiler in compilers:
        if shutil.which(compiler):
            # Included twice: the guard is part of standing alone.
            text = f"#include <{header}>\n#include <{header}>\nextern int weir_anything;\n"
            code, _, errors = run([compiler, *flags, *WARNINGS, "-I", str(include), "-"], text)
            if code != 0:
                yield f"{compiler}: {errors}"


def parse_form(include):
    code, out, errors = run(["cpp", "-P", "-DWEIR_PARSE", f"-I{include}", str(include / "weir.h")])
    if code != 0:
        sys.exit(f"Bail out! cpp: {errors}")
    return out


def plain_c(parsed):
    for word in ("#", "__attribute__", "__extension__", "static", "inline", "extern", "WEIR_API", "WEIR_MUST_CHECK"):
        for line in parsed.splitlines():
            if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", line):
                yield f"{word}: {line}"
    # A parser of plain C knows size_t and the fixed-width integers by itself, and needs nothing else.
    prelude = "#include <stddef.h>\n#include <stdint.h>\n"
    code, _, errors = run(["cc", "-x", "c", "-std=c99", *WARNINGS, "-"], prelude + parsed)
    if code != 0:
        yield errors


def outermost(parsed):
    """The text without what stands in braces: declarations alone."""
    depth, kept = 0, []
    for character in parsed:
        depth -= character == "}"
        if depth == 0 and character not in "{}":
            kept.append(character)
        depth += character == "{"
    return "".join(kept)


def declared(parsed):
    """Name -> its declaration."""
    functions = {}
    for statement in outermost(parsed).split(";"):
        statement = " ".join(statement.split())
        match = re.match(r"(?!typedef\b)[\w\s*]*?\b(weir_\w+)\s*\(", statement)
        if match:
            functions[match.group(1)] = statement
    return functions


def by_value(functions, parsed):
    """A binding passes scalars and pointers."""
    structures = set(re.findall(r"}\s*(weir_\w+)\s*;", parsed))
    for name, statement in functions.items():
        for part in re.split(r"[(),]", statement):
            words = re.sub(r"\b(const|struct|unsigned)\b", "", part).split()
            if len(words) > 1 and words[0] in structures and "*" not in part:
                yield f"{name}: {part.strip()}: a structure by value"
        if "..." in statement:
            yield f"{name}: varargs"


def documented(functions, text):
    for name, statement in sorted(functions.items()):
        start = re.search(rf"/\*\*(?: |\n \* ){name}\(\) - \S", text)
        if not start:
            yield f"{name}: no comment that begins with `{name}() - `"
            continue
        comment, _, rest = text[start.start():].partition("*/")
        declaration = rest.lstrip().split(";")[0]
        if not re.search(rf"\b{name}\s*\(", declaration) or "/*" in declaration:
            yield f"{name}: its comment does not stand right above it"
        if comment.startswith("/**\n"):
            wanted = ["Context:", "Since:"]
            if not re.match(r"(WEIR_\w+ )*void ", " ".join(declaration.split()).replace("void *", "pointer ")):
                wanted.append("Return:")
            missing = [word for word in wanted if not re.search(rf"^ \* {word}\s", comment, re.MULTILINE)]
            if missing:
                yield f"{name}: its comment says nothing of {' '.join(missing)}"
        parameters = re.findall(r"^ \* @(\w+):", comment, re.MULTILINE)
        for parameter in parameters:
            if not re.search(rf"\b{parameter}\b", declaration):
                yield f"{name}: documents @{parameter}, which it does not have"


def named(functions, parsed):
    nouns = set(re.findall(r"typedef struct weir_(\w+)", parsed)) | {"error"}
    for name in sorted(functions):
        words = name.split("_")[1:]
        if name == "weir_version":
            continue
        if words[0] not in nouns or len(words) < 2:
            yield f"{name}: not weir_<noun>_<verb>"


def exported(library):
    code, out, errors = run(["nm", "-D", "--defined-only", str(library)])
    if code != 0:
        sys.exit(f"Bail out! nm: {errors}")
    for line in out.splitlines():
        kind, name = line.split()[-2:]
        if kind != "A":
            yield name


def main():
    include = pathlib.Path(sys.argv[1])
    library = sys.argv[2] if len(sys.argv) > 2 else None
    headers = ["weir.h"] + sorted(f"weir/{p.name}" for p in (include / "weir").glob("*.h"))
    text = "".join((include / h).read_text(encoding="utf-8") for h in headers)
    parsed = parse_form(include)
    functions = declared(parsed)

    for header in headers:
        for mode in MODES:
            case(f"{header}_compiles_alone_as_{mode}", compile_alone(mode, header, include))
    includes = re.findall(r'#\s*include\s*([<"])([^>"]+)', text)
    own = {h for h in headers} | {h.split("/")[-1] for h in headers}
    case(
        "headers_include_nothing_but_stddef_and_stdint",
        [name for kind, name in includes if name not in (SYSTEM_HEADERS if kind == "<" else own)],
    )
    umbrella = set(re.findall(r'#include "([^"]+)"', (include / "weir.h").read_text(encoding="utf-8")))
    case("weir.h_includes_every_header", sorted(set(headers) - {"weir.h"} - umbrella))
    case("parse_form_is_plain_c", plain_c(parsed))
    case("functions_are_found", [] if len(functions) > 20 else [f"only {len(functions)}"])
    case("functions_are_named_noun_verb", named(functions, parsed))
    case("functions_are_documented", documented(functions, text))
    case("nothing_is_passed_by_value", by_value(functions, parsed))
    if library:
        symbols = set(exported(library))
        version = {s.partition("@@")[2] for s in symbols}
        names = {s.partition("@@")[0] for s in symbols}
        case("every_export_is_declared", sorted(f"{n}: in no header" for n in names - functions.keys()))
        case("every_declaration_is_exported", sorted(f"{n}: not exported" for n in functions.keys() - names))
        case("every_export_has_a_version", [] if all(v.startswith("WEIR_") for v in version) else sorted(symbols))
    else:
        skipped("exports", "no shared library in this build")
    print(f"1..{count}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
