#!/bin/sh
# SPDX-License-Identifier: MIT
#
# demo.sh BUILD [MIB [CONNECTIONS]] - send a random file through weir's echo server, cut into parts, each over a
# connection of its own by a socat of its own, all at once, and see whether all of it comes back. Then have clients
# fetch it from a server, both socat, through weir's proxy. Shows what that cost, and ends with 0 only if every byte
# was right.
#
# ./dev demo calls it, after building. It starts only what it ends itself, and leaves nothing behind.

set -eu

build=${1:?usage: demo.sh BUILD [MIB [CONNECTIONS]]}
mib=${2:-64}
connections=${3:-64}
idle_s=20

directory=
server=
proxy=
clients=

cleanup() {
    # What is not waited for yet is ours still, so the numbers cannot be somebody else's by now.
    for pid in $clients $proxy $server; do kill -9 "$pid" 2>/dev/null || :; done
    wait
    [ -z "$directory" ] || rm -rf "$directory"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
    echo "demo: FAILED: $*" >&2
    exit 1
}

checksum() { cat "$@" | sha256sum | cut -d ' ' -f 1; }

command -v socat >/dev/null || fail "there is no socat (./dev deps installs it)"

# ---- what is sent -----------------------------------------------------------------------------------------------

# The parts are a little larger than equal, so that they begin and end at odd places.
directory=$(mktemp -d)
bytes=$((mib * 1048576))
head -c "$bytes" /dev/urandom >"$directory/file"
split -a 2 -b $((bytes / connections + 7)) "$directory/file" "$directory/sent."

# ---- the server -------------------------------------------------------------------------------------------------

mkfifo "$directory/said"
"$build/examples/demo_server" 127.0.0.1:0 "$connections" >"$directory/said" &
server=$!
exec 3<"$directory/said"
read -r _ address <&3 || fail "the server did not start"

# ---- the clients ------------------------------------------------------------------------------------------------

# Most write little at a time into a small send buffer, which makes many small receives, as busy servers see them;
# some write much and read slowly, which makes the server's sends stop halfway. It is not about speed. When a part
# is sent, socat ends its half of the connection and waits for the other.
echo "demo: $mib MiB through $connections connections of socat to $address"
number=0
for part in "$directory"/sent.??; do
    case $((number % 8)) in
    0) block=8192 options=rcvbuf=4096,sndbuf=65536 ;;
    *) block=1024 options=nodelay,sndbuf=4096 ;;
    esac
    socat -b $block -t $idle_s -T $idle_s - "TCP:$address,$options" \
        <"$part" >"$directory/back.${part##*.}" 2>>"$directory/complaints" 3<&- &
    clients="$clients $!"
    number=$((number + 1))
done
failed=0
for pid in $clients; do
    wait "$pid" || failed=$((failed + 1))
    clients=${clients#" $pid"}
done
if [ "$failed" -gt 0 ]; then
    head -n 3 "$directory/complaints" >&2
    kill "$server" 2>/dev/null || :
    status=0
    wait "$server" || status=$?
    server=
    [ "$status" -eq 143 ] || echo "demo: the server had ended, with $status" >&2 # 143: it was we who ended it
    fail "$failed of $connections clients failed"
fi

# ---- what came back ---------------------------------------------------------------------------------------------

# The parts' names sort as they were cut.
before=$(checksum "$directory/file")
after=$(checksum "$directory"/back.??)
if [ "$before" != "$after" ]; then
    for part in "$directory"/sent.??; do
        cmp "$part" "$directory/back.${part##*.}" 2>&1 || :
    done | head -n 5 >&2
    fail "what came back is not what was sent"
fi

# Its last client gone, the server tells its figures and ends.
status=0
cat <&3 >"$directory/figures"
wait "$server" || status=$?
server=
[ "$status" -eq 0 ] || fail "the server ended with $status"
last=$(tail -n 1 "$directory/figures")
case " $last " in
*" bytes=$bytes "*) ;;
*) fail "the server counted otherwise: $last" ;;
esac
sed '$d' "$directory/figures"
echo "  sha256       $before"

# ---- through the proxy ------------------------------------------------------------------------------------------

# Every client gets the whole file; the server would like to send it at once, and some clients read slowly.
readers=4
echo "demo: $mib MiB to each of $readers clients, through a proxy"
socat -b 262144 "UNIX-LISTEN:$directory/origin,fork,backlog=64" "OPEN:$directory/file,rdonly" \
    2>>"$directory/complaints" 3<&- &
server=$!
waits=0
until [ -S "$directory/origin" ]; do
    waits=$((waits + 1))
    [ "$waits" -lt 100 ] || fail "the server of the second part did not start"
    sleep 0.1
done
mkfifo "$directory/proxied"
"$build/examples/proxy" 127.0.0.1:0 "unix:$directory/origin" >"$directory/proxied" 3<&- &
proxy=$!
exec 4<"$directory/proxied"
read -r _ address <&4 || fail "the proxy did not start"
number=0
while [ "$number" -lt "$readers" ]; do
    case $((number % 4)) in
    0) options=rcvbuf=4096 ;;
    *) options=nodelay ;;
    esac
    socat -u -b 65536 -T $idle_s "TCP:$address,$options" "CREATE:$directory/fetched.$number" \
        2>>"$directory/complaints" 3<&- 4<&- &
    clients="$clients $!"
    number=$((number + 1))
done
for pid in $clients; do
    wait "$pid" || fail "a client of the proxy failed: $(head -n 3 "$directory/complaints")"
    clients=${clients#" $pid"}
done
for fetched in "$directory"/fetched.*; do
    [ "$(checksum "$fetched")" = "$before" ] || fail "what came through the proxy is not what was sent"
done
kill -TERM "$proxy"
status=0
figures=$(tail -n 1 <&4)
wait "$proxy" || status=$?
proxy=
[ "$status" -eq 0 ] || fail "the proxy ended with $status"
figure() { printf '%s' " $figures" | sed -n "s/.* $1=\([0-9]*\).*/\1/p"; }
[ "$(figure to-client)" = $((readers * bytes)) ] || fail "the proxy counted otherwise: $figures"
copied=$(figure copied)
[ "$copied" -eq 0 ] || fail "the proxy copied $copied bytes"
echo "  bytes        $(figure to-client) through the proxy, $copied copied"
echo "  memory       $(($(figure memory-peak) / 1024)) KiB at most, of a budget of $(($(figure budget) / 1048576)) MiB;" \
    "$(($(figure queue-peak) / 1024)) KiB in the longest queue"
echo "demo: ok $last"
