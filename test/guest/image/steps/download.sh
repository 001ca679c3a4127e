# download:HOST:PORT:TIMES takes TCP streams until each ends.
step_download() {
    # nc would close its side at once if its input were at an end.
    mkfifo /tmp/open
    exec 3<> /tmp/open
    time=0
    while [ $((time += 1)) -le "$3" ]; do nc "$1" "$2" <&3 > /dev/null || return 1; done
    exec 3>&-
}
