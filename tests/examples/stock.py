#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Puts weir's proxy between programs that everybody has: curl or wrk on one side, nginx on the other.

    stock.py BUILD_ROOT

nginx runs with a configuration, a prefix and a port of its own, in a directory that is gone afterwards. Prints TAP; what
needs a program that is not here is skipped.
"""

import hashlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

build = pathlib.Path(sys.argv[1]).resolve()
PATIENCE_S = 15
MIB = 64
count = failed = 0

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
HAS_DAV = NGINX and b"http_dav_module" in subprocess.run([NGINX, "-V"], capture_output=True).stderr

# Each request over a Unix socket of nginx's; the second server wants to be told who its client is.
CONFIGURATION = """
{user}
daemon off;
master_process off;
pid {scratch}/nginx.pid;
error_log {scratch}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {scratch}/bodies;
    proxy_temp_path {scratch}/proxies;
    fastcgi_temp_path {scratch}/fastcgi;
    uwsgi_temp_path {scratch}/uwsgi;
    scgi_temp_path {scratch}/scgi;
    client_max_body_size 0;
    keepalive_requests 1000000;
    sendfile on;
    server {{
        listen unix:{scratch}/plain;
        listen 127.0.0.1:{port};
        root {scratch}/www;
        {dav}
    }}
    server {{
        listen unix:{scratch}/told proxy_protocol;
        location / {{ return 200 "$proxy_protocol_addr:$proxy_protocol_port\\n"; }}
    }}
}}
"""


def check(condition, text):
    if not condition:
        raise AssertionError(text)


def run(*command, timeout=PATIENCE_S):
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    check(done.returncode == 0, f"{command[0]} ended with {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def checksum(path):
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


class Nginx:
    """Runs until the end of the with."""

    def __enter__(self):
        self.directory = tempfile.TemporaryDirectory()
        self.scratch = pathlib.Path(self.directory.name)
        self.www = self.scratch / "www"
        (self.www / "put").mkdir(parents=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        # As root it would change to a user of its own, who must not look into this directory.
        user = "user root;" if os.geteuid() == 0 else ""
        dav = "location /put/ { dav_methods PUT; }" if HAS_DAV else ""
        text = CONFIGURATION.format(scratch=self.scratch, port=self.port, user=user, dav=dav)
        (self.scratch / "nginx.conf").write_text(text)
        command = [NGINX, "-p", str(self.scratch), "-c", str(self.scratch / "nginx.conf"), "-e", str(self.scratch / "error.log")]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self.wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def wait(self):
        deadline = time.monotonic() + PATIENCE_S
        while not (self.scratch / "told").is_socket() or not self.answers():
            check(self.process.poll() is None, f"nginx ended: {self.complaints()}")
            check(time.monotonic() < deadline, f"nginx does not listen: {self.complaints()}")
            time.sleep(0.02)

    def answers(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def complaints(self):
        log = self.scratch / "error.log"
        return log.read_text() if log.exists() else ""

    def __exit__(self, kind, value, trace):
        self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.directory.cleanup()


class Proxy:
    """In front of one upstream, until the end of the with."""

    def __init__(self, upstream, *options):
        self.command = [str(build / "examples/proxy"), *options, "127.0.0.1:0", upstream]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        said = self.process.stdout.readline()
        check(said.startswith("listening "), f"the proxy did not start: {said}")
        self.url = "http://" + said.split()[1]
        return self

    def __exit__(self, kind, value, trace):
        self.process.kill()
        self.process.communicate()

    def end(self):
        """What it tells when everything that was open has ended."""
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=PATIENCE_S)
        check(self.process.returncode == 0, f"the proxy ended with {self.process.returncode}")
        return {name: int(value) for name, value in re.findall(r"([\w-]+)=(\d+)", said)}


# ---- cases ------------------------------------------------------------------------------------------------------


def upstreams(nginx):
    return f"unix:{nginx.scratch}/plain", f"127.0.0.1:{nginx.port}"


def a_large_file_comes_whole(nginx):
    expected = make_file(nginx.www / "large")
    for upstream in upstreams(nginx):
        with Proxy(upstream) as proxy:
            run("curl", "-sSf", "-o", str(nginx.scratch / "got"), f"{proxy.url}/large")
            check(checksum(nginx.scratch / "got") == expected, "other bytes")
            figures = proxy.end()
            check(figures["to-client"] > MIB << 20 and figures["copied"] == 0, f"{figures}")


def a_large_file_comes_whole_to_a_slow_reader(nginx):
    expected = make_file(nginx.www / "slow", 8)
    with Proxy(upstreams(nginx)[0]) as proxy:
        run("curl", "-sSf", "--limit-rate", "4M", "-o", str(nginx.scratch / "got"), f"{proxy.url}/slow")
        check(checksum(nginx.scratch / "got") == expected, "other bytes")
        check(proxy.end()["queue-peak"] < 2 << 20, "more was queued than a pipe may")


def make_file(path, mib=MIB):
    with open(path, "wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
    return checksum(path)


def a_large_file_goes_whole(nginx):
    expected = make_file(nginx.scratch / "sent")
    for i, upstream in enumerate(upstreams(nginx)):
        with Proxy(upstream) as proxy:
            run("curl", "-sSf", "-H", "Expect:", "-T", str(nginx.scratch / "sent"), f"{proxy.url}/put/{i}")
            check(checksum(nginx.www / f"put/{i}") == expected, "other bytes")
            figures = proxy.end()
            check(figures["to-upstream"] > MIB << 20 and figures["copied"] == 0, f"{figures}")


def many_requests_share_a_connection(nginx):
    requests = 300
    with Proxy(upstreams(nginx)[0]) as proxy:
        lines, parts = [], []
        for i in range(requests):
            data = os.urandom(1 + i * 37 % 5000)
            (nginx.www / f"part{i}").write_bytes(data)
            parts.append(data)
            lines.append(f'url = "{proxy.url}/part{i}"\noutput = "{nginx.scratch}/part{i}"\n')
        (nginx.scratch / "urls").write_text("".join(lines))
        run("curl", "-sSf", "-K", str(nginx.scratch / "urls"))
        wrong = [i for i in range(requests) if (nginx.scratch / f"part{i}").read_bytes() != parts[i]]
        check(not wrong, f"other bytes in {wrong[:10]}")
        check(proxy.end()["sessions"] == 1, "curl did not use one connection")


def nginx_is_told_who_the_client_is(nginx):
    with Proxy(f"unix:{nginx.scratch}/told", "--proxy-header") as proxy:
        said = run("curl", "-sSf", "-w", "%{local_ip}:%{local_port}\n", f"{proxy.url}/").splitlines()
        check(len(said) == 2 and said[0] == said[1] and said[0].startswith("127.0.0.1:"), f"{said}")


def load_passes_without_an_error(nginx):
    (nginx.www / "small").write_bytes(os.urandom(3000))
    for name, connections in (("small", 64), ("part", 8)):
        (nginx.www / "part").write_bytes(os.urandom(300_000))
        with Proxy(upstreams(nginx)[0]) as proxy:
            said = run("wrk", "-t2", f"-c{connections}", "-d3s", "--timeout", "10s", f"{proxy.url}/{name}")
            check("Socket errors" not in said and "Non-2xx" not in said, said)
            served = re.search(r"(\d+) requests in", said)
            check(served and int(served[1]) >= connections, said)
            figures = proxy.end()
            check(figures["failed"] == 0 and figures["sessions"] >= connections, f"{figures}")


def nginx_has_nothing_to_complain_of(nginx):
    check(nginx.complaints() == "", nginx.complaints())


# ---- running ----------------------------------------------------------------------------------------------------


def case(function, nginx, *needed):
    global count, failed
    count += 1
    name = function.__name__
    missing = [program for program in needed if shutil.which(program) is None]
    if NGINX is None:
        missing.append("nginx")
    elif function is a_large_file_goes_whole and not HAS_DAV:
        missing.append("nginx with http_dav_module")
    if missing:
        print(f"ok {count} # SKIP {name}: no {', no '.join(missing)}", flush=True)
        return
    try:
        function(nginx)
        print(f"ok {count} - {name}", flush=True)
    except Exception:  # also what a process throws is a case that failed
        failed += 1
        print(f"not ok {count} - {name}")
        for line in traceback.format_exc().splitlines():
            print(f"# {line}", flush=True)


def all_cases(nginx):
    case(a_large_file_comes_whole, nginx, "curl")
    case(a_large_file_comes_whole_to_a_slow_reader, nginx, "curl")
    case(a_large_file_goes_whole, nginx, "curl")
    case(many_requests_share_a_connection, nginx, "curl")
    case(nginx_is_told_who_the_client_is, nginx, "curl")
    case(load_passes_without_an_error, nginx, "wrk")
    case(nginx_has_nothing_to_complain_of, nginx)


if NGINX is None:
    all_cases(None)
else:
    with Nginx() as running:
        all_cases(running)
print(f"1..{count}")
sys.exit(failed > 0)
