# Pieces of a laboratory, for the set-ups of test/guest and test/lab, which
# source this after they have set:
#
#   lab     name in messages
#   cache   folder of the pieces, outside the checkout
#
# A piece is a file or folder in the cache that appears under its name only when
# it is whole, with a key that says what it was made from.
#
# Packages are fetched with apt's resolver but into private folders, against an
# empty list of installed packages. That needs no root, no chroot and no mount,
# and brings the C library that a program wants together with its loader.
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

start=$(date +%s)
say() { printf '%s: [%3d s] %s\n' "$lab" $(($(date +%s) - start)) "$*"; }
die() { say "$*" >&2; exit 1; }

# is PIECE KEY: whether PIECE was finished from the same inputs.
is() { [ -e "$cache/$1" ] && [ "$(cat "$cache/.key-$1" 2>/dev/null)" = "$2" ]; }
# finish PIECE KEY: PIECE.new becomes PIECE.
finish() {
    rm -rf "${cache:?}/$1" "$cache/.key-$1"
    mv "$cache/$1.new" "$cache/$1"
    echo "$2" > "$cache/.key-$1"
}
key_of() { printf '%s\n' "$@" | sha256sum | cut -c1-16; }

# One set-up at a time; a second waits for the first.
take_cache() {
    mkdir -p "$cache"
    exec 9> "$cache/.lock"
    flock -n 9 || { say "waiting for another set-up"; flock 9; }
    : > "$cache/apt.log"
}

# need_tools COMMAND:PACKAGE...
need_tools() {
    missing=
    for tool in "$@"; do
        command -v "${tool%%:*}" > /dev/null || missing="$missing ${tool#*:}"
    done
    [ -n "$missing" ] || return 0
    say "installing$missing"
    [ "$(id -u)" = 0 ] || die "not root: apt-get install$missing"
    { apt-get -q update && apt-get -q -y install --no-install-recommends $missing
    } > "$cache/tools.log" 2>&1 || die "failed, see $cache/tools.log"
}

# --- a private apt -----------------------------------------------------------
# The mirror is whatever this machine's apt uses for Debian itself; proxies and
# credentials stay in force because the machine's apt.conf is still read.
apt=$cache/apt
fetch() { apt-get -q -c "$apt/apt.conf" "$@" >> "$cache/apt.log" 2>&1 ||
    die "apt-get $1 failed, see $cache/apt.log"; }

mirror() {
    apt-get indextargets --format '$(REPO_URI) $(LABEL)' 'Created-By: Packages' |
        awk 'NF == 2 && $2 == "Debian" { print $1; exit }'
}

# open_apt SUITE...: a suite named src:SUITE is one of sources.
open_apt() {
    [ -z "${opened-}" ] || return 0
    uri=$(mirror)
    if [ -z "$uri" ]; then   # package lists never fetched on this machine
        apt-get -q update >> "$cache/apt.log" 2>&1 || true
        uri=$(mirror)
    fi
    [ -n "$uri" ] || die "this machine's apt has no Debian mirror"
    rm -rf "$apt"   # lists of an interrupted run may name packages that are gone
    mkdir -p "$apt/lists/partial" "$apt/archives/partial"
    : > "$apt/status"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    options=check-valid-until=no   # a mirror may be a frozen copy
    [ ! -f "$keyring" ] || options="$options signed-by=$keyring"
    for source; do
        case $source in
        src:*) echo "deb-src [$options] $uri ${source#src:} main";;
        *) echo "deb [$options] $uri $source main";;
        esac
    done > "$apt/sources.list"
    cat > "$apt/apt.conf" <<X
Dir::State "$apt";
Dir::State::status "$apt/status";
Dir::State::lists "$apt/lists";
Dir::Cache "$apt";
Dir::Cache::archives "$apt/archives";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Default-Release "";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
#clear APT::Update::Post-Invoke-Success;
Acquire::Languages "none";
Acquire::Retries "3";
X
    say "fetching package lists"
    fetch update
    opened=yes
}

# unpack FOLDER: the fetched packages go into FOLDER.
unpack() {
    say "unpacking"
    for deb in "$apt"/archives/*.deb; do
        dpkg-deb -x "$deb" "$1"
        rm "$deb"
    done
}

# release_of SUITE: the kernel release that linux-image-amd64 of SUITE stands for.
release_of() {
    apt-cache -c "$apt/apt.conf" show "linux-image-amd64/$1" |
        sed -n 's/^Depends:.*linux-image-\([0-9][^ ,]*\).*/\1/p' | head -1
}

# take_modules TREE FOLDER NAME...: modules of an unpacked kernel, uncompressed,
# with their names in FOLDER/order; absent ones are built in, or part of others.
take_modules() {
    from=$1 into=$2
    shift 2
    : > "$into/order"
    for module; do
        file=$(find "$from" -name "$module.ko*" | head -1)
        case $file in
        *.ko) cp "$file" "$into/";;
        *.ko.xz) xz -dc "$file" > "$into/$module.ko";;
        *) continue;;
        esac
        echo "$module" >> "$into/order"
    done
}

# busybox_tree BUSYBOX TREE: the beginning of an initramfs.
busybox_tree() {
    mkdir -p "$2/bin" "$2/proc" "$2/sys" "$2/dev" "$2/tmp" "$2/modules"
    cp "$1" "$2/bin/busybox"
    for applet in $("$2/bin/busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$2/bin/$applet"
    done
}

# pack TREE FILE
pack() { (cd "$1" && find . | cpio -o -H newc --quiet) > "$2"; }
