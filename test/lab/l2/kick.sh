# kick:ROUNDS:SAMPLES says what a kick of each virtio function costs, in the order of
# their addresses. Each has its queues: its link is up.
step_kick() {
    set -- "$1" "$2" $(grep -l 0x1af4 /sys/bus/pci/devices/*/vendor | cut -d / -f 6)
    for link in /sys/class/net/*; do ip link set "${link##*/}" up || return 1; done
    kick "$@" > /tmp/kick 2>&1
    status=$?
    report kick < /tmp/kick
    return $status
}
