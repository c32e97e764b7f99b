#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the examples as the comments at their heads say, and the demo with servers that it must not believe.

    run.py SOURCE_ROOT BUILD_ROOT

Prints TAP. What needs socat is skipped where there is none.
"""

import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

root, build = (pathlib.Path(p).resolve() for p in sys.argv[1:])
PATIENCE_S = 20
count = failed = 0


def check(condition, text):
    if not condition:
        raise AssertionError(text)


class Server:
    """An example, running at an address of its own until the end of the with."""

    def __init__(self, name, *arguments, tcp=False):
        self.command = [str(build / "examples" / name)]
        self.arguments = [str(a) for a in arguments]
        self.scratch = tempfile.TemporaryDirectory()
        self.tcp = tcp

    def __enter__(self):
        if self.tcp:
            # Free a moment ago, and unlikely to be taken meanwhile.
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.address = free.getsockname()
            text = "%s:%d" % self.address
        else:
            self.address = self.scratch.name + "/socket"
            text = f"unix:{self.address}"
        self.process = subprocess.Popen(
            self.command + [text] + self.arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return self

    def __exit__(self, kind, value, trace):
        self.process.kill()
        self.process.communicate()
        self.scratch.cleanup()

    def connect(self):
        """A connection, as soon as it listens."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            peer = socket.socket(socket.AF_INET if self.tcp else socket.AF_UNIX)
            peer.settimeout(PATIENCE_S)
            try:
                peer.connect(self.address)
                return peer
            except (ConnectionRefusedError, FileNotFoundError):
                peer.close()
                if self.process.poll() is not None:
                    raise AssertionError(f"the server ended: {self.process.stdout.read()}") from None
                check(time.monotonic() < deadline, "the server does not listen")
                time.sleep(0.01)

    def end(self, number=signal.SIGTERM):
        """Ends it by a signal that it is to take well. Returns what it said."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self):
        said, _ = self.process.communicate(timeout=PATIENCE_S)
        check(self.process.returncode == 0, f"ended with {self.process.returncode}: {said}")
        return said


def receive(peer, size):
    data = bytearray()
    while len(data) < size:
        chunk = peer.recv(size - len(data))
        check(chunk, f"ended after {len(data)} of {size} bytes")
        data += chunk
    return bytes(data)


def receive_all(peer):
    data = bytearray()
    while chunk := peer.recv(65536):
        data += chunk
    return bytes(data)


def send_all(peer, data):
    peer.sendall(data)
    peer.shutdown(socket.SHUT_WR)


# ---- echo -------------------------------------------------------------------------------------------------------


def every_byte_comes_back(tcp):
    with Server("echo", tcp=tcp) as server:
        parts = [os.urandom(size) for size in (0, 1, 65536, 1_000_003, 3_000_000)]
        peers = [server.connect() for _ in parts]
        senders = [threading.Thread(target=send_all, args=pair) for pair in zip(peers, parts)]
        for sender in senders:
            sender.start()
        for peer, part in zip(peers, parts):
            check(receive_all(peer) == part, f"other bytes of {len(part)}")
        for sender in senders:
            sender.join()


def echo_over_tcp():
    every_byte_comes_back(tcp=True)


def echo_over_a_unix_socket():
    every_byte_comes_back(tcp=False)


def echo_does_not_read_from_whom_does_not_read():
    with Server("echo") as server:
        peer = server.connect()
        peer.settimeout(0.3)
        data = os.urandom(1 << 20)
        sent = 0
        try:
            while sent < 64 << 20:
                sent += peer.send(memoryview(data)[sent % len(data) :])
        except TimeoutError:
            pass
        check(sent < 16 << 20, f"{sent} bytes were taken from a peer that read none")
        peer.settimeout(PATIENCE_S)
        peer.shutdown(socket.SHUT_WR)
        expected = (data * (sent // len(data) + 1))[:sent]
        check(receive_all(peer) == expected, "other bytes")


def echo_survives_a_reset():
    with Server("echo", tcp=True) as server:
        for _ in range(20):
            peer = server.connect()
            peer.sendall(os.urandom(300_000))
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            peer.close()
        peer = server.connect()
        send_all(peer, b"still there?")
        check(receive_all(peer) == b"still there?", "it is not")


def echo_serves_socat():
    with Server("echo", tcp=True) as server:
        server.connect().close()
        data = os.urandom(5_000_000)
        command = ["socat", "-t10", "-", "TCP:%s:%d" % server.address]
        done = subprocess.run(command, input=data, capture_output=True, timeout=PATIENCE_S)
        check(done.returncode == 0 and done.stdout == data, f"{len(done.stdout)} bytes, {done.stderr}")


def an_example_says_why_it_cannot_listen():
    with tempfile.TemporaryDirectory() as scratch:
        taken = socket.socket(socket.AF_UNIX)
        taken.bind(scratch + "/taken")
        for name, arguments in (("echo", []), ("frames", []), ("lines", []), ("sink", []), ("chat", []), ("demo_server", ["1"])):
            for address, reason in ((f"unix:{scratch}/taken", "already in use"), ("nowhere", "invalid argument")):
                command = [str(build / "examples" / name), address, *arguments]
                done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
                check(done.returncode == 1, f"{name} {address}: ended with {done.returncode}")
                check(name in done.stderr and reason in done.stderr, f"{name} {address}: said {done.stderr}")


def info_says_what_runs_and_what_could():
    def run(backend):
        environment = {k: v for k, v in os.environ.items() if k != "WEIR_BACKEND"} | backend
        command = [str(build / "examples/info")]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment)

    done = run({})
    check(done.returncode == 0 and done.stderr == "", f"ended with {done.returncode}, said {done.stderr}")
    modes = dict(re.findall(r"^mode +([a-z-]+) +(yes|no)\b", done.stdout, re.M))
    check(list(modes) == ["uring-incremental", "uring-classic", "epoll"] and modes["epoll"] == "yes", done.stdout)
    best = next(mode for mode, is_there in modes.items() if is_there == "yes")
    check(re.search(rf"^backend +{best}\b", done.stdout, re.M), f"{best} is to be had: {done.stdout}")
    for mode, is_there in modes.items():
        done = run({"WEIR_BACKEND": mode})
        if is_there == "yes":
            check(re.search(rf"^backend +{mode}\b", done.stdout, re.M), f"{mode} was asked for: {done.stdout}")
        else:
            check(done.returncode == 1 and re.search("ENOSYS|EPERM", done.stderr), f"{mode}: {done.stderr}")
    done = run({"WEIR_BACKEND": "magic"})
    check(done.returncode == 1 and "WEIR_BACKEND" in done.stderr, f"magic: {done.returncode}, {done.stderr}")


def readme_shows_echo_as_it_is():
    source = (root / "examples/echo.c").read_text(encoding="utf-8")
    check(len(source.splitlines()) < 40, "no longer under 40 lines")
    check(f"```c\n{source}```" in (root / "README.md").read_text(encoding="utf-8"), "it shows another one")


# ---- frames and lines -------------------------------------------------------------------------------------------


def send_cut_anywhere(peer, data, numbers, longest):
    """In pieces of any size, and then our end; sometimes with a pause, so that one is received alone."""
    at = 0
    while at < len(data):
        size = numbers.randint(1, longest)
        peer.sendall(data[at : at + size])
        at += size
        if numbers.random() < 0.02:
            time.sleep(0.002)
    peer.shutdown(socket.SHUT_WR)


def talk(server, data, numbers, longest=3000):
    """What comes back for it."""
    with server.connect() as peer:
        sender = threading.Thread(target=send_cut_anywhere, args=(peer, data, numbers, longest))
        sender.start()
        answers = receive_all(peer)
        sender.join()
        return answers


def make_frame(numbers, size):
    return size.to_bytes(4, "big") + numbers.randbytes(size)


def frames_come_back_however_they_were_cut():
    for seed, tcp in ((1, True), (2, False)):
        numbers = random.Random(seed)
        with Server("frames", tcp=tcp) as server:
            sizes = [0, 1, 3, 65536, 1 << 20] + [numbers.choice((5, 100, 3000, 70_000)) for _ in range(100)]
            data = b"".join(make_frame(numbers, size) for size in sizes)
            check(talk(server, data, numbers) == data, f"seed {seed}: other bytes")
            check(talk(server, data, numbers, longest=1 << 20) == data, "other bytes at once")
            short = b"".join(make_frame(numbers, size) for size in (0, 7, 30, 1))
            check(talk(server, short, numbers, longest=1) == short, "other bytes one by one")
            half = short + make_frame(numbers, 50)[:-1]
            check(talk(server, half, numbers) == short, "half a frame was answered")


def frames_waits_for_whom_does_not_read():
    numbers = random.Random(3)
    with Server("frames") as server:
        data = b"".join(make_frame(numbers, 10_000) for _ in range(2_000))
        peer = server.connect()
        sender = threading.Thread(target=send_all, args=(peer, data))
        sender.start()
        sender.join(0.5)
        check(sender.is_alive(), "20 MB were taken from a peer that read none")
        check(receive_all(peer) == data, "other bytes")
        sender.join()


def frames_refuses_one_that_is_too_long():
    with Server("frames", tcp=True) as server:
        peer = server.connect()
        peer.sendall(b"\0\0\0\1x" + (1 + (1 << 20)).to_bytes(4, "big"))
        try:
            check(receive_all(peer) in (b"", b"\0\0\0\1x"), "other bytes")
            check(False, "no reset")
        except ConnectionResetError:
            pass
        check(talk(server, b"\0\0\0\2ok", random.Random(4)) == b"\0\0\0\2ok", "it does not go on")


def frames_serves_socat():
    with Server("frames", tcp=True) as server:
        server.connect().close()
        data = b"".join(make_frame(random.Random(5), size) for size in (0, 5, 500_000, 1 << 20, 1))
        command = ["socat", "-t10", "-", "TCP:%s:%d" % server.address]
        done = subprocess.run(command, input=data, capture_output=True, timeout=PATIENCE_S)
        check(done.returncode == 0 and done.stdout == data, f"{len(done.stdout)} bytes, {done.stderr}")


def lines_are_answered_however_they_were_cut():
    for seed, tcp in ((1, True), (2, False)):
        numbers = random.Random(seed)
        sent, expected = bytearray(), bytearray()
        for _ in range(3000):
            text = bytes(numbers.choice(b"abc \r\t\xff") for _ in range(numbers.choice((0, 1, 10, 300, 4000)))) + b"."
            end = numbers.choice((b"\n", b"\r\n"))
            what = numbers.randrange(8)
            if what == 0:
                sent += text[:20] + end
                expected += b"error: echo or length?\n"
            elif what == 1:
                sent += b"length " + text + end
                expected += b"%d\n" % len(text)
            else:
                sent += b"echo " + text + end
                expected += text + end
        with Server("lines", tcp=tcp) as server:
            check(talk(server, bytes(sent), numbers) == expected, f"seed {seed}: other answers")
            check(talk(server, bytes(sent), numbers, longest=1 << 20) == expected, f"seed {seed}: other answers at once")


def lines_are_answered_byte_by_byte():
    sent = b"echo one\r\nlength 12345\r\n\necho \nnonsense\necho last"
    expected = b"one\r\n5\nerror: echo or length?\n\nerror: echo or length?\nlast\n"
    with Server("lines") as server:
        check(talk(server, sent, random.Random(6), longest=1) == expected, "other answers")
        peer = server.connect()
        for i in range(len(sent)):
            peer.sendall(sent[i : i + 1])
            time.sleep(0.001)
        peer.shutdown(socket.SHUT_WR)
        answers = receive_all(peer)
        check(answers == expected, answers)


def lines_says_that_a_line_is_too_long():
    with Server("lines", tcp=True) as server:
        said = b"error: the line is too long\n"
        longest = b"echo " + b"x" * 4090 + b"\n"
        check(len(longest) == 4096, "count again")
        for rest in (b"echo " + b"x" * 4091 + b"\n", b"y" * 4097, b"y" * 1_000_000):
            answers = talk(server, longest + rest, random.Random(7))
            check(answers == longest[5:] + said, f"{answers[-100:]}")


def lines_waits_for_whom_does_not_read():
    line = b"echo " + b"z" * 999 + b"\n"
    with Server("lines") as server:
        peer = server.connect()
        sender = threading.Thread(target=send_all, args=(peer, line * 20_000))
        sender.start()
        sender.join(0.5)
        check(sender.is_alive(), "20 MB were taken from a peer that read none")
        check(receive_all(peer) == line[5:] * 20_000, "other answers")
        sender.join()


# ---- sink -------------------------------------------------------------------------------------------------------


def sink_counts_every_byte():
    sizes = [1, 70_000, 2_000_000]
    with Server("sink") as server:
        for size in sizes:
            peer = server.connect()
            send_all(peer, bytes(size))
            check(receive_all(peer) == b"", "a sink answered")  # it has read to our end, then it closed
        last = server.end().splitlines()[-1]
        found = re.fullmatch(r"sink: (\d+) bytes in (\d+) slices from (\d+) streams", last)
        check(found and int(found[1]) == sum(sizes) and int(found[3]) == len(sizes), last)
        check(int(found[2]) >= len(sizes), last)


def sink_tells_once_a_second():
    with Server("sink") as server:
        peer = server.connect()
        peer.sendall(bytes(1 << 20))
        check(server.process.stdout.readline().startswith("listening on unix:"), "no address")
        line = server.process.stdout.readline()
        check(re.match(r" +1\.0 MiB/s +1\.0 MiB +\d+ slices +1 streams", line), line)
        server.end(signal.SIGINT)


# ---- chat -------------------------------------------------------------------------------------------------------

CAME, LEFT = b"* someone came\n", b"* someone left\n"


def connect_members(server, number):
    """One after the other. When it returns, each has heard of all others."""
    members = []
    for _ in range(number):
        members.append(server.connect())
        for member in members[:-1]:
            check(receive(member, len(CAME)) == CAME, "a member heard nothing of the next one")
        check(receive(members[-1], len(CAME) * (len(members) - 1)) == CAME * (len(members) - 1), "other history")
    return members


def chat_tells_the_others():
    with Server("chat") as server:
        ann, ben, cy = connect_members(server, 3)
        ben.sendall(b"hello\n")
        for peer in (ann, cy):
            check(receive(peer, 6) == b"hello\n", "not said to all")
        cy.sendall(b"bye\n")
        cy.close()
        for peer in (ann, ben):
            check(receive(peer, 4 + len(LEFT)) == b"bye\n" + LEFT, "nobody noticed that Cy left")
        server.end()


def chat_remembers_the_last_of_it():
    with Server("chat") as server:
        ann, ben = connect_members(server, 2)
        lines = [b"line %d\n" % i for i in range(30)] + [os.urandom(30_000)]
        for line in lines:
            ann.sendall(line)
            receive(ben, len(line))
        late = server.connect()
        end = b"".join(lines[-8:])
        heard = bytearray()
        while not heard.endswith(end):
            heard += late.recv(65536)
        check(b"line 29\n" in heard and b"line 5\n" not in heard, bytes(heard[:300]))
        server.end()


def chat_cuts_off_whom_does_not_listen():
    with Server("chat") as server:
        ann, ben, deaf = connect_members(server, 3)
        chunk, heard = os.urandom(100_000), b""
        for _ in range(100):
            ann.sendall(chunk)
            heard += receive(ben, len(chunk))
        heard += receive(ben, len(LEFT))
        check(LEFT in heard, "the one who does not listen is there still")
        check(heard.replace(LEFT, b"", 1) == chunk * 100, "other bytes")
        try:
            check(len(receive_all(deaf)) < 9_000_000, "all of it was held for one who did not listen")
        except ConnectionResetError:
            pass
        server.end()


# ---- the demo ---------------------------------------------------------------------------------------------------


def demo_server_waits_for_all_and_tells():
    with Server("demo_server", 2) as server:
        first = server.connect()
        send_all(first, b"alone")
        first.settimeout(0.2)
        try:
            check(not first.recv(5), "")
            check(False, "it did not wait")
        except TimeoutError:
            first.settimeout(PATIENCE_S)
        second = server.connect()
        send_all(second, b"together")
        check(receive_all(first) == b"alone" and receive_all(second) == b"together", "other bytes")
        last = server.wait().splitlines()[-1]
        check(re.fullmatch(r"backend=io_uring-(incremental|classic) bytes=13 copied=0", last), last)


CONNECTIONS = 12  # of a server that is wrong: enough to be told apart


def demo(scratch, way=None, proxy_way=None):
    """Runs demo.sh in a directory of its own, with a server, or a proxy, that is wrong in some way."""
    directory, temporary = scratch / "build", scratch / "tmp"
    temporary.mkdir()
    size = ["1", str(CONNECTIONS)] if way or proxy_way else ["2", "64"]
    (directory / "examples").mkdir(parents=True)
    for name, stand_in, wrong in (("demo_server", "bad_server.py", way), ("proxy", "bad_proxy.py", proxy_way)):
        command = f"'{build / 'examples' / name}'"
        if wrong is not None:
            command = f"'{sys.executable}' '{root / 'tests/examples' / stand_in}' {wrong}"
        program = directory / "examples" / name
        program.write_text(f"#!/bin/sh\nexec {command} \"$@\"\n")
        program.chmod(0o755)
    return subprocess.Popen(
        ["sh", str(root / "examples/demo.sh"), str(directory), *size],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ), temporary


def check_demo(way, status, said, proxy_way=None):
    with tempfile.TemporaryDirectory() as scratch:
        process, temporary = demo(pathlib.Path(scratch), way, proxy_way)
        output, _ = process.communicate(timeout=2 * PATIENCE_S)  # also: nobody holds its output open afterwards
        way = (way, proxy_way)
        check(process.returncode == status, f"{way}: ended with {process.returncode}: {output}")
        check(re.search(said, output), f"{way}: said {output}")
        check((status == 0) == bool(re.search(r"^demo: ok", output, re.M)), f"{way}: said {output}")
        check(not list(temporary.iterdir()), f"{way}: left {list(temporary.iterdir())}")


def demo_shows_weir():
    check_demo(None, 0, r"\ndemo: ok backend=io_uring-(incremental|classic) bytes=2097152 copied=0\n\Z")


def demo_believes_an_honest_server():
    check_demo("honest", 0, r"\ndemo: ok backend=none bytes=1048576 copied=1048576\n\Z")


def demo_shows_what_the_proxy_cost():
    check_demo("honest", 0, r"\n  bytes        4194304 through the proxy, 0 copied\n  memory       \d+ KiB at most, of a budget")


def demo_notices_a_proxy_that_is_wrong():
    for way in ("flips", "cuts"):
        check_demo("honest", 1, "FAILED: what came through the proxy is not what was sent", proxy_way=way)
    for way, said in (
        ("dies", "FAILED"),
        ("mute", "FAILED: the proxy did not start"),
        ("fails", "FAILED: the proxy ended with 1"),
        ("miscounts", "FAILED: the proxy counted otherwise"),
        ("copies", "FAILED: the proxy copied 7 bytes"),
    ):
        check_demo("honest", 1, said, proxy_way=way)
    check_demo("honest", 0, "demo: ok", proxy_way="honest")


def demo_notices_wrong_bytes():
    for way in ("flips", "cuts", "crosses"):
        check_demo(way, 1, "FAILED: what came back is not what was sent")


def demo_notices_a_server_that_dies():
    check_demo("dies", 1, "FAILED")
    check_demo("leaves", 1, "FAILED")
    check_demo("mute", 1, "FAILED: the server did not start")


def demo_notices_a_server_that_is_not_well():
    check_demo("fails", 1, "FAILED: the server ended with 1")
    check_demo("miscounts", 1, "FAILED: the server counted otherwise")


def demo_takes_everything_along_when_it_is_ended():
    with tempfile.TemporaryDirectory() as scratch:
        process, temporary = demo(pathlib.Path(scratch), "stuck")
        deadline = time.monotonic() + PATIENCE_S
        while len(list(temporary.glob("*/back.*"))) < CONNECTIONS:
            check(time.monotonic() < deadline, "no clients")
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        # The output ends when the last process that holds it has ended.
        output, _ = process.communicate(timeout=PATIENCE_S)
        check(process.returncode == 143, f"ended with {process.returncode}: {output}")
        check(not list(temporary.iterdir()), f"left {list(temporary.iterdir())}")


# ---- running ----------------------------------------------------------------------------------------------------


def case(function, needs_socat=False):
    global count, failed
    count += 1
    name = function.__name__
    if needs_socat and shutil.which("socat") is None:
        print(f"ok {count} # SKIP {name}: no socat", flush=True)
        return
    try:
        function()
        print(f"ok {count} - {name}", flush=True)
    except Exception:  # also what a socket or a process throws is a case that failed
        failed += 1
        print(f"not ok {count} - {name}")
        for line in traceback.format_exc().splitlines():
            print(f"# {line}", flush=True)


case(echo_over_tcp)
case(echo_over_a_unix_socket)
case(echo_does_not_read_from_whom_does_not_read)
case(echo_survives_a_reset)
case(echo_serves_socat, needs_socat=True)
case(frames_come_back_however_they_were_cut)
case(frames_waits_for_whom_does_not_read)
case(frames_refuses_one_that_is_too_long)
case(frames_serves_socat, needs_socat=True)
case(lines_are_answered_however_they_were_cut)
case(lines_are_answered_byte_by_byte)
case(lines_says_that_a_line_is_too_long)
case(lines_waits_for_whom_does_not_read)
case(info_says_what_runs_and_what_could)
case(readme_shows_echo_as_it_is)
case(an_example_says_why_it_cannot_listen)
case(sink_counts_every_byte)
case(sink_tells_once_a_second)
case(chat_tells_the_others)
case(chat_remembers_the_last_of_it)
case(chat_cuts_off_whom_does_not_listen)
case(demo_server_waits_for_all_and_tells)
case(demo_shows_weir, needs_socat=True)
case(demo_believes_an_honest_server, needs_socat=True)
case(demo_shows_what_the_proxy_cost, needs_socat=True)
case(demo_notices_a_proxy_that_is_wrong, needs_socat=True)
case(demo_notices_wrong_bytes, needs_socat=True)
case(demo_notices_a_server_that_dies, needs_socat=True)
case(demo_notices_a_server_that_is_not_well, needs_socat=True)
case(demo_takes_everything_along_when_it_is_ended, needs_socat=True)
print(f"1..{count}")
sys.exit(failed > 0)
