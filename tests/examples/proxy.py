#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the proxy example between sockets of this program: every byte, every end, every signal.

    proxy.py BUILD_ROOT [CASE...]

Prints TAP.
"""

import contextlib
import errno
import os
import pathlib
import random
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback

build = pathlib.Path(sys.argv[1]).resolve()
PATIENCE_S = 20
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
RESET = struct.pack("ii", 1, 0)
count = failed = 0


def check(condition, text):
    if not condition:
        raise AssertionError(text)


def text_of(address):
    return f"unix:{address}" if isinstance(address, str) else f"127.0.0.1:{address[1]}"


def upstream(backlog=64):
    listener = socket.create_server(("127.0.0.1", 0), backlog=backlog)
    listener.settimeout(PATIENCE_S)
    return listener


def nobody():
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()


class Proxy:
    """Runs until the end of the with, in front of some listeners or addresses."""

    def __init__(self, *upstreams, at="127.0.0.1:0", header=False):
        places = [text_of(u.getsockname() if isinstance(u, socket.socket) else u) for u in upstreams]
        self.command = [str(build / "examples/proxy"), *(["--proxy-header"] if header else []), at, *places]

    def __enter__(self):
        self.complaints = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=self.complaints, text=True, bufsize=1
        )
        said = self.process.stdout.readline()
        found = re.fullmatch(r"listening (?:unix:(.*)|\[?([^\]]*?)\]?:(\d+))\n", said)
        check(found, f"it said {said!r}, {self.complained()}")
        self.address = found[1] or (found[2], int(found[3]))
        return self

    def __exit__(self, kind, value, trace):
        self.process.kill()
        self.process.communicate()
        self.complaints.close()

    def complained(self):
        self.complaints.seek(0)
        return self.complaints.read()

    def connect(self):
        family = socket.AF_UNIX
        if not isinstance(self.address, str):
            family = socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET
        peer = socket.socket(family)
        peer.settimeout(PATIENCE_S)
        peer.connect(self.address)
        return peer

    def join(self, listener):
        """A connection through it: (client, upstream)."""
        client = self.connect()
        server = listener.accept()[0]
        server.settimeout(PATIENCE_S)
        return client, server

    def told(self):
        """The figures that it tells next."""
        return {name: int(value) for name, value in re.findall(r"([\w-]+)=(\d+)", self.process.stdout.readline())}

    def ask(self):
        self.process.send_signal(signal.SIGUSR1)
        return self.told()

    def ask_until(self, holds):
        """What is counted when a connection ends is counted soon after its peers have seen it."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds(figures := self.ask()):
            check(time.monotonic() < deadline, f"{figures}")
            time.sleep(0.01)
        return figures

    def has_ended(self, status=0):
        said, _ = self.process.communicate(timeout=PATIENCE_S)
        check(self.process.returncode == status, f"ended with {self.process.returncode}: {self.complained()}")
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


def send_cut_anywhere(peer, data, numbers):
    at = 0
    while at < len(data):
        size = numbers.choice((1, 10, 1000, 70_000))
        size = numbers.randint(1, size)
        peer.sendall(data[at : at + size])
        at += size
        if numbers.random() < 0.01:
            time.sleep(0.001)
    peer.shutdown(socket.SHUT_WR)


def reset(peer):
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    peer.close()


def is_reset(peer):
    try:
        receive_all(peer)
    except ConnectionResetError:
        return True
    return False


def exchange(client, server, sizes, seed):
    """Both ways at once, in pieces of any size."""
    numbers = random.Random(seed)
    parts = [numbers.randbytes(size) for size in sizes]
    senders = [
        threading.Thread(target=send_cut_anywhere, args=(peer, part, random.Random(seed + i)))
        for i, (peer, part) in enumerate(zip((client, server), parts))
    ]
    came = []
    reader = threading.Thread(target=lambda: came.append(receive_all(client)))
    for thread in [*senders, reader]:
        thread.start()
    there = receive_all(server)
    for thread in [*senders, reader]:
        thread.join()
    check(there == parts[0], f"seed {seed}: other bytes to the upstream")
    check(came == [parts[1]], f"seed {seed}: other bytes to the client")
    client.close()
    server.close()


# ---- bytes ------------------------------------------------------------------------------------------------------


def every_byte_both_ways():
    with upstream() as listener, Proxy(listener) as proxy:
        total = [0, 0]
        for seed, sizes in enumerate(((0, 0), (1, 0), (0, 1), (300_000, 5), (5, 300_000), (2_000_003, 3_000_001))):
            exchange(*proxy.join(listener), sizes, seed)
            total = [a + b for a, b in zip(total, sizes)]
        figures = proxy.ask_until(lambda f: f["open"] == 0)
        check(figures["to-upstream"] == total[0] and figures["to-client"] == total[1], f"{figures}, not {total}")
        check(figures["sessions"] == 6 and figures["failed"] == 0 and figures["copied"] == 0, f"{figures}")
        check(0 < figures["memory-peak"] <= figures["budget"], f"{figures}")


@contextlib.contextmanager
def unix_pair(scratch):
    """(a listener, a proxy in front of it)"""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(scratch + "/upstream")
        listener.listen(8)
        listener.settimeout(PATIENCE_S)
        with Proxy(listener, at=f"unix:{scratch}/proxy") as proxy:
            yield listener, proxy


def unix_sockets_on_both_sides():
    with tempfile.TemporaryDirectory() as scratch, unix_pair(scratch) as (listener, proxy):
        exchange(*proxy.join(listener), (1_000_000, 2_000_000), 7)


def many_connections_at_once():
    with upstream(256) as listener, Proxy(listener) as proxy:
        pairs = [proxy.join(listener) for _ in range(100)]
        threads, wrong = [], []

        def one(pair, seed):
            try:
                exchange(*pair, (random.Random(seed).randint(0, 100_000), 50_000 - seed), seed)
            except Exception as problem:
                wrong.append(problem)

        for seed, pair in enumerate(pairs):
            threads.append(threading.Thread(target=one, args=(pair, seed)))
            threads[-1].start()
        for thread in threads:
            thread.join()
        check(not wrong, f"{len(wrong)} of 100: {wrong[:1]}")
        figures = proxy.ask_until(lambda f: f["open"] == 0)
        check(figures["sessions"] == 100, f"{figures}")


def a_slow_reader_holds_the_writer_back():
    # Unix sockets: the kernel's part of what is under way is small there.
    for towards_client in (False, True):
        with tempfile.TemporaryDirectory() as scratch, unix_pair(scratch) as (listener, proxy):
            client, server = proxy.join(listener)
            reader, writer = (client, server) if towards_client else (server, client)
            data, sent = os.urandom(1 << 20), 0
            writer.settimeout(0.5)
            try:
                while sent < 64 << 20:
                    sent += writer.send(memoryview(data)[sent % len(data) :])
            except TimeoutError:
                pass
            check(sent < 8 << 20, f"{sent} bytes were taken for one who reads none")
            writer.shutdown(socket.SHUT_WR)
            check(receive_all(reader) == (data * (sent // len(data) + 1))[:sent], "other bytes")
            reader.shutdown(socket.SHUT_WR)
            check(receive_all(writer) == b"", "bytes came back")
            figures = proxy.ask_until(lambda f: f["open"] == 0)
            check(figures["queue-peak"] < 2 << 20 and figures["copied"] == 0, f"{figures}")


# ---- upstreams --------------------------------------------------------------------------------------------------


def upstreams_are_taken_in_turn():
    with upstream() as first, upstream() as second, upstream() as third:
        listeners = [first, second, third]
        with Proxy(*listeners) as proxy:
            for i in range(9):
                client = proxy.connect()
                ready, _, _ = select.select(listeners, [], [], PATIENCE_S)
                check(ready == [listeners[i % 3]], f"the {i}th went to {[listeners.index(r) for r in ready]}")
                exchange(client, ready[0].accept()[0], (10, 10), i)


def the_next_one_is_tried_when_one_refuses():
    dead = nobody()
    with upstream() as listener, Proxy(dead, listener) as proxy:
        for seed in range(4):
            exchange(*proxy.join(listener), (1000, 1000), seed)
        complaints = proxy.complained()
        check(complaints.count(f"proxy: {text_of(dead)}: connection refused\n") == 2, complaints)
        check(proxy.ask_until(lambda f: f["open"] == 0)["failed"] == 0, "one failed")


def the_next_one_is_tried_when_one_does_not_answer():
    # A listener whose queue is full drops what would connect.
    with upstream(0) as deaf, upstream() as listener:
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
            fillers.append(filler)
        with Proxy(deaf, listener) as proxy:
            begin = time.monotonic()
            pair = proxy.join(listener)
            took = time.monotonic() - begin
            check(1.9 < took < PATIENCE_S, f"after {took} s")
            exchange(*pair, (1000, 1000), 1)
            check(f"proxy: {text_of(deaf.getsockname())}: " in proxy.complained(), proxy.complained())
        for filler in fillers:
            filler.close()


def what_a_client_sent_while_it_waited_is_not_lost():
    with upstream() as listener, Proxy(nobody(), nobody(), listener) as proxy:
        client = proxy.connect()
        client.sendall(b"early")
        client.shutdown(socket.SHUT_WR)
        server = listener.accept()[0]
        check(receive_all(server) == b"early", "other bytes")
        server.sendall(b"late")
        server.close()
        check(receive_all(client) == b"late", "other bytes")


def a_client_without_an_upstream_is_reset():
    with Proxy(nobody(), nobody()) as proxy:
        for i in range(3):
            try:
                peer = proxy.connect()
            except ConnectionResetError:
                continue  # so soon that connect says it
            check(is_reset(peer), f"the {i}th was not")
        figures = proxy.ask_until(lambda f: f["open"] == 0)
        check(figures["failed"] == figures["sessions"] == 3, f"{figures}")
        check(proxy.complained().count("connection refused") == 6, proxy.complained())


# ---- ends -------------------------------------------------------------------------------------------------------


def each_half_ends_by_itself():
    for client_first in (False, True):
        with upstream() as listener, Proxy(listener) as proxy:
            client, server = proxy.join(listener)
            early, late = (client, server) if client_first else (server, client)
            early.sendall(b"all of mine")
            early.shutdown(socket.SHUT_WR)
            check(receive_all(late) == b"all of mine", "other bytes")
            for i in range(5):  # the other half goes on
                late.sendall(b"%d" % i)
                check(receive(early, 1) == b"%d" % i, "other bytes")
            check(proxy.ask()["open"] == 1, "it was not waited for")
            late.shutdown(socket.SHUT_WR)
            check(receive_all(early) == b"", "more bytes")
            proxy.ask_until(lambda f: f["open"] == 0)


def a_reset_is_passed_on_as_one():
    for by_client in (False, True):
        for busy in (False, True):
            with upstream() as listener, Proxy(listener) as proxy:
                client, server = proxy.join(listener)
                one, other = (client, server) if by_client else (server, client)
                one.sendall(b"x")
                check(receive(other, 1) == b"x", "other bytes")
                if busy:
                    one.settimeout(0.3)
                    try:
                        while True:
                            one.sendall(bytes(1 << 16))
                    except TimeoutError:
                        pass
                reset(one)
                check(is_reset(other), f"an end, {by_client=} {busy=}")
                proxy.ask_until(lambda f: f["open"] == 0)


def read_at_random(peer, numbers, expected, limit, way):
    """Reads some, rests, goes on. At the limit it half-closes, resets, or goes on to the end. What it got, and the end."""
    data, has_acted = bytearray(), False
    try:
        while chunk := peer.recv(numbers.choice((1, 1000, 65536))):
            data += chunk
            if numbers.random() < 0.02:
                time.sleep(numbers.random() * 0.01)
            if len(data) >= limit and not has_acted:
                has_acted = True
                if way == "reset":
                    reset(peer)
                    return bytes(data), "reset"
                if way == "half":
                    peer.shutdown(socket.SHUT_WR)
        end = "end"
    except ConnectionResetError:
        end = "reset"
    check(expected.startswith(bytes(data)), "other bytes")
    return bytes(data), end


def a_reader_stops_goes_on_and_leaves_at_any_point():
    with upstream() as listener, Proxy(listener) as proxy:
        for seed in range(24):
            numbers = random.Random(seed)
            client, server = proxy.join(listener)
            reader, writer = (client, server) if seed % 2 else (server, client)
            data = numbers.randbytes(numbers.choice((0, 1000, 1_000_000)))
            way = ("on", "half", "reset")[seed % 3]
            seen = []

            def write(writer=writer, data=data, seen=seen):
                try:
                    writer.sendall(data)
                    writer.shutdown(socket.SHUT_WR)
                    check(receive_all(writer) == b"", "bytes came back")
                    seen.append("end")
                except OSError as problem:  # shutdown says of a connection that was reset that it is none
                    check(problem.errno in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN), f"{problem}")
                    seen.append("reset")

            thread = threading.Thread(target=write)
            thread.start()
            limit = numbers.randint(0, len(data)) if data else 0
            got, end = read_at_random(reader, numbers, data, limit, way)
            if way != "reset" or not data:
                check(end == "end" and got == data, f"seed {seed}, {way}: {end} after {len(got)} of {len(data)}")
            reader.close()
            thread.join()
            if end == "end":
                check(seen == ["end"], f"seed {seed}, {way}: the writer saw {seen}")
            elif len(got) < len(data):
                check(seen == ["reset"], f"seed {seed}, {way}: the writer saw {seen}")
            writer.close()
        figures = proxy.ask_until(lambda f: f["open"] == 0)
        check(figures["failed"] == 0, f"{figures}")


# ---- the header -------------------------------------------------------------------------------------------------


def header_of(proxy, listener):
    """(the client, what an upstream gets first of it)"""
    client, server = proxy.join(listener)
    client.sendall(b"payload")
    client.shutdown(socket.SHUT_WR)
    data = receive_all(server)
    server.close()
    check(data.endswith(b"payload"), f"{data}")
    return client, data.removesuffix(b"payload")


def a_header_tells_an_ipv4_client():
    with upstream() as listener, Proxy(listener, header=True) as proxy:
        client, header = header_of(proxy, listener)
        ports = struct.pack(">HH", client.getsockname()[1], proxy.address[1])
        expected = SIGNATURE + b"\x21\x11\0\x0c" + b"\x7f\0\0\1" * 2 + ports
        check(header == expected, f"{header}, not {expected}")


def a_header_tells_an_ipv6_client():
    with upstream() as listener, Proxy(listener, at="[::1]:0", header=True) as proxy:
        client, header = header_of(proxy, listener)
        ports = struct.pack(">HH", client.getsockname()[1], proxy.address[1])
        expected = SIGNATURE + b"\x21\x21\0\x24" + (bytes(15) + b"\1") * 2 + ports
        check(header == expected, f"{header}, not {expected}")


def a_header_tells_nothing_of_a_unix_client():
    with tempfile.TemporaryDirectory() as scratch, upstream() as listener:
        with Proxy(listener, at=f"unix:{scratch}/proxy", header=True) as proxy:
            header = header_of(proxy, listener)[1]
            check(header == SIGNATURE + b"\x21\0\0\0", f"{header}")


def a_header_comes_once_and_costs_nothing_of_the_answer():
    with upstream() as listener, Proxy(nobody(), listener, header=True) as proxy:
        client, server = proxy.join(listener)
        check(receive(server, 28)[:12] == SIGNATURE, "no header before the payload")
        exchange(client, server, (500_000, 500_000), 3)
        check(proxy.ask_until(lambda f: f["open"] == 0)["to-upstream"] == 500_000, "the header was counted")


# ---- signals ----------------------------------------------------------------------------------------------------


def refuses(proxy):
    """Is its port closed? Not yet is waited for a moment: a signal is a matter of turns."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            reset(proxy.connect())
        except (ConnectionRefusedError, ConnectionResetError):
            return True
        time.sleep(0.005)
    return False


def a_signal_lets_open_connections_end():
    for number in (signal.SIGTERM, signal.SIGINT):
        with upstream() as listener, Proxy(listener) as proxy:
            client, server = proxy.join(listener)
            client.sendall(b"before")
            check(receive(server, 6) == b"before", "other bytes")
            proxy.process.send_signal(number)
            check(refuses(proxy), "its port is open still")
            check(proxy.process.poll() is None, "it did not wait")
            exchange(client, server, (1_000_000, 1_000_000), 1)
            last = proxy.has_ended()
            check(" to-upstream=1000006 to-client=1000000 " in last and " open=0 " in last, last)


def a_second_signal_ends_at_once():
    for numbers in ((signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)):
        with upstream() as listener, Proxy(listener) as proxy:
            client, server = proxy.join(listener)
            proxy.process.send_signal(numbers[0])
            check(refuses(proxy), "its port is open still")
            proxy.process.send_signal(numbers[1])
            begin = time.monotonic()
            check(is_reset(client) and is_reset(server), "an end instead of a reset")
            proxy.has_ended()
            check(time.monotonic() - begin < PATIENCE_S, "it waited for its grace")


def a_signal_with_nothing_open_ends_it():
    with upstream() as listener, Proxy(listener) as proxy:
        proxy.process.send_signal(signal.SIGTERM)
        check(proxy.has_ended().startswith("sessions=0 open=0 failed=0 "), "other figures")


def a_client_that_waits_for_an_upstream_is_reset_at_the_end():
    with upstream(0) as deaf:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        with Proxy(deaf) as proxy:
            client = proxy.connect()
            proxy.ask_until(lambda f: f["open"] == 1)
            proxy.process.send_signal(signal.SIGTERM)
            check(refuses(proxy), "its port is open still")
            proxy.process.send_signal(signal.SIGTERM)
            check(is_reset(client), "an end, though nobody answered")
            proxy.has_ended()
        for filler in fillers:
            filler.close()


# ---- mistakes ---------------------------------------------------------------------------------------------------


def run(*arguments):
    command = [str(build / "examples/proxy"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    check(done.stdout == "", done.stdout)
    return done.returncode, done.stderr


def a_wrong_command_line_is_answered_with_the_right_one():
    for arguments in ((), ("127.0.0.1:0",), ("--proxy-header",), ("--proxy-header", "127.0.0.1:0"), ("--help",),
                      ("--header", "127.0.0.1:0", "127.0.0.1:1")):  # fmt: skip
        status, said = run(*arguments)
        check(status == 2, f"{arguments}: ended with {status}")
        check(said.startswith("usage: proxy [--proxy-header] ADDRESS UPSTREAM...\n"), said)


def an_address_that_cannot_be_used_is_named():
    with upstream() as taken:
        place = text_of(taken.getsockname())
        for arguments, wrong, why in (
            ((place, "127.0.0.1:1"), place, "already in use"),
            (("nowhere", "127.0.0.1:1"), "nowhere", "invalid argument"),
            (("127.0.0.1:0", "127.0.0.1:1", "localhost:80"), "localhost:80", "invalid argument"),
        ):
            status, said = run(*arguments)
            check(status == 1, f"{arguments}: ended with {status}")
            check(said.startswith(f"proxy: {wrong}: ") and why in said, f"{arguments}: {said}")


# ---- running ----------------------------------------------------------------------------------------------------

for function in (
    every_byte_both_ways,
    unix_sockets_on_both_sides,
    many_connections_at_once,
    a_slow_reader_holds_the_writer_back,
    upstreams_are_taken_in_turn,
    the_next_one_is_tried_when_one_refuses,
    the_next_one_is_tried_when_one_does_not_answer,
    what_a_client_sent_while_it_waited_is_not_lost,
    a_client_without_an_upstream_is_reset,
    each_half_ends_by_itself,
    a_reset_is_passed_on_as_one,
    a_reader_stops_goes_on_and_leaves_at_any_point,
    a_header_tells_an_ipv4_client,
    a_header_tells_an_ipv6_client,
    a_header_tells_nothing_of_a_unix_client,
    a_header_comes_once_and_costs_nothing_of_the_answer,
    a_signal_lets_open_connections_end,
    a_second_signal_ends_at_once,
    a_signal_with_nothing_open_ends_it,
    a_client_that_waits_for_an_upstream_is_reset_at_the_end,
    a_wrong_command_line_is_answered_with_the_right_one,
    an_address_that_cannot_be_used_is_named,
):
    if sys.argv[2:] and function.__name__ not in sys.argv[2:]:
        continue
    count += 1
    try:
        function()
        print(f"ok {count} - {function.__name__}", flush=True)
    except Exception:  # also what a socket or a process throws is a case that failed
        failed += 1
        print(f"not ok {count} - {function.__name__}")
        for line in traceback.format_exc().splitlines():
            print(f"# {line}", flush=True)
print(f"1..{count}")
sys.exit(failed > 0)
