/*
 * transcript: plays accesses to a PCI function and prints its answers.
 *
 *   transcript vfio GROUP BDF FILE
 *   transcript vfio-user SOCKET FILE
 *
 * FILE and the output have a line an access (numbers hexadecimal, unless counts);
 * answers in FILE are not looked at:
 *
 *   R bar0 0x12 1 = 0x00       read: region, offset, width, value
 *   R bar0 0x1f 2 ! EINVAL     that failed
 *   W cfg 0x04 2 0x0007 = ok   write: region, offset, width, value
 *   X reset = ok               reset of the function
 *   M 4 = ok                   MSI-X on with 4 eventfds, 0: off
 *   # ...                      comment, printed as it is
 *
 * A "+" before an access marks one that the comparison has added; it is printed
 * with the answer. Whoever turns MSI-X on or off also writes the enable bit of the
 * capability, as a guest does before its monitor installs the eventfds; so does one
 * whose eventfds stay over a reset, which clears the bit.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include "device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

static const char *const region_names[REGIONS] = {
    "bar0", "bar1", "bar2", "bar3", "bar4", "bar5", "rom", "cfg", "vga",
};
static const struct device *device;
static int eventfds[VECTORS_MAX];
static unsigned vectors;
static unsigned msix_control;   /* offset in configuration space, 0: none */

_Noreturn void fail(const char *what)
{
    fflush(stdout);
    fprintf(stderr, "transcript: %s: %s\n", what, strerror(errno));
    exit(1);
}

int dma_memory(void **mapped)
{
    int fd = memfd_create("dma", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, DMA_SIZE)) fail("memfd");
    *mapped = mmap(0, DMA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (*mapped == MAP_FAILED) fail("mmap");
    return fd;
}

static void print_outcome(int error)
{
    const char *name = error ? strerrorname_np(error) : NULL;

    if (!error) printf(" = ok\n");
    else if (name) printf(" ! %s\n", name);
    else printf(" ! E%d\n", error);
}

static void print_value(const uint8_t *value, size_t size)
{
    printf(size <= 8 ? "0x" : "bytes:");
    for (size_t i = 0; i < size; i++) printf("%02x", value[size <= 8 ? size - 1 - i : i]);
}

static void play_read(unsigned region, uint64_t offset, size_t size)
{
    uint8_t value[ACCESS_MAX];
    ssize_t got = device->read(region, offset, value, size);

    printf("R %s 0x%02llx %zu", region_names[region], (unsigned long long)offset, size);
    if (got < 0) {
        print_outcome(-got);
        return;
    }
    printf(" = ");
    print_value(value, got);
    if ((size_t)got != size) printf(" short %zd", got);
    printf("\n");
}

static void play_write(unsigned region, uint64_t offset, size_t size, uint64_t value)
{
    uint8_t bytes[8];
    ssize_t done;

    memcpy(bytes, &value, 8);
    done = device->write(region, offset, bytes, size);
    printf("W %s 0x%02llx %zu ", region_names[region], (unsigned long long)offset, size);
    print_value(bytes, size);
    if (done >= 0 && (size_t)done != size) printf(" = short %zd\n", done);
    else print_outcome(done < 0 ? -done : 0);
}

static void find_msix(void)
{
    uint8_t at = 0, id = 0;

    if (device->read(REGION_CONFIG, 0x34, &at, 1) != 1) return;
    for (int left = 48; at && left; left--) {
        if (device->read(REGION_CONFIG, at, &id, 1) != 1) return;
        if (id == 0x11) {
            msix_control = at + 2;
            return;
        }
        if (device->read(REGION_CONFIG, at + 1, &at, 1) != 1) return;
    }
}

static void guest_enables_msix(int on)
{
    uint16_t control;

    if (!msix_control || device->read(REGION_CONFIG, msix_control, &control, 2) != 2) return;
    control = on ? control | 0x8000 : control & 0x7fff;
    device->write(REGION_CONFIG, msix_control, &control, 2);
}

static void play_vectors(unsigned count)
{
    int result;

    /* VFIO wants another number of vectors to be set up from none. */
    if (vectors && count) device->set_vectors(eventfds, 0);
    guest_enables_msix(count != 0);
    result = device->set_vectors(eventfds, count);
    vectors = result ? 0 : count;
    printf("M %u", count);
    print_outcome(-result);
}

static void play_reset(void)
{
    int result = device->reset();

    if (!result && vectors) guest_enables_msix(1);
    printf("X reset");
    print_outcome(-result);
}

static int region_named(const char *name)
{
    for (int i = 0; i < REGIONS; i++)
        if (!strcmp(name, region_names[i])) return i;
    return -1;
}

/* Plays a line; whether it is one. */
static int play(const char *line)
{
    unsigned long long offset, value;
    char name[8];
    size_t size;
    unsigned count;

    if (sscanf(line, "R %7s 0x%llx %zu", name, &offset, &size) == 3) {
        if (region_named(name) < 0 || size > ACCESS_MAX) return 0;
        play_read(region_named(name), offset, size);
    } else if (sscanf(line, "W %7s 0x%llx %zu 0x%llx", name, &offset, &size, &value) == 4) {
        if (region_named(name) < 0 || size < 1 || size > 8) return 0;
        play_write(region_named(name), offset, size, value);
    } else if (!strncmp(line, "X reset", 7)) {
        play_reset();
    } else if (sscanf(line, "M %u", &count) == 1) {
        if (count > VECTORS_MAX) return 0;
        play_vectors(count);
    } else if (*line == '#') {
        fputs(line, stdout);
    } else {
        return *line == '\n';
    }
    return 1;
}

int main(int argc, char **argv)
{
    char line[4096];
    FILE *file;

    if (argc == 5 && !strcmp(argv[1], "vfio")) {
        device = open_vfio(argv[2], argv[3]);
    } else if (argc == 4 && !strcmp(argv[1], "vfio-user")) {
        device = open_vfio_user(argv[2]);
    } else {
        fprintf(stderr, "usage: transcript vfio GROUP BDF FILE | vfio-user SOCKET FILE\n");
        return 2;
    }
    for (int i = 0; i < VECTORS_MAX; i++) {
        eventfds[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (eventfds[i] < 0) fail("eventfd");
    }
    find_msix();
    printf("# msix 0x%02x\n", msix_control);
    file = fopen(argv[argc - 1], "r");
    if (!file) fail(argv[argc - 1]);
    for (int number = 1; fgets(line, sizeof(line), file); number++) {
        int added = *line == '+';

        if (added) putchar('+');
        if (!play(line + added)) {
            fflush(stdout);
            fprintf(stderr, "transcript: line %d is no access: %s", number, line);
            return 1;
        }
    }
    return 0;
}
