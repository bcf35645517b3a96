/* The target of the benchmarks: one thread, epoll, a fixed answer to every request, so that the
 * generator on the other core is the bottleneck and not this.
 *
 *   server PORT          answers 200 with two bytes
 *
 * It reads a request to its blank line and past a Content-Length; it knows nothing else of HTTP.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_FDS = 20000, BUFFER = 4096, EVENTS = 256 };

static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok";

/* What of a request has been seen on a connection: bytes of its head that are kept, or bytes of
 * its body that are still to come. */
static struct connection {
    size_t kept;
    size_t body;
    char head[BUFFER];
} *connections;

static size_t content_length(const char *head, size_t length) {
    static const char name[] = "\ncontent-length:";
    for (size_t i = 0; i + sizeof name < length; i++)
        if (strncasecmp(head + i, name, sizeof name - 1) == 0)
            return strtoul(head + i + sizeof name - 1, NULL, 10);
    return 0;
}

/* Takes bytes of a connection; how many requests they complete, or -1 for what is none. */
static int take(struct connection *c, const char *data, size_t n) {
    int complete = 0;
    while (n > 0) {
        if (c->body > 0) {
            size_t now = c->body < n ? c->body : n;
            c->body -= now;
            data += now;
            n -= now;
            if (c->body == 0)
                complete++;
            continue;
        }
        size_t room = BUFFER - c->kept;
        size_t now = n < room ? n : room;
        memcpy(c->head + c->kept, data, now);
        char *end = memmem(c->head, c->kept + now, "\r\n\r\n", 4);
        if (end == NULL) {
            c->kept += now;
            if (c->kept == BUFFER)
                return -1;
            return complete;
        }
        size_t head = (size_t)(end - c->head) + 4;
        size_t used = head - c->kept;
        c->body = content_length(c->head, head);
        c->kept = 0;
        data += used;
        n -= used;
        if (c->body == 0)
            complete++;
    }
    return complete;
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: server PORT\n");
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), poll = epoll_create1(0);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("listen");
        return 1;
    }
    connections = calloc(MAX_FDS, sizeof *connections);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    static char data[1 << 16];
    for (;;) {
        int ready = epoll_wait(poll, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    if (fd >= MAX_FDS) {
                        close(fd);
                        continue;
                    }
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    connections[fd].kept = connections[fd].body = 0;
                    event = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
                    epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
                }
                continue;
            }
            ssize_t n = read(fd, data, sizeof data);
            if (n < 0 && errno == EAGAIN)
                continue;
            int complete = n > 0 ? take(&connections[fd], data, (size_t)n) : -1;
            for (int k = 0; k < complete; k++)
                if (write(fd, answer, sizeof answer - 1) != (ssize_t)sizeof answer - 1)
                    complete = -1;
            if (complete < 0)
                close(fd);
        }
    }
}
