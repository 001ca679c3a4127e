#!/bin/sh
# Doctor, setup and teardown against a real kernel: run as root on a machine with an IOMMU whose PF, named
# by the variable PF, is bound to virtio-pci and may have two VFs. Prints one key=value line a finding, and
# host.failed=COUNT at the end. RETROVF is the command to run.
RETROVF=${RETROVF:-node /retrovf/dist/cli/main.js}
TMP=${TMP:-/tmp/host}
SYS=/sys/bus/pci/devices/$PF
mkdir -p "$TMP"
failed=0

expect() { # NAME WANTED FOUND
    if [ "$2" = "$3" ]; then
        echo "host.$1=ok"
    else
        echo "host.$1=FAILED wanted <$2> found <$3>"
        failed=$((failed + 1))
    fi
}
retrovf() { # runs it; $code, $TMP/out and $TMP/err hold the rest
    $RETROVF "$@" >"$TMP/out" 2>"$TMP/err"
    code=$?
}
driver() { [ -e "$1/driver" ] && basename "$(readlink "$1/driver")" || echo none; }
# Everything that setup may change, on one line.
state() {
    printf '%s' "pf $(driver "$SYS") $(cat "$SYS/driver_override") vfs $(cat "$SYS/sriov_numvfs")"
    printf '%s' " autoprobe $(cat "$SYS/sriov_drivers_autoprobe")"
    for vf in "$SYS"/virtfn*; do
        [ -e "$vf" ] && printf '%s' ", vf $(driver "$vf") $(cat "$vf/driver_override")"
    done
    echo
}
says() { grep -q -- "$1" "$TMP/$2" && echo yes || echo no; }
group() { basename "$(readlink "$SYS/virtfn$1/iommu_group")"; }
# Waits until the file has the text, or for a minute.
await() {
    i=0
    until grep -q -- "$2" "$1" 2>/dev/null || [ $i -ge 300 ]; do sleep 0.2; i=$((i + 1)); done
}

untouched='pf virtio-pci (null) vfs 0 autoprobe 1'
two='pf vfio-pci vfio-pci vfs 2 autoprobe 1, vf vfio-pci vfio-pci, vf vfio-pci vfio-pci'
one='pf vfio-pci vfio-pci vfs 1 autoprobe 1, vf vfio-pci vfio-pci'

expect start.state "$untouched" "$(state)"
netdev=$(ls "$SYS"/virtio*/net)

retrovf doctor
cat "$TMP/out"
expect doctor.before.exit 4 $code
retrovf doctor --json
for id in iommu interrupt-remapping vfio-pci pf-driver pf-vfs pf-admin-queue iommu-group; do
    echo "doctor.before.$id=$(sed -n "s/.*{\"id\":\"$id\",[^}]*\"state\":\"\([a-z]*\)\".*/\1/p" "$TMP/out")"
done
expect doctor.before.admin-queue yes "$(says 'pf-admin-queue"[^}]*"state":"ok"' out)"
expect doctor.before.pf-driver yes "$(says 'pf-driver"[^}]*"state":"fail"' out)"

retrovf setup "$PF" --vfs 2 --dry-run
cat "$TMP/out"
expect dry-run.exit 0 $code
expect dry-run.script yes "$(says "^echo 2 > $SYS/sriov_numvfs" out)"
expect dry-run.state "$untouched" "$(state)"

ip link set "$netdev" up
retrovf setup "$PF" --vfs 2 --json
expect in-use.exit 6 $code
expect in-use.code yes "$(says ERR_NETDEV_IN_USE err)"
expect in-use.names "yes" "$(says "$netdev" err)"
expect in-use.state "$untouched" "$(state)"

retrovf setup "$PF" --vfs 9 --yes --json
expect too-many.exit 2 $code
expect too-many.code yes "$(says ERR_TOO_MANY_VFS err)"
expect too-many.state "$untouched" "$(state)"

# A signal after the PF has changed its driver: all is taken back.
$RETROVF setup "$PF" --vfs 2 --yes >"$TMP/out" 2>"$TMP/err" &
pid=$!
await "$TMP/err" "bind $PF to vfio-pci"
kill -TERM $pid
wait $pid
expect interrupted.exit 143 $?
expect interrupted.state "$untouched" "$(state)"

# Killed there, so that nothing can be taken back: teardown finishes it.
$RETROVF setup "$PF" --vfs 2 --yes >"$TMP/out" 2>"$TMP/err" &
pid=$!
await "$TMP/err" "bind $PF to vfio-pci"
kill -KILL $pid
wait $pid
expect killed.driver vfio-pci "$(driver "$SYS")"
retrovf teardown "$PF"
expect killed.teardown.exit 0 $code
# Whether the kill came before or after the kernel was told to leave new VFs alone.
echo 1 >"$SYS/sriov_drivers_autoprobe"
expect killed.teardown.state "$untouched" "$(state)"

# The script of a dry run does the same as setup itself.
retrovf setup "$PF" --vfs 2 --dry-run
cp "$TMP/out" "$TMP/script"
sh -e "$TMP/script"
expect script.exit 0 $?
expect script.state "$two" "$(state)"
retrovf teardown "$PF"
expect script.teardown.state "$untouched" "$(state)"

netdev=$(ls "$SYS"/virtio*/net)
ip link set "$netdev" up
retrovf setup "$PF" --vfs 2 --yes
cat "$TMP/err" "$TMP/out"
expect setup.exit 0 $code
expect setup.state "$two" "$(state)"
expect setup.nodes yes "$([ -c "/dev/vfio/$(group 0)" ] && [ -c "/dev/vfio/$(group 1)" ] && echo yes)"

retrovf setup "$PF" --vfs 2 --json
expect again.exit 0 $code
expect again.unchanged yes "$(says '"changed":false,"steps":\[\]' out)"
expect again.state "$two" "$(state)"

retrovf doctor
cat "$TMP/out"
expect doctor.after.exit 0 $code

# A VF that went astray comes back, the other one is left alone.
vf=$(basename "$(readlink "$SYS/virtfn1")")
echo "$vf" >"$SYS/virtfn1/driver/unbind"
echo >"$SYS/virtfn1/driver_override"
retrovf setup "$PF" --vfs 2 --json
expect stray.exit 0 $code
expect stray.state "$two" "$(state)"

retrovf setup "$vf" --vfs 1 --json
expect of-a-vf.exit 4 $code
expect of-a-vf.code yes "$(says ERR_NOT_A_PF err)"

# A VF that a process has open is not taken away.
sh -c "exec 9<>/dev/vfio/$(group 0); echo open >$TMP/opened; exec sleep 600" &
holder=$!
await "$TMP/opened" open
retrovf setup "$PF" --vfs 1 --json
expect held.exit 6 $code
expect held.code yes "$(says ERR_DEVICE_BUSY err)"
expect held.pid yes "$(says "\"pid\":$holder" err)"
retrovf teardown "$PF" --json
expect held.teardown.exit 6 $code
expect held.state "$two" "$(state)"
kill $holder
wait $holder 2>/dev/null

retrovf setup "$PF" --vfs 1
expect fewer.exit 0 $code
expect fewer.state "$one" "$(state)"

echo N >/sys/module/vfio_pci/parameters/enable_sriov
retrovf teardown "$PF" --dry-run
cat "$TMP/out"
expect teardown.dry-run.state "$one" "$(state)"
retrovf teardown "$PF"
cat "$TMP/err" "$TMP/out"
expect teardown.exit 0 $code
expect teardown.state "$untouched" "$(state)"
expect teardown.netdev yes "$(ls "$SYS"/virtio*/net >/dev/null && echo yes)"
expect teardown.parameter N "$(cat /sys/module/vfio_pci/parameters/enable_sriov)"

retrovf teardown "$PF" --json
expect teardown-again.exit 0 $code
expect teardown-again.unchanged yes "$(says '"changed":false,"steps":\[\]' out)"
expect teardown-again.state "$untouched" "$(state)"

echo "host.failed=$failed"
