/* The floor under every latency: one connection, one request at a time, nothing but read and
 * write.
 *
 *   ping PORT SECONDS [RATE]     prints quantiles of the round trip, in nanoseconds, as JSON
 *
 * Without a rate, each request follows the answer before it.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1 << 22 };

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    uint64_t every = argc > 3 ? (uint64_t)(1e9 / atof(argv[3])) : 0;
    static const char request[] = "GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) {
        perror("connect");
        return 1;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    uint32_t *took = calloc(MOST, sizeof *took);
    size_t n = 0;
    char answer[4096];
    uint64_t start = now_ns(), until = start + (uint64_t)(atof(argv[2]) * 1e9);
    for (uint64_t began; n < MOST && (began = now_ns()) < until; n++) {
        uint64_t due = start + n * every;
        if (due > began) {
            struct timespec at = {(time_t)(due / 1000000000u), (long)(due % 1000000000u)};
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
            began = now_ns();
        }
        if (write(fd, request, sizeof request - 1) < 0 || read(fd, answer, sizeof answer) <= 0) {
            perror("ping");
            return 1;
        }
        took[n] = (uint32_t)(now_ns() - began);
    }
    qsort(took, n, sizeof *took, ascending);
    printf("{\"count\": %zu, \"p50\": %u, \"p99\": %u, \"p999\": %u}\n", n, took[n / 2],
           took[n * 99 / 100], took[n * 999 / 1000]);
    return 0;
}
