/* Every chat request gets the same response, which is made once. Each event is an HTTP chunk of
 * its own, as most servers send it. One write sends as many events as the socket accepts. */
#include "responses.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* Number of content events in a response. EVENTS in bench/cases/chat.py must be equal. */
enum { CONTENT_EVENTS = 500, MAX_RESPONSE = 1 << 18 };

#define PLAIN "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok"
const struct text plain_response = {PLAIN, sizeof PLAIN - 1};

#define EVENT                                                                                      \
    "data: {\"id\":\"chatcmpl-3f1c9a52\",\"object\":\"chat.completion.chunk\","                    \
    "\"created\":1764000000,\"model\":\"bench\","

static struct text chat_responses[2];

struct text chat_response(bool usage) { return chat_responses[usage]; }

__attribute__((format(printf, 2, 3))) static void add_event(char **to, const char *format, ...) {
    char event[1024];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(event, sizeof event, format, arguments);
    va_end(arguments);
    *to += sprintf(*to, "%x\r\n%s\r\n", (unsigned)n, event);
}

void make_chat_responses(void) {
    for (int usage = 0; usage < 2; usage++) {
        char *bytes = malloc(MAX_RESPONSE), *to = bytes;
        to += sprintf(to, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                          "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n");
        add_event(&to, EVENT "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\","
                             "\"content\":\"\"},\"finish_reason\":null}]}\n\n");
        for (int i = 0; i < CONTENT_EVENTS; i++)
            add_event(&to, EVENT "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word%d\"},"
                                 "\"finish_reason\":null}]}\n\n", i);
        add_event(&to,
                  EVENT "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n");
        if (usage)
            add_event(&to, EVENT "\"choices\":[],\"usage\":{\"prompt_tokens\":8,"
                                 "\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n",
                      CONTENT_EVENTS, CONTENT_EVENTS + 8);
        add_event(&to, "data: [DONE]\n\n");
        to += sprintf(to, "0\r\n\r\n");
        chat_responses[usage] = (struct text){bytes, (size_t)(to - bytes)};
    }
}
