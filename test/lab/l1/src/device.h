/* A PCI function as a virtual machine monitor holds it. SPDX-License-Identifier: Apache-2.0 */
#ifndef DEVICE_H
#define DEVICE_H

#include <stdint.h>
#include <sys/types.h>

enum { REGION_BAR0 = 0, REGION_CONFIG = 7, REGIONS = 9, VECTORS_MAX = 8, ACCESS_MAX = 4096 };

/* Memory that the function may reach, zeroed at first. */
#define DMA_IOVA 0x10000000ull
#define DMA_SIZE (4u << 20)

/* Each returns what it did, or a negative errno. */
struct device {
    ssize_t (*read)(unsigned region, uint64_t offset, void *data, size_t size);
    ssize_t (*write)(unsigned region, uint64_t offset, const void *data, size_t size);
    int (*reset)(void);
    /* Installs eventfds for so many MSI-X vectors; 0 takes MSI-X away. */
    int (*set_vectors)(const int *eventfds, unsigned count);
};

/* End the program with a message if they fail. */
const struct device *open_vfio(const char *group, const char *bdf);
const struct device *open_vfio_user(const char *socket_path);
int dma_memory(void **mapped);
_Noreturn void fail(const char *what);

#endif
