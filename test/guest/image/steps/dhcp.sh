# Brings the link up and gets a lease.
step_dhcp() {
    ip link set lo up
    ip link set "$(netdev)" up || return 1
    if ! udhcpc -i "$(netdev)" -f -q -n -t 10 -T 1 -s /lease > /tmp/udhcpc 2>&1; then
        report udhcpc < /tmp/udhcpc
        return 1
    fi
    . /tmp/lease
    say "ip=$ip"
    say "gateway=$gateway"
    say "dhcp_server=$server"
}
