/*
 * The function through a vfio-user socket, as a minimal client of QEMU's
 * docs/interop/vfio-user.rst. SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include "device.h"

#include <errno.h>
#include <linux/vfio.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

enum { VERSION = 1, DMA_MAP = 2, SET_IRQS = 8, REGION_READ = 9, REGION_WRITE = 10, RESET = 13 };
enum { FLAG_REPLY = 1, FLAG_TYPE = 0xf, FLAG_ERROR = 1 << 5, PAYLOAD_MAX = ACCESS_MAX + 64 };

struct header {
    uint16_t id, command;
    uint32_t size, flags, error;
};

struct region_access {
    uint64_t offset;
    uint32_t region, count;
    uint8_t data[ACCESS_MAX];
};

static int server;

static void send_all(struct header *header, const void *payload, size_t size,
                     const int *fds, unsigned fd_count)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * VECTORS_MAX)];
    } control;
    struct iovec parts[] = { { header, sizeof(*header) }, { (void *)payload, size } };
    struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2 };

    if (fd_count) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
        memcpy(CMSG_DATA(rights), fds, sizeof(int) * fd_count);
    }
    /* A blocking stream socket takes messages of this size whole. */
    if (sendmsg(server, &message, 0) != (ssize_t)(sizeof(*header) + size)) fail("sendmsg");
}

static void receive_all(void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t now = recv(server, (char *)data + done, size - done, 0);

        if (now == 0) errno = ECONNRESET;
        if (now <= 0) fail("recv");
        done += now;
    }
}

/* Returns the size of the reply's payload, or a negative errno. */
static ssize_t call(uint16_t command, const void *request, size_t size,
                    const int *fds, unsigned fd_count, void *reply, size_t room)
{
    static uint16_t next_id;
    struct header header = { next_id++, command, sizeof(header) + size, 0, 0 };
    uint8_t payload[PAYLOAD_MAX];
    size_t received;
    uint16_t id = header.id;

    send_all(&header, request, size, fds, fd_count);
    receive_all(&header, sizeof(header));
    received = header.size - sizeof(header);
    if (header.size < sizeof(header) || received > sizeof(payload) || header.id != id ||
        header.command != command || (header.flags & FLAG_TYPE) != FLAG_REPLY) {
        errno = EPROTO;
        fail("reply");
    }
    receive_all(payload, received);
    if (header.flags & FLAG_ERROR) return -(ssize_t)(header.error ? header.error : EPROTO);
    if (received > room) received = room;
    memcpy(reply, payload, received);
    return received;
}

enum { ACCESS_HEADER = offsetof(struct region_access, data) };

static ssize_t user_read(unsigned region, uint64_t offset, void *data, size_t size)
{
    struct region_access request = { offset, region, size, { 0 } }, reply = { 0 };
    ssize_t got = call(REGION_READ, &request, ACCESS_HEADER, 0, 0, &reply, sizeof(reply));

    if (got < 0) return got;
    got -= ACCESS_HEADER;
    if (got < 0 || (size_t)got > size) {
        errno = EPROTO;
        fail("read reply");
    }
    memcpy(data, reply.data, got);
    return got;
}

static ssize_t user_write(unsigned region, uint64_t offset, const void *data, size_t size)
{
    struct region_access request = { offset, region, size, { 0 } }, reply = { 0 };
    ssize_t got;

    memcpy(request.data, data, size);
    got = call(REGION_WRITE, &request, ACCESS_HEADER + size, 0, 0, &reply, sizeof(reply));
    return got < 0 ? got : (ssize_t)reply.count;
}

static int user_reset(void)
{
    ssize_t got = call(RESET, 0, 0, 0, 0, 0, 0);

    return got < 0 ? got : 0;
}

static int user_set_vectors(const int *eventfds, unsigned count)
{
    struct vfio_irq_set request = {
        .argsz = sizeof(request),
        .flags = VFIO_IRQ_SET_ACTION_TRIGGER |
                 (count ? VFIO_IRQ_SET_DATA_EVENTFD : VFIO_IRQ_SET_DATA_NONE),
        .index = VFIO_PCI_MSIX_IRQ_INDEX,
        .count = count,
    };
    ssize_t got = call(SET_IRQS, &request, sizeof(request), eventfds, count, 0, 0);

    return got < 0 ? got : 0;
}

const struct device *open_vfio_user(const char *path)
{
    static const struct device device = { user_read, user_write, user_reset, user_set_vectors };
    static const char capabilities[] =
        "{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576}}";
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    uint8_t version[4 + sizeof(capabilities)] = { 0 }, reply[PAYLOAD_MAX];
    struct { uint32_t argsz, flags; uint64_t offset, address, size; } map = {
        sizeof(map), 3, 0, DMA_IOVA, DMA_SIZE,
    };
    void *memory;
    int fd;

    if (strlen(path) >= sizeof(address.sun_path)) {
        errno = ENAMETOOLONG;
        fail(path);
    }
    strcpy(address.sun_path, path);
    server = socket(AF_UNIX, SOCK_STREAM, 0);
    if (server < 0 || connect(server, (struct sockaddr *)&address, sizeof(address))) fail(path);
    memcpy(version + 4, capabilities, sizeof(capabilities));
    if (call(VERSION, version, sizeof(version), 0, 0, reply, sizeof(reply)) < 0) fail("version");
    fd = dma_memory(&memory);
    ssize_t mapped = call(DMA_MAP, &map, sizeof(map), &fd, 1, reply, sizeof(reply));
    if (mapped < 0) {
        errno = -mapped;
        fail("DMA map");
    }
    return &device;
}
