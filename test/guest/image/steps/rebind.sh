# rebind:TIMES takes the driver away and gives it back, with traffic after each.
step_rebind() {
    . /tmp/lease
    driver=$(basename "$(readlink "$device/driver")")
    time=0
    while [ $((time += 1)) -le "$1" ]; do
        echo "$bdf" > "/sys/bus/pci/drivers/$driver/unbind" || return 1
        [ -z "$(netdev)" ] || return 1
        echo "$bdf" > "/sys/bus/pci/drivers/$driver/bind" || return 1
        ip link set "$(netdev)" up || return 1
        ip addr add "$ip/$mask" dev "$(netdev)"
        ping -q -A -i 10 -c 5 -w 60 "$gateway" > /tmp/ping 2>&1
        say "rebind=$time link=$(cat "$device"/virtio*/net/*/carrier)" \
            "ping=$(sed -n 's/^\([0-9]*\) packets transmitted, \([0-9]*\) .*/\2\/\1/p' /tmp/ping)"
    done
}
