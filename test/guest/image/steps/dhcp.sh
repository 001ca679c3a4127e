# Brings the link up and gets a lease.
step_dhcp() {
    ip link set lo up
    ip link set "$(netdev)" up || return 1
    udhcpc -i "$(netdev)" -f -q -n -t 10 -T 1 -s /lease > /tmp/udhcpc 2>&1 && return
    report udhcpc < /tmp/udhcpc
    return 1
}
