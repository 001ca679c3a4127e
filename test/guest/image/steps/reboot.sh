# Resets the machine.  The next boot does the same steps again, so it is for
# the harness to count boots and to end the run.
step_reboot() {
    say "rebooting=yes"
    reboot -f
    sleep 60
}
