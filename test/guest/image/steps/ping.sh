# ping:COUNT[:ROUNDS[:HOST]] asks the gateway or HOST, each next echo as soon
# as the last was answered.  A line a round lets the harness act in between.
# An echo without answer is followed by the next after ten seconds and makes the
# round one longer than asked for; a machine that is merely slow does not.
step_ping() {
    . /tmp/lease
    host=${3:-$gateway}
    round=0
    while [ $((round += 1)) -le "${2:-1}" ]; do
        ping -q -A -i 10 -c "$1" -w 120 "$host" > /tmp/ping 2>&1
        say "ping=$(sed -n 's/^\([0-9]*\) packets transmitted, \([0-9]*\) .*/\2\/\1/p' /tmp/ping)" \
            "round=$round host=$host $(sed -n 's/^round-trip .* = /ms=/p' /tmp/ping)"
    done
    return 0
}
