# Finds the one virtio network function of this guest: sets $device to its
# folder in sysfs and $bdf to its address.
for device in /sys/bus/pci/devices/*; do
    [ "$(cat "$device/vendor")" != 0x1af4 ] || break
    device=
done
[ -n "$device" ] || end "no virtio function"
bdf=${device##*/}

# Prints the name of the network interface, or nothing while there is none.
netdev() { ls "$device"/virtio*/net 2> /dev/null | head -1; }
