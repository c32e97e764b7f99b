# SPDX-License-Identifier: MIT
"""Debian's cloud kernels, from the mirror that the machine uses already: found by version, verified, never installed.

A kernel is one file out of one package, kept in a cache by the package's checksum. That is the one in the mirror's index,
whose own is in a release file that Debian has signed.
"""

import hashlib
import json
import lzma
import pathlib
import re
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITES = ["bookworm", "bookworm-backports", "trixie", "trixie-backports"]
SECURITY_SUITES = ["bookworm-security", "trixie-security"]
INDEX = "main/binary-amd64/Packages.xz"
# From 6.19 on linux-image is empty, and linux-binary has the kernel without its modules.
NAME = re.compile(r"^linux-(?:image|binary)-\d\S*-cloud-amd64$")
LEAST_SIZE = 4 << 20  # what is smaller only depends on another package
FRESH_S = 24 * 3600
PATIENCE_S = 60


class Unavailable(Exception):
    pass


def fetch(uri):
    try:
        with urllib.request.urlopen(uri, timeout=PATIENCE_S) as answer:
            return answer.read()
    except (OSError, urllib.error.URLError) as error:
        raise Unavailable(f"{uri}: {error}") from error


def verified(uri, data, sha256):
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Unavailable(f"{uri}: wrong checksum")
    return data


def numbers(version):
    return [int(number) for number in re.findall(r"\d+", version)]


def signed(uri):
    """What the release file there says, if Debian has signed it."""
    with tempfile.NamedTemporaryFile() as release:
        release.write(fetch(uri))
        release.flush()
        try:
            checked = subprocess.run(["gpgv", "--quiet", "--keyring", KEYRING, "--output", "-", release.name],
                                     stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        except OSError as error:
            raise Unavailable(f"gpgv: {error}") from error
    if checked.returncode != 0:
        raise Unavailable(f"{uri}: {checked.stderr.strip()}")
    return checked.stdout


def kernels_of(mirror, suite):
    release = signed(f"{mirror}/dists/{suite}/InRelease")
    line = re.search(rf"^ ([0-9a-f]{{64}}) +\d+ {re.escape(INDEX)}$", release, re.MULTILINE)
    if not line:
        raise Unavailable(f"{mirror} {suite}: no {INDEX}")
    uri = f"{mirror}/dists/{suite}/{INDEX}"
    index = lzma.decompress(verified(uri, fetch(uri), line.group(1))).decode()
    found = []
    for stanza in index.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Size|Filename|SHA256): (.*)$", stanza, re.MULTILINE))
        if NAME.match(fields.get("Package", "")) and int(fields["Size"]) >= LEAST_SIZE and "~rc" not in fields["Version"]:
            found.append({"name": fields["Package"], "version": fields["Version"], "sha256": fields["SHA256"],
                          "uri": f"{mirror}/{fields['Filename']}"})
    return found


def index(cache, mirror, security, say):
    """Every cloud kernel to be had, the oldest first. A day's index is fresh enough; an older one is better than none."""
    path = cache / "index.json"
    if path.exists() and time.time() - path.stat().st_mtime < FRESH_S:
        return json.loads(path.read_text(encoding="utf-8"))
    found = []
    for base, suites in (mirror, SUITES), (security, SECURITY_SUITES):
        for suite in suites if base else []:
            try:
                found += kernels_of(base, suite)
            except Unavailable as reason:
                say(str(reason))
    if not found:
        if path.exists():
            say("the index of kernels is an old one")
            return json.loads(path.read_text(encoding="utf-8"))
        raise Unavailable("no mirror has an index of kernels")
    found.sort(key=lambda package: numbers(package["version"]))
    keep(path, json.dumps(found, indent=1).encode())
    return found


def pick(packages, series, which):
    """The "newest" or the "oldest" of a series such as "6.12"; "": of all. Without one: None."""
    wanted = numbers(series)
    fit = [package for package in packages if numbers(package["version"])[: len(wanted)] == wanted]
    return (fit[-1] if which == "newest" else fit[0]) if fit else None


def keep(path, data):
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as scratch:
        scratch.write(data)
    pathlib.Path(scratch.name).replace(path)


def kernel(cache, package):
    """The path of the package's kernel."""
    path = cache / f"{package['name']}_{package['sha256'][:16]}"
    if path.exists():
        return path
    data = verified(package["uri"], fetch(package["uri"]), package["sha256"])
    with tempfile.NamedTemporaryFile(suffix=".deb") as deb:
        deb.write(data)
        deb.flush()
        unpack = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb.name], stdout=subprocess.PIPE)
        with unpack, tarfile.open(fileobj=unpack.stdout, mode="r|") as files:
            for member in files:
                if re.search(r"/vmlinuz(-[^/]*)?$", member.name) and member.isfile():
                    keep(path, files.extractfile(member).read())
                    unpack.kill()
                    return path
    raise Unavailable(f"{package['name']}: no kernel in it")
