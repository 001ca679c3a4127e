# echoes:COUNT asks the gateway, each next echo as soon as the last was answered,
# and says how many milliseconds each took.
step_echoes() {
    . /tmp/lease
    ping -A -i 10 -c "$1" -w 120 "$gateway" > /tmp/echoes 2>&1 || return 1
    say "echoes=$(sed -n 's/.* time=\([0-9.]*\) ms.*/\1/p' /tmp/echoes | tr '\n' ' ' | sed 's/ $//')"
}
