#include "held_responses.h"

#include "options.h"
#include "responses.h"

#include <stdio.h>
#include <stdlib.h>

enum { MAX_HELD = 1 << 16, MAX_HOLD_TIMES = 1 << 23 };

/* A ring buffer: responses become due in the order of their requests. */
static struct {
    int fd;
    uint32_t generation;
    uint64_t arrived;
} held[MAX_HELD];
static unsigned first, last;

static uint32_t *hold_times;
static size_t hold_time_count;

void hold_response(struct connection *c, uint64_t arrived) {
    if (last - first == MAX_HELD) {
        fprintf(stderr, "server: can't hold more than %d responses\n", MAX_HELD);
        exit(1);
    }
    unsigned i = last++ % MAX_HELD;
    held[i].fd = c->fd;
    held[i].generation = c->generation;
    held[i].arrived = arrived;
}

void send_due_responses(void) {
    if (!hold_times)
        hold_times = calloc(MAX_HOLD_TIMES, sizeof *hold_times);
    while (first != last) {
        unsigned i = first % MAX_HELD;
        uint64_t now = now_ns();
        if (now < held[i].arrived + (uint64_t)options.hold)
            return;
        first++;
        struct connection *c = connection_of(held[i].fd);
        if (c->fd < 0 || c->generation != held[i].generation)
            continue;
        if (hold_time_count < MAX_HOLD_TIMES)
            hold_times[hold_time_count++] = (uint32_t)(now - held[i].arrived);
        if (!send_bytes(c, plain_response.bytes, plain_response.length))
            close_connection(c);
    }
}

static int compare_ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static uint32_t quantile(double q) {
    size_t i = (size_t)(q * (double)hold_time_count);
    return hold_time_count ? hold_times[i < hold_time_count ? i : hold_time_count - 1] : 0;
}

void write_hold_times(void) {
    FILE *file;
    if (options.report && hold_times && (file = fopen(options.report, "w"))) {
        qsort(hold_times, hold_time_count, sizeof *hold_times, compare_ascending);
        fprintf(file, "{\"count\": %zu, \"p50\": %u, \"p99\": %u, \"p999\": %u, \"max\": %u}\n",
                hold_time_count, quantile(0.5), quantile(0.99), quantile(0.999), quantile(1));
        fclose(file);
    }
}
