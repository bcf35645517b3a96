#define _GNU_SOURCE
#include "timestamps.h"

#include "connection.h"
#include "options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { MAX_ARRIVALS = 1 << 23 };

static uint64_t *arrivals;
static size_t arrival_count;

bool needs_timestamps(void) { return options.hold >= 0 || options.stamps; }

void request_timestamps(int fd) {
    int one = 1;
    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one);
}

ssize_t receive_with_timestamp(int fd, char *data, size_t size, uint64_t *arrived) {
    union {
        char bytes[CMSG_SPACE(sizeof(struct timespec))];
        struct cmsghdr align;
    } control;
    struct iovec part = {data, size};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    ssize_t n = recvmsg(fd, &message, 0);
    if (n <= 0)
        return n;
    *arrived = now_ns();
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec timestamp;
            memcpy(&timestamp, CMSG_DATA(c), sizeof timestamp);
            *arrived = (uint64_t)timestamp.tv_sec * 1000000000u + (uint64_t)timestamp.tv_nsec;
        }
    if (options.stamps) {
        if (!arrivals)
            arrivals = calloc(MAX_ARRIVALS, sizeof *arrivals);
        if (arrival_count < MAX_ARRIVALS)
            arrivals[arrival_count++] = *arrived;
    }
    return n;
}

void write_arrivals(void) {
    FILE *file;
    if (options.stamps && (file = fopen(options.stamps, "wb"))) {
        fwrite(arrivals, sizeof *arrivals, arrival_count, file);
        fclose(file);
    }
}
