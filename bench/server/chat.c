/* Streamed chat: the same answer for every request, made once. As most servers do, each event is
 * an HTTP chunk of its own; as many of them go into a write as the socket takes. */
#define _GNU_SOURCE
#include "server.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Content events of an answer; bench/cases/chat.py counts on it. */
enum { CONTENT_EVENTS = 500, ROOM = 1 << 18 };

#define EVENT                                                                                      \
    "data: {\"id\":\"chatcmpl-3f1c9a52\",\"object\":\"chat.completion.chunk\","                    \
    "\"created\":1764000000,\"model\":\"bench\","

static struct text streams[2];

struct text stream_answer(bool usage) { return streams[usage]; }

__attribute__((format(printf, 2, 3))) static void add(char **to, const char *format, ...) {
    char event[1024];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(event, sizeof event, format, arguments);
    va_end(arguments);
    *to += sprintf(*to, "%x\r\n%s\r\n", (unsigned)n, event);
}

void make_streams(void) {
    for (int usage = 0; usage < 2; usage++) {
        char *bytes = malloc(ROOM), *to = bytes;
        to += sprintf(to, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                          "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n");
        add(&to, EVENT "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\","
                       "\"content\":\"\"},\"finish_reason\":null}]}\n\n");
        for (int i = 0; i < CONTENT_EVENTS; i++)
            add(&to, EVENT "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word%d\"},"
                           "\"finish_reason\":null}]}\n\n", i);
        add(&to, EVENT "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n");
        if (usage)
            add(&to, EVENT "\"choices\":[],\"usage\":{\"prompt_tokens\":8,\"completion_tokens\":%d,"
                           "\"total_tokens\":%d}}\n\n", CONTENT_EVENTS, CONTENT_EVENTS + 8);
        add(&to, "data: [DONE]\n\n");
        to += sprintf(to, "0\r\n\r\n");
        streams[usage] = (struct text){bytes, (size_t)(to - bytes)};
    }
}
