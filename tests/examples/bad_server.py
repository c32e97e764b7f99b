#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Stands in the place of demo_server, to see whether demo.sh notices what is wrong.

    bad_server.py WAY ADDRESS CONNECTIONS

WAY is one of: honest (nothing is wrong), flips (one bit of one connection), cuts (the last byte of one
connection), crosses (gives one connection's bytes to another), dies (in the middle), leaves (the same, but ends
with 0), fails (sends everything, then ends with 1), miscounts (by one byte), mute (ends before it listens), stuck
(never answers).
"""

import os
import socket
import sys
import threading
import time

way, address, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
host, _, port = address.rpartition(":")
total = 0
lock = threading.Lock()


def echo(number, peer):
    """Reads everything first: the parts are small here. What is wrong is so in connection 7."""
    global total
    data = bytearray()
    while chunk := peer.recv(65536):
        data += chunk
        if number == 7 and way in ("dies", "leaves"):
            os._exit(1 if way == "dies" else 0)
    with lock:
        total += len(data)
    if number == 7 and way == "flips":
        data[len(data) // 2] ^= 4
    if number == 7 and way == "cuts":
        del data[-1]
    if way == "crosses" and number in crossed:
        crossed[number] = data
        gate.wait()
        data = crossed[15 - number]
    while way == "stuck":
        time.sleep(1)
    peer.sendall(data)
    peer.shutdown(socket.SHUT_WR)
    peer.close()


if way == "mute":
    sys.exit(1)
crossed = {7: None, 8: None}
gate = threading.Barrier(2)
listener = socket.create_server((host, int(port)), backlog=count)
print(f"listening {host}:{listener.getsockname()[1]}", flush=True)
peers = [listener.accept()[0] for _ in range(count)]
threads = [threading.Thread(target=echo, args=pair, daemon=True) for pair in enumerate(peers)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(f"backend=none bytes={total + (way == 'miscounts')} copied={total}")
sys.exit(way == "fails")
