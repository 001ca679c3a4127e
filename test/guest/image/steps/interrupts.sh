# Says which interrupts the driver took and how often each has fired.
step_interrupts() { grep virtio /proc/interrupts | tr -s ' ' | report irq; }
