/* Moments: when requests arrived, by the kernel's stamps, and answers held for an exact time.
 *
 * A stamp is taken where the packet is received, so that neither this process's other work nor
 * its loop is in it. Held answers are released by a loop that never sleeps; how long each was
 * really held, up to the call that sends it, is what the generators' figures are compared to. */
#define _GNU_SOURCE
#include "server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { HELD = 1 << 16, KEPT = 1 << 23 };

static struct {
    int fd;
    uint32_t life;
    uint64_t arrived;
} held[HELD];
static unsigned first, last;

static uint32_t *holds;
static uint64_t *arrivals;
static size_t hold_count, arrival_count;

bool stamped(void) { return options.hold >= 0 || options.stamps; }

ssize_t receive_stamped(int fd, char *data, size_t size, uint64_t *arrived) {
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
            struct timespec at;
            memcpy(&at, CMSG_DATA(c), sizeof at);
            *arrived = (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
        }
    if (options.stamps) {
        if (!arrivals)
            arrivals = calloc(KEPT, sizeof *arrivals);
        if (arrival_count < KEPT)
            arrivals[arrival_count++] = *arrived;
    }
    return n;
}

void hold(struct connection *c, uint64_t arrived) {
    if (last - first == HELD) {
        fprintf(stderr, "server: more than %d answers are held\n", HELD);
        exit(1);
    }
    unsigned i = last++ % HELD;
    held[i].fd = c->fd;
    held[i].life = c->life;
    held[i].arrived = arrived;
}

void release_due(void) {
    if (!holds)
        holds = calloc(KEPT, sizeof *holds);
    while (first != last) {
        unsigned i = first % HELD;
        uint64_t now = now_ns();
        if (now < held[i].arrived + (uint64_t)options.hold)
            return;
        first++;
        struct connection *c = connection_of(held[i].fd);
        if (c->fd < 0 || c->life != held[i].life)
            continue;
        if (hold_count < KEPT)
            holds[hold_count++] = (uint32_t)(now - held[i].arrived);
        if (!send_bytes(c, plain_answer.bytes, plain_answer.length))
            close_connection(c);
    }
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static uint32_t quantile(double q) {
    size_t i = (size_t)(q * (double)hold_count);
    return hold_count ? holds[i < hold_count ? i : hold_count - 1] : 0;
}

void write_reports(void) {
    FILE *file;
    if (options.report && holds && (file = fopen(options.report, "w"))) {
        qsort(holds, hold_count, sizeof *holds, ascending);
        fprintf(file, "{\"count\": %zu, \"p50\": %u, \"p99\": %u, \"p999\": %u, \"max\": %u}\n",
                hold_count, quantile(0.5), quantile(0.99), quantile(0.999), quantile(1));
        fclose(file);
    }
    if (options.stamps && (file = fopen(options.stamps, "wb"))) {
        fwrite(arrivals, sizeof *arrivals, arrival_count, file);
        fclose(file);
    }
}
