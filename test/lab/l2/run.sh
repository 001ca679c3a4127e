#!/bin/sh
# run QEMU...: runs a guest, and again if its machine ended before the guest said
# a word: under nested KVM on an emulated CPU a kernel dies early now and then,
# long before it looks at a device, whichever driver that has in L1.
said=/tmp/l2.$$
for boot in 1 2 3; do
    { "$@"; echo $? > $said.status; } < /dev/null | tee $said
    read -r status < $said.status
    [ "$status" = 0 ] && ! grep -q ^GUEST $said || break
    echo "l2_died=$boot"
done
exit "$status"
