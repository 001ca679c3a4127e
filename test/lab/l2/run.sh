#!/bin/sh
# run QEMU...: runs a guest, and again if it said no word in its first 90 seconds:
# under nested KVM on an emulated CPU a kernel dies early now and then, long
# before it looks at a device, whichever driver that has in L1. What the guest
# says stands in /tmp/l2.said too, by QEMU's hand: whoever else stood between it
# and the serial line could find that full and give up.
said=/tmp/l2.said
spoke() { grep -q ^GUEST $said 2> /dev/null; }
for boot in 1 2 3; do
    rm -f $said
    "$@" < /dev/null &
    guest=$!
    second=0
    while [ $((second += 1)) -le 90 ] && ! spoke && kill -0 $guest 2> /dev/null; do sleep 1; done
    killed=
    spoke || { kill $guest 2> /dev/null && killed=yes; }
    wait $guest
    status=$?
    # A QEMU that fails has a reason to tell.
    spoke || [ "$status" != 0 -a -z "$killed" ] || { echo "l2_died=$boot"; continue; }
    break
done
exit $status
