#!/bin/sh
# Makes the guest lab: a QEMU with a vfio-user client, a Linux kernel, an
# initramfs that tests itself, and iPXE.  Everything comes from Debian packages
# and lands in a cache outside the checkout:
#
#   $RETROVF_CACHE/root         QEMU, its libraries, iPXE: unpacked, not installed
#   $RETROVF_CACHE/kernel       Debian 12's kernel and its virtio modules
#   $RETROVF_CACHE/initrd.cpio  busybox, those modules and image/
#
# Run it again at any time: finished pieces are kept, and each piece appears
# under its name only when it is whole, so an interruption costs one piece.
# A second run at the same time waits for the first.
#
# Packages are fetched with apt's resolver but into private folders, against an
# empty list of installed packages.  That needs no root, no chroot and no mount,
# and brings the C library that QEMU wants together with its loader.
set -eu
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
here=$(cd "$(dirname "$0")" && pwd)
cache=${RETROVF_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/retrovf/guest}
kernel_suite=bookworm   # 6.1
qemu_suite=trixie       # backports of it have QEMU >= 10.1, hence vfio-user-pci
qemu_packages="qemu-system-x86 ipxe busybox-static"
modules="virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev
         virtio_pci failover net_failover virtio_net"   # in loading order

start=$(date +%s)
say() { printf 'guest lab: [%3d s] %s\n' $(($(date +%s) - start)) "$*"; }
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

mkdir -p "$cache"
exec 9> "$cache/.lock"
flock -n 9 || { say "waiting for another set-up"; flock 9; }

root_key=$(key_of "$qemu_suite" $qemu_packages)
kernel_key=$(key_of vmlinuz vmlinux "$kernel_suite" $modules)
initrd_key=$(key_of "$root_key" "$kernel_key" \
    "$(cd "$here" && sha256sum setup.sh $(find image -type f | sort))")

if is root "$root_key" && is kernel "$kernel_key" && is initrd.cpio "$initrd_key"
then say "ready in $cache"; exit 0
fi

# --- tools of this machine -------------------------------------------------
missing=
for tool in dpkg-deb:dpkg cpio:cpio xz:xz-utils; do
    command -v "${tool%%:*}" > /dev/null || missing="$missing ${tool#*:}"
done
if [ -n "$missing" ]; then
    say "installing$missing"
    [ "$(id -u)" = 0 ] || die "not root: apt-get install$missing"
    { apt-get -q update && apt-get -q -y install --no-install-recommends $missing
    } > "$cache/tools.log" 2>&1 || die "failed, see $cache/tools.log"
fi

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

# unwrap VMLINUZ: prints the ELF kernel in it.  Unpacking it here takes a second;
# an emulated guest needs five, at each boot.  Offsets are those of Linux's x86
# boot protocol: setup_sects, payload_offset, payload_length.
unwrap() {
    at() { od -A n -t "u$2" -j "$1" -N "$2" "$3" | tr -d ' '; }
    from=$((($(at 497 1 "$1") + 1) * 512 + $(at 584 4 "$1")))
    # Four bytes after the xz stream hold its unpacked size.
    tail -c +$((from + 1)) "$1" | head -c $(($(at 588 4 "$1") - 4)) | xz -dc
}

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
    for suite in "$kernel_suite" "$qemu_suite" "$qemu_suite-backports"; do
        echo "deb [$options] $uri $suite main"
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
: > "$cache/apt.log"

# --- QEMU, iPXE, busybox -----------------------------------------------------
if ! is root "$root_key"; then
    open_apt
    say "fetching $qemu_packages"
    fetch install -y --download-only -t "$qemu_suite-backports" $qemu_packages
    say "unpacking"
    rm -rf "$cache/root.new"
    mkdir "$cache/root.new"
    for deb in "$apt"/archives/*.deb; do
        dpkg-deb -x "$deb" "$cache/root.new"
        rm "$deb"
    done
    finish root "$root_key"
fi

# --- kernel ------------------------------------------------------------------
if ! is kernel "$kernel_key"; then
    open_apt
    image=$(apt-cache -c "$apt/apt.conf" show "linux-image-amd64/$kernel_suite" |
        sed -n 's/^Depends:.*\(linux-image-[^ ,]*\).*/\1/p' | head -1)
    [ -n "$image" ] || die "no linux-image-amd64 in $kernel_suite"
    say "fetching $image"
    (cd "$apt/archives" && fetch download "$image/$kernel_suite")
    say "unpacking"
    rm -rf "$cache/kernel.new" "$apt/kernel"
    mkdir "$cache/kernel.new"
    dpkg-deb -x "$apt"/archives/linux-image-*.deb "$apt/kernel"
    cp "$apt"/kernel/boot/vmlinuz-* "$cache/kernel.new/vmlinuz"   # for iPXE
    unwrap "$cache/kernel.new/vmlinuz" > "$cache/kernel.new/vmlinux" ||
        die "$image is not compressed with xz"
    : > "$cache/kernel.new/order"
    for module in $modules; do
        file=$(find "$apt/kernel" -name "$module.ko*" | head -1)
        case $file in
        *.ko) cp "$file" "$cache/kernel.new/";;
        *.ko.xz) xz -dc "$file" > "$cache/kernel.new/$module.ko";;
        *) continue;;        # built in, or folded into another module
        esac
        echo "$module" >> "$cache/kernel.new/order"
    done
    [ -s "$cache/kernel.new/virtio_net.ko" ] || die "$image has no virtio_net module"
    finish kernel "$kernel_key"
fi

# --- initramfs -----------------------------------------------------------------
if ! is initrd.cpio "$initrd_key"; then
    say "building the initramfs"
    tree=$cache/initrd.tree
    rm -rf "$tree"
    mkdir -p "$tree/bin" "$tree/proc" "$tree/sys" "$tree/dev" "$tree/tmp" "$tree/modules"
    cp "$cache/root/usr/bin/busybox" "$tree/bin/"
    for applet in $("$tree/bin/busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$tree/bin/$applet"
    done
    cp "$cache"/kernel/*.ko "$cache/kernel/order" "$tree/modules/"
    cp -R "$here/image/." "$tree/"
    chmod 755 "$tree/init" "$tree/lease"
    (cd "$tree" && find . | cpio -o -H newc --quiet) > "$cache/initrd.cpio.new"
    rm -rf "$tree"
    finish initrd.cpio "$initrd_key"
fi

rm -rf "$apt"
say "ready in $cache ($(du -sh "$cache" | cut -f1))"
