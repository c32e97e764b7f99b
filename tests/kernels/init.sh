#!/bin/busybox sh
# shellcheck shell=dash
# SPDX-License-Identifier: MIT
#
# The first process of a virtual machine that run.py boots: sets up what the tests want of a system, runs those in
# /tests/list and switches the machine off. What run.py is to understand stands on lines that start with "@@".
#
# /tests/settings sets JOBS, PATIENCE_S, SYSCTLS ("name=value ...") and RUN_AS (empty: root).
# A line of /tests/list: NAME alone|along MODE twin|single TIMEOUT_S PROGRAM; a twin's program also runs with the mode
# "auto", and nothing else runs along with one that is alone.

export PATH=/bin
finish() {
    echo "@@ done"
    exec /bin/busybox reboot -f
}

# Hundredths of a second since the machine was switched on.
ticks() { cut -d ' ' -f 1 /proc/uptime | tr -d .; }

# say_what_came NAME STATUS FILE TICKS - all of it at once, whatever else comes to an end now.
say_what_came() {
    until mkdir /tmp/console 2>/dev/null; do sleep 0.02; done
    echo "@@ begin $1"
    cat "$3"
    echo
    # A signal: what the kernel says of it, a lack of memory for one.
    if [ "$2" -ge 128 ]; then dmesg | tail -n 8; fi
    echo "@@ end $1 $2 $4"
    rmdir /tmp/console
}

as_user() { if [ -n "$RUN_AS" ]; then su -s /bin/sh "$RUN_AS" -c "$*"; else "$@"; fi; }

# run_one NAME MODE TIMEOUT_S PROGRAM
run_one() {
    export WEIR_TEST_MODE="$2" WEIR_TEST_PATIENCE_S="$PATIENCE_S" CMOCKA_MESSAGE_OUTPUT=TAP
    log=$(mktemp)
    since=$(ticks)
    as_user timeout -s KILL "$3" "$4" >"$log" 2>&1 </dev/null
    say_what_came "$1" $? "$log" $(($(ticks) - since))
    rm -f "$log"
}

# shellcheck disable=SC1091 # made by run.py
. /tests/settings
if [ "$1" = one ]; then
    shift
    run_one "$@"
    exit 0
fi

/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs tmp /tmp
chmod 1777 /tmp
ip link set lo up
ulimit -n 4096
for setting in $SYSCTLS; do
    sysctl -w "$setting" >/dev/null || echo "@@ unset $setting"
done
echo "@@ kernel $(uname -r)"

as_user /tests/mode >/tmp/modes
cat /tmp/modes

# What the kernel cannot have is said, not run; run.py knows what it should be able to have. Nor does a program run twice
# where "auto" means just that mode.
chosen=$(sed -n 's/^@@ mode auto \([a-z]*\).*/\1/p' /tmp/modes)
while read -r name alone mode twin rest; do
    if [ "$twin $mode" = "twin $chosen" ]; then
        echo "@@ same $name"
    elif grep -q "^@@ mode $mode none" /tmp/modes; then
        echo "@@ skip $name"
    else
        echo "$alone $name $mode $rest"
    fi
done </tests/list >/tmp/plan
grep "^@@" /tmp/plan
sed -n 's/^along //p' /tmp/plan | xargs -P "$JOBS" -n 4 /bin/busybox sh /init one
sed -n 's/^alone //p' /tmp/plan | xargs -n 4 /bin/busybox sh /init one
finish
