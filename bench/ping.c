/* The minimal generator: sockets and a clock only. Its figures show what the machine itself adds.
 *
 *   ping PORT SECONDS                      closed model: one connection, one request at a time
 *   ping PORT SECONDS RATE CONNECTIONS     open model: requests at a constant rate
 *
 * Prints quantiles in nanoseconds as JSON. They are service times in the closed model. In the open
 * model they are response times, measured from the time at which each request was due.
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

enum { MAX_SAMPLES = 1 << 23, MAX_FDS = 4096, EVENTS = 64 };
static const uint64_t second = 1000000000, grace_period = 1000000000;
static const char request[] = "GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
static char response[4096];
static uint32_t *samples;
static size_t count;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * second + (uint64_t)now.tv_nsec;
}

static void exit_with_error(const char *call) {
    perror(call);
    exit(1);
}

static int connect_to(int port) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (fd < 0 || fd >= MAX_FDS || connect(fd, (struct sockaddr *)&address, sizeof address))
        exit_with_error("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void send_request(int fd) {
    if (write(fd, request, sizeof request - 1) != (ssize_t)sizeof request - 1)
        exit_with_error("write");
}

static void receive_response(int fd, uint64_t start) {
    if (read(fd, response, sizeof response) <= 0)
        exit_with_error("read");
    if (count < MAX_SAMPLES)
        samples[count++] = (uint32_t)(now_ns() - start);
}

static void run_closed_model(int port, uint64_t duration) {
    int fd = connect_to(port);
    uint64_t end = now_ns() + duration;
    for (uint64_t start; (start = now_ns()) < end;) {
        send_request(fd);
        receive_response(fd, start);
    }
}

static void run_open_model(int port, uint64_t duration, double rate, int connections) {
    static uint64_t due_of[MAX_FDS];
    static int idle[MAX_FDS];
    int epoll_fd = epoll_create1(0), idle_count = connections;
    for (int i = 0; i < connections; i++) {
        idle[i] = connect_to(port);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = idle[i]};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, idle[i], &event);
    }
    uint64_t start = now_ns(), end = start + duration, dropped = 0;
    for (uint64_t sent = 0;;) {
        uint64_t now = now_ns(), due;
        while ((due = start + (uint64_t)((double)sent * 1e9 / rate)) <= now && due < end) {
            sent++;
            if (idle_count == 0) {
                dropped++;
                continue;
            }
            int fd = idle[--idle_count];
            due_of[fd] = due;
            send_request(fd);
            now = now_ns();
        }
        if (due >= end && (idle_count == connections || now > end + grace_period))
            break;
        uint64_t wait = due >= end ? grace_period / 100 : due > now ? due - now : 0;
        struct timespec timeout = {(time_t)(wait / second), (long)(wait % second)};
        struct epoll_event events[EVENTS];
        int ready = epoll_pwait2(epoll_fd, events, EVENTS, &timeout, NULL);
        for (int i = 0; i < ready; i++) {
            receive_response(events[i].data.fd, due_of[events[i].data.fd]);
            idle[idle_count++] = events[i].data.fd;
        }
    }
    if (dropped)
        fprintf(stderr, "ping: %lu arrivals were dropped: no connection was idle\n",
                (unsigned long)dropped);
}

static int compare_ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 3 && argc != 5)
        return 2;
    uint64_t duration = (uint64_t)(atof(argv[2]) * 1e9);
    prctl(PR_SET_TIMERSLACK, 1L); /* By default, the kernel may delay a wake-up by 50 µs. */
    samples = calloc(MAX_SAMPLES, sizeof *samples);
    if (argc == 3)
        run_closed_model(atoi(argv[1]), duration);
    else
        run_open_model(atoi(argv[1]), duration, atof(argv[3]), atoi(argv[4]));
    if (count == 0)
        return 1;
    qsort(samples, count, sizeof *samples, compare_ascending);
    printf("{\"count\": %zu, \"p50\": %u, \"p99\": %u, \"p999\": %u}\n", count,
           samples[count / 2], samples[count * 99 / 100], samples[count * 999 / 1000]);
    return 0;
}
