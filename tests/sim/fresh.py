#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the simulator for some minutes on seeds that no commit had before.

    fresh.py SIM SOURCE_ROOT MINUTES

They follow from the commit's hash: each commit has its own, and one that fails here fails everywhere. Outside of a
repository they follow from the time.
"""

import os
import subprocess
import sys
import time

sim, root, minutes = sys.argv[1:]
head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True)
number = int(head.stdout[:10], 16) if head.returncode == 0 else int(time.time())
os.execv(sim, [sim, "--minutes", minutes, "--from", str(number * 1000000), "--tap"])
