# receive:PORT takes one TCP stream and says what came.
step_receive() {
    # nc would close its side at once if its input were at an end.
    mkfifo /tmp/idle
    exec 3<> /tmp/idle
    nc -l -p "$1" <&3 > /tmp/received &
    until netstat -ltn | grep -q ":$1 "; do usleep 100000; done
    say "listening=$1"
    wait $!
    say "received=$(stat -c %s /tmp/received) md5=$(md5sum < /tmp/received | cut -d ' ' -f 1)"
}
