# send:HOST:PORT:MIB sends MIB mebibytes and says what went.  The data is known
# to both ends and to the harness: busybox's first bytes after a block number,
# so that lost, doubled and swapped blocks all change the sum.
block() {
    printf '%08d' "$1"
    head -c 1048568 /bin/busybox
}
step_send() {
    number=0
    while [ $((number += 1)) -le "$3" ]; do block $number; done > /tmp/sent
    say "sending=$(stat -c %s /tmp/sent) md5=$(md5sum < /tmp/sent | cut -d ' ' -f 1)"
    read -r began _ < /proc/uptime
    nc "$1" "$2" < /tmp/sent || return 1
    read -r ended _ < /proc/uptime
    say "sent=$(stat -c %s /tmp/sent) began=$began ended=$ended"
}
