# upload:HOST:PORT:MIB:TIMES sends mebibytes by TCP, so many times.
step_upload() {
    head -c $(($3 << 20)) /dev/zero > /tmp/upload
    time=0
    while [ $((time += 1)) -le "$4" ]; do nc "$1" "$2" < /tmp/upload || return 1; done
    rm /tmp/upload
}
