# Says what the function looks like to PCI and to virtio.
step_identity() {
    say "bdf=$bdf"
    for file in vendor device revision subsystem_vendor subsystem_device class; do
        say "$file=$(cat "$device/$file")"
    done
    # resource: one "first last flags" line a BAR; flag 0x100 is I/O ports.
    say "bar0=$(head -1 "$device/resource")"
    # Offset 0x3d is the interrupt pin; zero means that INTx does not exist.
    say "pin=$(od -A n -t u1 -j 61 -N 1 "$device/config" | tr -d ' ')"
    [ -e "$device/driver" ] && say "driver=$(basename "$(readlink "$device/driver")")"
    for virtio in "$device"/virtio*; do
        [ -e "$virtio" ] || continue
        features=$(cat "$virtio/features")   # one character a bit, bit 0 first
        say "features=$features"
        say "version_1=$(echo "$features" | cut -c 33)"
        say "status=$(cat "$virtio/status")"
        [ -e "$virtio/driver" ] &&
            say "virtio_driver=$(basename "$(readlink "$virtio/driver")")"
    done
    say "netdev=$(netdev)"
    [ -n "$(netdev)" ] && say "mac=$(cat "$device"/virtio*/net/*/address)"
    return 0
}
