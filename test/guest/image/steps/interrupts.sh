# Says which interrupts the driver took and how often each has fired.
step_interrupts() { tr -s " " < /proc/interrupts | grep virtio | report irq; }
