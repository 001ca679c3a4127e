# Removes the drivers, which a driver that hangs on its device would prevent.
step_unload() { rmmod virtio_net && rmmod virtio_pci && say "unloaded=yes"; }
