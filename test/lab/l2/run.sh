#!/bin/sh
# run QEMU...: runs a guest, and again if it said no word in its first 90 seconds:
# under nested KVM on an emulated CPU a kernel dies or stands still early now and
# then, long before it looks at a device, whichever driver that has in L1.
said=/tmp/l2.$$
mkfifo $said.pipe
spoke() { grep -q ^GUEST $said 2> /dev/null; }
for boot in 1 2 3; do
    tee $said < $said.pipe &
    tee=$!
    "$@" < /dev/null > $said.pipe &
    guest=$!
    second=0
    while [ $((second += 1)) -le 90 ] && ! spoke && kill -0 $guest 2> /dev/null; do sleep 1; done
    killed=
    spoke || { kill $guest 2> /dev/null && killed=yes; }
    wait $guest
    status=$?
    wait $tee
    # A QEMU that fails has a reason to tell.
    spoke || [ "$status" != 0 -a -z "$killed" ] || { echo "l2_died=$boot"; continue; }
    break
done
exit $status
