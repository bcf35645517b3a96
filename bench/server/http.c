/* Requests: read to their blank line and past a Content-Length. It knows nothing else of HTTP. */
#define _GNU_SOURCE
#include "server.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define ANSWER "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok"
const struct text plain_answer = {ANSWER, sizeof ANSWER - 1};

/* The value of a header, given as "name:"; NULL when there is none. */
const char *header(const char *head, const char *end, const char *name) {
    size_t length = strlen(name);
    for (const char *line = head; (line = memchr(line, '\n', (size_t)(end - line)));) {
        line++;
        if ((size_t)(end - line) > length && strncasecmp(line, name, length) == 0) {
            line += length;
            return line + strspn(line, " \t");
        }
    }
    return NULL;
}

static bool starts(const char *head, const char *end, const char *with) {
    size_t length = strlen(with);
    return (size_t)(end - head) >= length && memcmp(head, with, length) == 0;
}

/* A whole request is there. */
static bool complete(struct connection *c, uint64_t arrived) {
    if (c->chat) {
        struct text stream = stream_answer(c->usage);
        return send_bytes(c, stream.bytes, stream.length);
    }
    if (options.hold >= 0) {
        hold(c, arrived);
        return true;
    }
    return send_bytes(c, plain_answer.bytes, plain_answer.length);
}

bool take_http(struct connection *c, const char *data, size_t n, uint64_t arrived) {
    while (n > 0) {
        if (c->body > 0) {
            size_t now = c->body < n ? c->body : n;
            /* A body of a few lines is written, and arrives, in one piece. */
            if (c->chat && memmem(data, now, "\"include_usage\"", 15))
                c->usage = true;
            c->body -= now;
            data += now;
            n -= now;
            if (c->body == 0 && !complete(c, arrived))
                return false;
            continue;
        }
        size_t room = BUFFER - c->kept;
        size_t now = n < room ? n : room;
        memcpy(c->head + c->kept, data, now);
        char *end = memmem(c->head, c->kept + now, "\r\n\r\n", 4);
        if (end == NULL) {
            c->kept += now;
            return c->kept < BUFFER;
        }
        end += 4;
        size_t used = (size_t)(end - c->head) - c->kept;
        const char *length = header(c->head, end, "content-length:");
        c->body = length ? strtoul(length, NULL, 10) : 0;
        c->chat = starts(c->head, end, "POST /v1/chat/completions ");
        c->usage = false;
        c->kept = 0;
        data += used;
        n -= used;
        if (header(c->head, end, "sec-websocket-key:"))
            return upgrade(c, c->head, end) && take_frames(c, data, n);
        if (c->body == 0 && !complete(c, arrived))
            return false;
    }
    return true;
}
