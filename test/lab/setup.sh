#!/bin/sh
# Makes the VFIO lab from Debian packages and sources, outside the checkout:
#
#   $RETROVF_LAB_CACHE/toolchain        compilers and libraries: unpacked, not installed
#   $RETROVF_LAB_CACHE/qemu             QEMU with the patches of qemu/ and contrib/qemu,
#                                       what it needs to run
#   $RETROVF_LAB_CACHE/kernel-SUITE     a kernel, modules, virtio_vfio_pci if it can have one
#   $RETROVF_LAB_CACHE/tools            the programs of l1/ and l2/ in C, static
#   $RETROVF_LAB_CACHE/initrd-SUITE.cpio  L1: busybox, modules, image/
#   $RETROVF_LAB_CACHE/guest-SUITE.cpio   a guest in L1: busybox, modules, test/guest/image
#
# setup.sh [--ready] [SUITE...]: the kernels to make, by default that of
# trixie-backports.  Run it again at any time: finished pieces are kept, QEMU is
# rebuilt only if its patches change, and then only in part.  It takes root, for a
# chroot.  --ready makes nothing: it fails if something is to be made.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
lab="VFIO lab"
cache=${RETROVF_LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/retrovf/lab}
. "$here/../vm/pieces.sh"
only_look=
if [ "${1-}" = --ready ]; then only_look=yes; shift; fi
kernels=${*:-trixie-backports}
qemu_version=10.2.2
iommufd_kernel=trixie-backports
suite=trixie
toolchain_packages="base-files bash coreutils dash diffutils findutils gawk grep
    sed tar gzip bzip2 xz-utils patch make ninja-build meson pkg-config
    gcc libc-bin libc6-dev bison flex bc kmod libelf-dev libssl-dev
    python3 python3-venv python3-pycotap
    libglib2.0-dev libpixman-1-dev libslirp-dev zlib1g-dev libfdt-dev
    seabios qemu-system-data busybox-static ca-certificates"
guest_modules="virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci
    failover net_failover virtio_net"
modules="$guest_modules irqbypass vfio iommufd vfio_iommu_type1
    vfio_virqfd vfio-pci-core vfio-pci vfio_pci_core vfio_pci ccp kvm kvm-amd
    virtio-vfio-pci"   # in loading order; image/init loads what a test asks for

[ "$(id -u)" = 0 ] || die "not root, which a chroot takes"
[ -z "$only_look" ] || [ -d "$cache" ] || die "there is no $cache"
take_cache
cd "$cache"
prepare_apt() {
    open_apt bookworm bookworm-backports "$suite" "$suite-backports" src:sid
}

# inside COMMAND...: runs it in the toolchain; the mounts end with it.
inside() {
    root=$cache/toolchain unshare --mount sh -euc '
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        exec chroot "$root" env PATH=/usr/bin:/usr/sbin HOME=/ LC_ALL=C "$@"' sh "$@"
}
logged() {   # logged NAME COMMAND...
    log=$cache/$1.log
    shift
    "$@" > "$log" 2>&1 || { tail -20 "$log" >&2; die "failed, see $log"; }
}

guest_image=$here/../guest/image
# No path of ours has a blank in it: the checkout's is not part of these.
qemu_patches=$(cd "$here" && ls qemu/*.patch ../../contrib/qemu/*.patch)
toolchain_key=$(key_of "$suite" $toolchain_packages)
qemu_key=$(key_of "$toolchain_key" "$qemu_version" \
    "$(cd "$here" && sha256sum $qemu_patches qemu/*.c)")
# Files that patches touch.
qemu_patched() { (cd "$here" && sed -n 's,^--- a/,,p' $qemu_patches | sort -u); }
tools_key=$(key_of "$toolchain_key" "$(cd "$here" && sha256sum l1/src/* l1/*.c l2/*.c)")
kernel_key() {
    key_of "$toolchain_key" "$1" $modules "$(sha256sum < "$here/iommufd-modules.sh")"
}
initrd_key() {   # initrd_key SUITE IMAGE MODULE...
    key_of "$(kernel_key "$1")" "$@" "$(cd "$here" && sha256sum setup.sh ../vm/pieces.sh)" \
        "$(cd "$2" && sha256sum $(find . -type f | sort))"
}

ready() {
    is toolchain "$toolchain_key" && is qemu "$qemu_key" && is tools "$tools_key" || return 1
    for kernel in $kernels; do
        is "kernel-$kernel" "$(kernel_key "$kernel")" &&
            is "initrd-$kernel.cpio" "$(initrd_key "$kernel" "$here/image" $modules)" &&
            is "guest-$kernel.cpio" "$(initrd_key "$kernel" "$guest_image" $guest_modules)" ||
            return 1
    done
}
if ready; then say "ready in $cache"; exit 0; fi
[ -z "$only_look" ] || die "not all of it is there, run test/lab/setup.sh"

need_tools dpkg-deb:dpkg cpio:cpio xz:xz-utils patch:patch unshare:util-linux

# --- compilers ---------------------------------------------------------------
if ! is toolchain "$toolchain_key"; then
    prepare_apt
    say "fetching compilers"
    fetch install -y --download-only -t "$suite" $toolchain_packages
    rm -rf toolchain.new work
    mkdir toolchain.new
    # The links from /bin to /usr/bin must be there before what lies behind them.
    dpkg-deb -x "$apt"/archives/base-files_*.deb toolchain.new
    unpack "$cache/toolchain.new"
    # What packages would do when they are configured.
    ln -s gawk toolchain.new/usr/bin/awk
    ln -s gcc toolchain.new/usr/bin/cc
    cat toolchain.new/usr/share/ca-certificates/mozilla/*.crt \
        > toolchain.new/etc/ssl/certs/ca-certificates.crt
    mkdir -p toolchain.new/proc toolchain.new/dev toolchain.new/tmp toolchain.new/work
    finish toolchain "$toolchain_key"
fi

# --- QEMU ----------------------------------------------------------------------
# The source tree stays in the toolchain, so that a changed patch costs the build
# of the files that it touches.
if ! is qemu "$qemu_key"; then
    tree=$cache/toolchain/work/qemu-$qemu_version
    if [ ! -d "$tree" ]; then
        prepare_apt
        say "fetching QEMU's source"
        version=$(apt-cache -c "$apt/apt.conf" showsrc qemu |
            sed -n "s/^Version: \(.*:$qemu_version+.*\)/\1/p" | head -1)
        [ -n "$version" ] || die "no source of QEMU $qemu_version"
        (cd "$apt/archives" && fetch source --download-only "qemu=$version")
        rm -rf "$tree.new"
        mkdir "$tree.new"
        tar -xJf "$apt"/archives/qemu_*.orig.tar.xz -C "$tree.new" --strip-components=1
        # Blobs that Debian leaves out but configure wants to see; none is used.
        (cd "$tree.new/pc-bios"
         for blob in $(sed -n "s/^ *'\(edk2-[^']*\.fd\)',/\1/p" meson.build); do
             [ -e "$blob.bz2" ] || : > "$blob.bz2"
         done
         for blob in $(sed -n "s/^ *'\([^']*\)\.dt[bs]',/\1/p" dtb/meson.build) \
             bamboo canyonlands pegasos1 pegasos2 petalogix-ml605 petalogix-s3adsp1800; do
             for kind in dts dtb; do
                 [ -e "dtb/$blob.$kind" ] || : > "dtb/$blob.$kind"
             done
         done)
        (cd "$tree.new" && mkdir pristine &&
            qemu_patched | xargs cp --parents -t pristine)
        mv "$tree.new" "$tree"
    fi
    say "building QEMU"
    # Files that patches touch, now or before, go back to what they were.  Only
    # what has really changed gets a new time, which ninja goes by.
    rm -rf "$tree.patched"
    cp -a "$tree/pristine" "$tree.patched"
    (cd "$tree.patched"
     for file in $(qemu_patched); do
         [ -e "$file" ] || { mkdir -p "$(dirname "$file")"; cp -a "$tree/$file" "$file"; }
     done
     rm -rf "$tree/pristine.new"; cp -a . "$tree/pristine.new"
     for patch in $qemu_patches; do
         logged patch patch -p1 --no-backup-if-mismatch < "$here/$patch"
     done
     cp "$here/qemu/virtio-pci-admin.c" hw/virtio/
     find . -type f | while read -r file; do
         cmp -s "$file" "$tree/$file" || cp "$file" "$tree/$file"
     done)
    rm -rf "$tree/pristine" "$tree.patched"
    mv "$tree/pristine.new" "$tree/pristine"
    logged qemu inside sh -euc '
        mkdir -p "$1/build"; cd "$1/build"
        [ -f build.ninja ] || ../configure --target-list=x86_64-softmmu \
            --without-default-features --enable-tcg --enable-kvm --enable-slirp \
            --disable-docs --disable-download --disable-install-blobs
        ninja qemu-system-x86_64' sh "/work/qemu-$qemu_version"
    rm -rf qemu.new
    mkdir -p qemu.new/lib qemu.new/firmware
    inside strip -o /tmp/qemu "/work/qemu-$qemu_version/build/qemu-system-x86_64"
    mv toolchain/tmp/qemu qemu.new/
    for library in $(inside ldd "/work/qemu-$qemu_version/build/qemu-system-x86_64" |
        grep -o '/[^ ]*'); do
        cp -L "toolchain$library" qemu.new/lib/
    done
    [ -s qemu.new/lib/libc.so.6 ] || die "libraries of QEMU were not found"
    for file in seabios/bios-256k.bin qemu/linuxboot_dma.bin qemu/kvmvapic.bin; do
        cp -L "toolchain/usr/share/$file" qemu.new/firmware/
    done
    finish qemu "$qemu_key"
fi

# --- kernels -----------------------------------------------------------------
# make_kernel SUITE: Debian's kernel; virtio_vfio_pci, which Debian leaves out,
# is built from Debian's source where the kernel has what it needs.
make_kernel() {
    prepare_apt
    release=$(release_of "$1")
    [ -n "$release" ] || die "no linux-image-amd64 in $1"
    version=$(echo "$release" | sed 's/^\([0-9]*\.[0-9]*\).*/\1/')
    say "fetching Linux $release"
    rm -rf "kernel-$1.new" toolchain/work/kernel
    mkdir -p "kernel-$1.new" toolchain/work/kernel
    # Newer kernels are in three packages; headers need theirs and the common ones.
    wanted=$(apt-cache -c "$apt/apt.conf" pkgnames |
        grep -xF -e "linux-image-$release" -e "linux-binary-$release" \
            -e "linux-modules-$release" -e "linux-headers-$release" \
            -e "linux-headers-${release%-amd64}-common" -e "linux-source-$version" \
            -e "linux-kbuild-$version" -e "linux-kbuild-${release%-amd64}")
    for package in $wanted; do
        (cd "$apt/archives" && fetch download "$package/$1")
    done
    unpack "$cache/toolchain/work/kernel"
    echo "$release" > "kernel-$1.new/release"
    image=$(find toolchain/work/kernel \( -name vmlinuz -o -name "vmlinuz-$release" \) -type f)
    cp "$image" "kernel-$1.new/vmlinuz"
    headers=/usr/src/linux-headers-$release
    # Headers are found where their package would have put them.
    mkdir -p toolchain/usr/src toolchain/usr/lib
    for name in toolchain/work/kernel/usr/src/linux-* toolchain/work/kernel/usr/lib/linux-*; do
        [ ! -e "$name" ] || ln -sfn "/${name#toolchain/}" "toolchain/${name#toolchain/work/kernel/}"
    done
    if grep -q virtio_pci_admin_has_legacy_io "toolchain/work/kernel$headers/Module.symvers"; then
        say "building virtio_vfio_pci for Linux $release"
        rm -rf toolchain/work/source
        mkdir toolchain/work/source
        tar -xJf "toolchain/work/kernel/usr/src/linux-source-$version.tar.xz" \
            -C toolchain/work/source --strip-components=1 --wildcards \
            '*/drivers/vfio' '*/drivers/iommu/iommufd' '*/drivers/iommu/iommu-priv.h' \
            '*/lib/interval_tree.c'
        # Modules have no type information here, which would take a tool more.
        logged "driver-$1" inside make -C "$headers" M=/work/source/drivers/vfio/pci/virtio \
            CC=gcc CONFIG_DEBUG_INFO_BTF_MODULES= \
            CONFIG_VIRTIO_VFIO_PCI=m CONFIG_VIRTIO_VFIO_PCI_ADMIN_LEGACY=y \
            KCFLAGS=-DCONFIG_VIRTIO_VFIO_PCI_ADMIN_LEGACY=1 modules
        inside strip --strip-debug /work/source/drivers/vfio/pci/virtio/virtio-vfio-pci.ko
        cp toolchain/work/source/drivers/vfio/pci/virtio/virtio-vfio-pci.ko toolchain/work/kernel/
        if [ "$1" = "$iommufd_kernel" ]; then
            say "building iommufd for Linux $release"
            cp "$here/iommufd-modules.sh" toolchain/work/
            rm -rf toolchain/work/iommufd
            logged "iommufd-$1" inside env MAKEFLAGS="CONFIG_DEBUG_INFO_BTF_MODULES=" \
                sh /work/iommufd-modules.sh "$headers" /work/source /work/iommufd
            mkdir "kernel-$1.new/iommufd"
            cp toolchain/work/iommufd/*.ko "kernel-$1.new/iommufd/"
        fi
    fi
    mkdir "kernel-$1.new/modules"
    take_modules toolchain/work/kernel "kernel-$1.new/modules" $modules
    rm -rf toolchain/work/kernel toolchain/work/source toolchain/work/iommufd
    finish "kernel-$1" "$(kernel_key "$1")"
}
for kernel in $kernels; do
    is "kernel-$kernel" "$(kernel_key "$kernel")" || make_kernel "$kernel"
done

# --- programs that run in L1 and L2 ----------------------------------------------
if ! is tools "$tools_key"; then
    say "building programs of L1 and L2"
    rm -rf tools.new toolchain/work/tools
    mkdir tools.new toolchain/work/tools
    cp -R "$here/l1/src" "$here"/l1/*.c "$here"/l2/*.c toolchain/work/tools/
    logged tools inside sh -euc 'cd /work/tools
        mkdir out
        program() {   # program NAME SOURCE...
            name=$1; shift
            gcc -std=gnu17 -O2 -Wall -Wextra -Werror -static -o "out/$name" "$@"
        }
        program transcript src/*.c
        for source in *.c; do program "${source%.c}" "$source"; done'
    mv toolchain/work/tools/out/* tools.new/
    rm -rf toolchain/work/tools
    finish tools "$tools_key"
fi

# --- initramfs -----------------------------------------------------------------
# make_initrd PIECE SUITE IMAGE MODULE...
make_initrd() {
    piece=$1
    shift
    ! is "$piece" "$(initrd_key "$@")" || return 0
    say "building $piece"
    rm -rf initrd.tree
    busybox_tree toolchain/usr/bin/busybox initrd.tree
    key=$(initrd_key "$@") kernel_dir=kernel-$1 image=$2
    shift 2
    take_modules "$kernel_dir/modules" initrd.tree/modules "$@"
    if [ "$image" = "$here/image" ] && [ -d "$kernel_dir/iommufd" ]; then
        cp -R "$kernel_dir/iommufd" initrd.tree/modules/
    fi
    cp -R "$image/." initrd.tree/
    find initrd.tree -maxdepth 1 -type f -exec chmod 755 {} +
    pack initrd.tree "$piece.new"
    rm -rf initrd.tree
    finish "$piece" "$key"
}
for kernel in $kernels; do
    make_initrd "initrd-$kernel.cpio" "$kernel" "$here/image" $modules
    make_initrd "guest-$kernel.cpio" "$kernel" "$guest_image" $guest_modules
done

rm -rf "$apt"
say "ready in $cache ($(du -sh "$cache" | cut -f1))"
