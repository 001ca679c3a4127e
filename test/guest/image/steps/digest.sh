# digest:HOST:PORT:MIB sends mebibytes by TCP to a host that answers with their
# MD5 sum, and says both sums.
. /steps/send.sh
step_digest() {
    number=0
    while [ $((number += 1)) -le "$3" ]; do block $number; done > /tmp/sent
    say "digest=$(md5sum < /tmp/sent | cut -d ' ' -f 1)" \
        "answer=$(nc "$1" "$2" < /tmp/sent | cut -d ' ' -f 1)"
}
