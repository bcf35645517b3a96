#define _GNU_SOURCE
#include "http.h"

#include "held_responses.h"
#include "options.h"
#include "responses.h"
#include "websocket.h"

#include <stdlib.h>
#include <string.h>

static bool starts_with(const char *head, const char *end, const char *prefix) {
    size_t length = strlen(prefix);
    return (size_t)(end - head) >= length && memcmp(head, prefix, length) == 0;
}

/* Responds to a complete request. */
static bool respond(struct connection *c, uint64_t arrived) {
    if (c->chat) {
        struct text response = chat_response(c->usage);
        return send_bytes(c, response.bytes, response.length);
    }
    if (options.hold >= 0) {
        hold_response(c, arrived);
        return true;
    }
    return send_bytes(c, plain_response.bytes, plain_response.length);
}

bool read_requests(struct connection *c, const char *data, size_t n, uint64_t arrived) {
    while (n > 0) {
        if (c->body_remaining > 0) {
            size_t now = c->body_remaining < n ? c->body_remaining : n;
            /* The search sees one piece at a time. A body of a few lines arrives in one piece. */
            if (c->chat && memmem(data, now, "\"include_usage\"", 15))
                c->usage = true;
            c->body_remaining -= now;
            data += now;
            n -= now;
            if (c->body_remaining == 0 && !respond(c, arrived))
                return false;
            continue;
        }
        size_t room = BUFFER - c->buffered;
        size_t now = n < room ? n : room;
        memcpy(c->buffer + c->buffered, data, now);
        char *end = memmem(c->buffer, c->buffered + now, "\r\n\r\n", 4);
        if (end == NULL) {
            c->buffered += now;
            return c->buffered < BUFFER;
        }
        end += 4;
        size_t used = (size_t)(end - c->buffer) - c->buffered;
        const char *length = find_header(c->buffer, end, "content-length:");
        c->body_remaining = length ? strtoul(length, NULL, 10) : 0;
        c->chat = starts_with(c->buffer, end, "POST /v1/chat/completions ");
        c->usage = false;
        c->buffered = 0;
        data += used;
        n -= used;
        if (find_header(c->buffer, end, "sec-websocket-key:"))
            return accept_upgrade(c, c->buffer, end) && read_frames(c, data, n);
        if (c->body_remaining == 0 && !respond(c, arrived))
            return false;
    }
    return true;
}
