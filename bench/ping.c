/* The floor under every generator: nothing but sockets and a clock.
 *
 *   ping PORT SECONDS                      one connection, each request after the last one's answer
 *   ping PORT SECONDS RATE CONNECTIONS     requests at a rate, whatever the answers do
 *
 * Prints quantiles in nanoseconds as JSON: of the round trip, or from when each request was due.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1 << 23, MAX_FDS = 4096, EVENTS = 64 };
static const uint64_t second = 1000000000, grace = 1000000000;
static const char request[] = "GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
static char answer[4096];
static uint32_t *took;
static size_t count;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * second + (uint64_t)now.tv_nsec;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int connect_to(int port) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (fd < 0 || fd >= MAX_FDS || connect(fd, (struct sockaddr *)&address, sizeof address))
        fail("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void ask(int fd) {
    if (write(fd, request, sizeof request - 1) != (ssize_t)sizeof request - 1)
        fail("write");
}

static void take(int fd, uint64_t since) {
    if (read(fd, answer, sizeof answer) <= 0)
        fail("read");
    if (count < MOST)
        took[count++] = (uint32_t)(now_ns() - since);
}

static void one_by_one(int port, uint64_t length) {
    int fd = connect_to(port);
    uint64_t until = now_ns() + length;
    for (uint64_t began; (began = now_ns()) < until;) {
        ask(fd);
        take(fd, began);
    }
}

static void at_rate(int port, uint64_t length, double rate, int connections) {
    static uint64_t due_of[MAX_FDS];
    static int unused[MAX_FDS];
    int poll = epoll_create1(0), left = connections;
    for (int i = 0; i < connections; i++) {
        unused[i] = connect_to(port);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = unused[i]};
        epoll_ctl(poll, EPOLL_CTL_ADD, unused[i], &event);
    }
    uint64_t start = now_ns(), end = start + length, dropped = 0;
    for (uint64_t sent = 0;;) {
        uint64_t now = now_ns(), due;
        while ((due = start + (uint64_t)((double)sent * 1e9 / rate)) <= now && due < end) {
            sent++;
            if (left == 0) {
                dropped++;
                continue;
            }
            int fd = unused[--left];
            due_of[fd] = due;
            ask(fd);
            now = now_ns();
        }
        if (due >= end && (left == connections || now > end + grace))
            break;
        uint64_t wait = due >= end ? grace / 100 : due > now ? due - now : 0;
        struct timespec timeout = {(time_t)(wait / second), (long)(wait % second)};
        struct epoll_event events[EVENTS];
        int ready = epoll_pwait2(poll, events, EVENTS, &timeout, NULL);
        for (int i = 0; i < ready; i++) {
            take(events[i].data.fd, due_of[events[i].data.fd]);
            unused[left++] = events[i].data.fd;
        }
    }
    if (dropped)
        fprintf(stderr, "ping: %lu found no connection\n", (unsigned long)dropped);
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 3 && argc != 5)
        return 2;
    uint64_t length = (uint64_t)(atof(argv[2]) * 1e9);
    prctl(PR_SET_TIMERSLACK, 1L); /* Else the kernel lets it sleep 50 µs too long. */
    took = calloc(MOST, sizeof *took);
    if (argc == 3)
        one_by_one(atoi(argv[1]), length);
    else
        at_rate(atoi(argv[1]), length, atof(argv[3]), atoi(argv[4]));
    if (count == 0)
        return 1;
    qsort(took, count, sizeof *took, ascending);
    printf("{\"count\": %zu, \"p50\": %u, \"p99\": %u, \"p999\": %u}\n", count, took[count / 2],
           took[count * 99 / 100], took[count * 999 / 1000]);
    return 0;
}
