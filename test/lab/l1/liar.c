/*
 * liar SERVER LISTEN: hands messages on between the vfio-user server at one socket
 * and a client at the other, and adds to each list of I/O descriptors what no client
 * may believe. What the server has said stays true.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { REGION_IO_FDS = 6, REPLY = 1, IOEVENTFD = 0, IOREGIONFD = 1, DATAMATCH = 1, FDS_MAX = 16 };

struct header {
    uint16_t id, command;
    uint32_t size, flags, error;
};

struct entry {
    uint64_t offset, size;
    uint32_t fd_index, type, flags, padding;
    uint64_t datamatch;
};

struct io_fds {
    struct header header;
    uint32_t argsz, flags, index, count;
    struct entry entries[64];
};

struct message {
    union {
        struct header header;
        struct io_fds io_fds;
        char bytes[2 << 20];
    };
    int fds[FDS_MAX];
    size_t fd_count;
};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* False at the end of the connection. Descriptors come with the first byte. */
static int receive(int from, struct message *message)
{
    char control[CMSG_SPACE(sizeof(message->fds))];
    struct iovec start = { message->bytes, sizeof(message->header) };
    struct msghdr head = {
        .msg_iov = &start, .msg_iovlen = 1,
        .msg_control = control, .msg_controllen = sizeof(control),
    };
    ssize_t got = recvmsg(from, &head, MSG_WAITALL);
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&head);

    if (got == 0) return 0;
    if (got != sizeof(message->header) || message->header.size > sizeof(message->bytes)) die("header");
    message->fd_count = cmsg ? (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;
    if (cmsg) memcpy(message->fds, CMSG_DATA(cmsg), message->fd_count * sizeof(int));
    for (size_t have = got; have < message->header.size; have += got) {
        got = read(from, message->bytes + have, message->header.size - have);
        if (got <= 0) die("payload");
    }
    return 1;
}

static void pass_on(int to, struct message *message)
{
    char control[CMSG_SPACE(sizeof(message->fds))] = { 0 };
    struct iovec all = { message->bytes, message->header.size };
    struct msghdr head = { .msg_iov = &all, .msg_iovlen = 1 };
    ssize_t sent;

    if (message->fd_count) {
        struct cmsghdr *cmsg = (struct cmsghdr *)control;

        head.msg_control = control;
        head.msg_controllen = CMSG_SPACE(message->fd_count * sizeof(int));
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(message->fd_count * sizeof(int));
        memcpy(CMSG_DATA(cmsg), message->fds, message->fd_count * sizeof(int));
    }
    sent = sendmsg(to, &head, MSG_NOSIGNAL);
    if (sent <= 0) exit(0);   /* one side has gone */
    for (size_t done = sent; done < message->header.size; done += sent) {
        sent = send(to, message->bytes + done, message->header.size - done, MSG_NOSIGNAL);
        if (sent <= 0) exit(0);
    }
    while (message->fd_count) close(message->fds[--message->fd_count]);
}

static void add(struct io_fds *reply, struct entry entry)
{
    reply->entries[reply->count++] = entry;
}

static void lie(struct message *message)
{
    struct io_fds *reply = &message->io_fds;
    uint32_t truths = reply->count, event = message->fd_count, other = event + 1;
    struct entry said[FDS_MAX], first = { .offset = 16, .size = 2, .fd_index = event };
    int ends[2];

    if (truths > FDS_MAX || message->fd_count + 2 > FDS_MAX || pipe(ends)) die("no room");
    memcpy(said, reply->entries, truths * sizeof(said[0]));
    if (truths) first = said[0];
    message->fds[message->fd_count++] = eventfd(0, 0);
    message->fds[message->fd_count++] = ends[1];
    close(ends[0]);

    reply->count = 0;
    /* No access of the region, or none that can be: at the status register, 18. */
    add(reply, (struct entry){ .offset = 18, .size = 3, .fd_index = event });
    add(reply, (struct entry){ .offset = 18, .size = 1ull << 63, .fd_index = event });
    add(reply, (struct entry){ .offset = UINT64_MAX, .size = 2, .fd_index = event });
    add(reply, (struct entry){ .offset = 1ull << 40, .size = 0, .fd_index = event });
    add(reply, (struct entry){ .offset = 18, .size = 0, .fd_index = event, .flags = DATAMATCH });
    add(reply, (struct entry){
        .offset = 18, .size = 1, .fd_index = event, .flags = DATAMATCH, .datamatch = 256 });
    /* Another kind of descriptor, or none. */
    add(reply, (struct entry){ .offset = 18, .size = 1, .fd_index = event, .type = IOREGIONFD });
    add(reply, (struct entry){ .offset = 18, .size = 1, .fd_index = event, .flags = 1u << 31 });
    add(reply, (struct entry){ .offset = 18, .size = 1, .fd_index = other, .type = IOEVENTFD });
    add(reply, (struct entry){ .offset = 18, .size = 1, .fd_index = other + 1 });
    add(reply, (struct entry){ .offset = 18, .size = 1, .fd_index = UINT32_MAX });
    for (uint32_t i = 0; i < truths; i++) add(reply, said[i]);
    /* What KVM refuses, beside the truth. */
    if (truths) {
        first.fd_index = event;
        add(reply, first);
        first.flags &= ~DATAMATCH;
        add(reply, first);
        first.size = 0;
        add(reply, first);
    }
    reply->header.size = offsetof(struct io_fds, entries) + reply->count * sizeof(struct entry);
    reply->argsz = reply->header.size - sizeof(reply->header);
}

static int unix_socket(const char *path, int (*use)(int, const struct sockaddr *, socklen_t))
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (fd < 0 || use(fd, (struct sockaddr *)&address, sizeof(address))) die(path);
    return fd;
}

int main(int argc, char **argv)
{
    static struct message message;
    struct pollfd sides[2] = { { .events = POLLIN }, { .events = POLLIN } };
    int listener;

    if (argc != 3) {
        fprintf(stderr, "usage: liar SERVER LISTEN\n");
        return 2;
    }
    listener = unix_socket(argv[2], bind);
    if (listen(listener, 1)) die(argv[2]);
    sides[0].fd = accept(listener, NULL, NULL);
    sides[1].fd = unix_socket(argv[1], connect);
    while (poll(sides, 2, -1) > 0) {
        for (int i = 0; i < 2; i++) {
            if (!sides[i].revents) continue;
            if (!receive(sides[i].fd, &message)) return 0;
            if (message.header.command == REGION_IO_FDS && message.header.flags == REPLY) {
                lie(&message);
            }
            pass_on(sides[!i].fd, &message);
        }
    }
    return 1;
}
