/*
 * The function through VFIO's group interface, as bound to vfio-pci or to
 * virtio_vfio_pci. SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include "device.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int device_fd;
static uint64_t region_offset[REGIONS];

static ssize_t vfio_read(unsigned region, uint64_t offset, void *data, size_t size)
{
    ssize_t done = pread(device_fd, data, size, region_offset[region] + offset);

    return done < 0 ? -errno : done;
}

static ssize_t vfio_write(unsigned region, uint64_t offset, const void *data, size_t size)
{
    ssize_t done = pwrite(device_fd, data, size, region_offset[region] + offset);

    return done < 0 ? -errno : done;
}

static int vfio_reset(void)
{
    return ioctl(device_fd, VFIO_DEVICE_RESET) ? -errno : 0;
}

static int vfio_set_vectors(const int *eventfds, unsigned count)
{
    struct {
        struct vfio_irq_set set;
        int32_t fds[VECTORS_MAX];
    } request = {
        .set = {
            .argsz = sizeof(request.set) + 4 * count,
            .flags = VFIO_IRQ_SET_ACTION_TRIGGER |
                     (count ? VFIO_IRQ_SET_DATA_EVENTFD : VFIO_IRQ_SET_DATA_NONE),
            .index = VFIO_PCI_MSIX_IRQ_INDEX,
            .count = count,
        },
    };

    memcpy(request.fds, eventfds, sizeof(int) * count);
    return ioctl(device_fd, VFIO_DEVICE_SET_IRQS, &request) < 0 ? -errno : 0;
}

const struct device *open_vfio(const char *group_number, const char *bdf)
{
    static const struct device device = { vfio_read, vfio_write, vfio_reset, vfio_set_vectors };
    char path[64];
    void *memory;
    int container, group;

    container = open("/dev/vfio/vfio", O_RDWR);
    if (container < 0) fail("/dev/vfio/vfio");
    snprintf(path, sizeof(path), "/dev/vfio/%s", group_number);
    group = open(path, O_RDWR);
    if (group < 0) fail(path);
    if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container)) fail("VFIO_GROUP_SET_CONTAINER");
    if (ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU)) fail("VFIO_SET_IOMMU");
    dma_memory(&memory);
    struct vfio_iommu_type1_dma_map map = {
        .argsz = sizeof(map),
        .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        .vaddr = (uintptr_t)memory,
        .iova = DMA_IOVA,
        .size = DMA_SIZE,
    };
    if (ioctl(container, VFIO_IOMMU_MAP_DMA, &map)) fail("VFIO_IOMMU_MAP_DMA");
    device_fd = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, bdf);
    if (device_fd < 0) fail("VFIO_GROUP_GET_DEVICE_FD");
    for (unsigned i = 0; i < REGIONS; i++) {
        struct vfio_region_info info = { .argsz = sizeof(info), .index = i };

        /* An absent region has no offset; its accesses are to be refused. */
        region_offset[i] = ioctl(device_fd, VFIO_DEVICE_GET_REGION_INFO, &info)
                               ? (uint64_t)i << 40 : info.offset;
    }
    return &device;
}
