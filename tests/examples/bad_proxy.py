#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Stands in the place of proxy, to see whether demo.sh notices what is wrong.

    bad_proxy.py WAY ADDRESS UPSTREAM

WAY is one of: honest (nothing is wrong), flips (one bit of the second connection), cuts (its last byte), dies (in the
middle of it), miscounts (by one byte), copies (and says so), fails (sends everything, then ends with 1), mute (ends
before it listens). Passes on what comes from the upstream, a Unix socket, and ends at SIGTERM.
"""

import os
import signal
import socket
import sys
import threading

way, address, place = sys.argv[1], sys.argv[2], sys.argv[3].removeprefix("unix:")
host, _, port = address.rpartition(":")
total = 0
lock = threading.Lock()


def tell(*_):
    figures = f"to-client={total + (way == 'miscounts')} copied={7 * (way == 'copies')}"
    print(f"sessions=0 open=0 {figures} queue-peak=1 memory-peak=1 budget=1048576", flush=True)
    os._exit(way == "fails")


def serve(number, client):
    global total
    upstream = socket.socket(socket.AF_UNIX)
    upstream.connect(place)
    data = bytearray()
    while chunk := upstream.recv(65536):
        data += chunk
        if number == 1 and way == "dies":
            os._exit(0)
    with lock:
        total += len(data)
    if number == 1 and way == "flips":
        data[len(data) // 2] ^= 4
    if number == 1 and way == "cuts":
        del data[-1]
    client.sendall(data)
    client.close()


if way == "mute":
    sys.exit(1)
signal.signal(signal.SIGTERM, tell)
listener = socket.create_server((host, int(port)))
print(f"listening {host}:{listener.getsockname()[1]}", flush=True)
for accepted in range(1000):
    threading.Thread(target=serve, args=(accepted, listener.accept()[0]), daemon=True).start()
