# Says what the kernel said about virtio.
step_dmesg() { dmesg | grep -i virtio | report dmesg; }
