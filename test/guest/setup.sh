#!/bin/sh
# Makes the guest lab: a QEMU with a vfio-user client, a Linux kernel, an
# initramfs that tests itself, and iPXE.  Everything comes from Debian packages
# and lands in a cache outside the checkout:
#
#   $RETROVF_CACHE/root         QEMU, its libraries, iPXE: unpacked, not installed
#   $RETROVF_CACHE/kernel       Debian 12's kernel and its virtio modules
#   $RETROVF_CACHE/initrd.cpio  busybox, those modules and image/
#
# Run it again at any time: finished pieces are kept, and an interruption costs
# one piece.  With --ready it makes nothing, and tells whether all is there.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
lab="guest lab"
cache=${RETROVF_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/retrovf/guest}
. "$here/../vm/pieces.sh"
kernel_suite=bookworm   # 6.1
qemu_suite=trixie       # backports of it have QEMU >= 10.1, hence vfio-user-pci
qemu_packages="qemu-system-x86 ipxe busybox-static"
modules="virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev
         virtio_pci failover net_failover virtio_net"   # in loading order

take_cache

root_key=$(key_of "$qemu_suite" $qemu_packages)
kernel_key=$(key_of vmlinuz vmlinux "$kernel_suite" $modules)
initrd_key=$(key_of "$root_key" "$kernel_key" \
    "$(cd "$here" && sha256sum setup.sh ../vm/pieces.sh $(find image -type f | sort))")

if is root "$root_key" && is kernel "$kernel_key" && is initrd.cpio "$initrd_key"
then say "ready in $cache"; exit 0
fi
[ "${1-}" != --ready ] || exit 1

need_tools dpkg-deb:dpkg cpio:cpio xz:xz-utils
prepare_apt() { open_apt "$kernel_suite" "$qemu_suite" "$qemu_suite-backports"; }

# --- QEMU, iPXE, busybox -----------------------------------------------------
if ! is root "$root_key"; then
    prepare_apt
    say "fetching $qemu_packages"
    fetch install -y --download-only -t "$qemu_suite-backports" $qemu_packages
    rm -rf "$cache/root.new"
    mkdir "$cache/root.new"
    unpack "$cache/root.new"
    finish root "$root_key"
fi

# unwrap VMLINUZ: prints the ELF kernel in it.  Unpacking it here takes a second;
# an emulated guest needs five, at each boot.  Offsets are those of Linux's x86
# boot protocol: setup_sects, payload_offset, payload_length.
unwrap() {
    at() { od -A n -t "u$2" -j "$1" -N "$2" "$3" | tr -d ' '; }
    from=$((($(at 497 1 "$1") + 1) * 512 + $(at 584 4 "$1")))
    # Four bytes after the xz stream hold its unpacked size.
    tail -c +$((from + 1)) "$1" | head -c $(($(at 588 4 "$1") - 4)) | xz -dc
}

# --- kernel ------------------------------------------------------------------
if ! is kernel "$kernel_key"; then
    prepare_apt
    release=$(release_of "$kernel_suite")
    [ -n "$release" ] || die "no linux-image-amd64 in $kernel_suite"
    say "fetching linux-image-$release"
    (cd "$apt/archives" && fetch download "linux-image-$release/$kernel_suite")
    rm -rf "$cache/kernel.new" "$apt/kernel"
    mkdir "$cache/kernel.new"
    unpack "$apt/kernel"
    cp "$apt"/kernel/boot/vmlinuz-* "$cache/kernel.new/vmlinuz"   # for iPXE
    unwrap "$cache/kernel.new/vmlinuz" > "$cache/kernel.new/vmlinux" ||
        die "linux-image-$release is not compressed with xz"
    take_modules "$apt/kernel" "$cache/kernel.new" $modules
    [ -s "$cache/kernel.new/virtio_net.ko" ] ||
        die "linux-image-$release has no virtio_net module"
    finish kernel "$kernel_key"
fi

# --- initramfs -----------------------------------------------------------------
if ! is initrd.cpio "$initrd_key"; then
    say "building the initramfs"
    tree=$cache/initrd.tree
    rm -rf "$tree"
    busybox_tree "$cache/root/usr/bin/busybox" "$tree"
    cp "$cache"/kernel/*.ko "$cache/kernel/order" "$tree/modules/"
    cp -R "$here/image/." "$tree/"
    chmod 755 "$tree/init" "$tree/lease"
    pack "$tree" "$cache/initrd.cpio.new"
    rm -rf "$tree"
    finish initrd.cpio "$initrd_key"
fi

rm -rf "$apt"
say "ready in $cache ($(du -sh "$cache" | cut -f1))"
