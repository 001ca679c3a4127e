#!/bin/sh
# Builds VFIO with iommufd for a Debian kernel, whose own build leaves iommufd out (CONFIG_IOMMUFD is
# not set): iommufd itself, and the modules of VFIO anew, with a node for each device. Nothing in the
# kernel image depends on the option, so no kernel has to be built.
#   iommufd-modules.sh HEADERS SOURCE OUT
# HEADERS: /usr/src/linux-headers-VERSION-amd64. SOURCE: the tree of the linux-source package of the
# same version. OUT: a new folder; the modules are OUT/*.ko, to be put over those of the kernel, then
# depmod. Takes a minute.
set -eu
headers=$1 source=$2 out=$3
mkdir "$out"
cp -r "$source/drivers/iommu/iommufd" "$source/drivers/vfio" "$out/"
cp "$source/drivers/iommu/iommu-priv.h" "$out/"
cd "$out"

# Modules only, and of VFIO the parts for PCI.
echo 'obj-m += iommufd/ vfio/' > Kbuild
cat > vfio/Makefile <<'M'
obj-m += vfio.o vfio_iommu_type1.o pci/
vfio-y += vfio_main.o device_cdev.o group.o iommufd.o container.o virqfd.o
M
cat > vfio/pci/Makefile <<'M'
obj-m += vfio-pci-core.o vfio-pci.o
vfio-pci-core-y := vfio_pci_core.o vfio_pci_intrs.o vfio_pci_rdwr.o vfio_pci_config.o
vfio-pci-core-$(CONFIG_VFIO_PCI_DMABUF) += vfio_pci_dmabuf.o
vfio-pci-y := vfio_pci.o vfio_pci_igd.o
M

# A part of lib/interval_tree.c that only iommufd uses, and that the kernel image therefore lacks.
{
    for header in interval_tree interval_tree_generic compiler; do
        echo "#include <linux/$header.h>"
    done
    sed '1,/^#ifdef CONFIG_INTERVAL_TREE_SPAN_ITER/d; /^#endif/d; /^EXPORT_SYMBOL/d' \
        "$source/lib/interval_tree.c"
} > iommufd/span.c
sed -i 's/^iommufd-y := \\/iommufd-y := span.o \\/' iommufd/Makefile

make -C "$headers" M="$PWD" CONFIG_IOMMUFD=m CONFIG_IOMMUFD_DRIVER_CORE=m \
    KCFLAGS="-DCONFIG_IOMMUFD_MODULE=1 -DCONFIG_IOMMUFD_DRIVER_CORE_MODULE=1 \
-DCONFIG_VFIO_DEVICE_CDEV=1 -DCONFIG_INTERVAL_TREE_SPAN_ITER=1" modules
find iommufd vfio -name '*.ko' -exec mv {} . \;
strip --strip-debug ./*.ko
