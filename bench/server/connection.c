#define _GNU_SOURCE
#include "connection.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

static struct connection *connections;
static int epoll_fd;

int init_connections(void) {
    connections = calloc(MAX_FDS, sizeof *connections);
    epoll_fd = epoll_create1(0);
    return epoll_fd;
}

struct connection *connection_of(int fd) { return &connections[fd]; }

void open_connection(int fd, SSL_CTX *tls) {
    struct connection *c = &connections[fd];
    c->fd = fd;
    c->generation++;
    c->websocket = c->chat = false;
    c->buffered = c->body_remaining = c->unsent_length = 0;
    if (tls) {
        c->ssl = SSL_new(tls);
        SSL_set_fd(c->ssl, fd);
        SSL_set_accept_state(c->ssl);
    }
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

void close_connection(struct connection *c) {
    if (c->ssl)
        SSL_free(c->ssl);
    close(c->fd);
    c->ssl = NULL;
    c->fd = -1;
}

bool send_bytes(struct connection *c, const char *bytes, size_t n) {
    /* A client that sends a request before it has read the previous response is not supported. */
    if (c->unsent_length > 0)
        return false;
    if (c->ssl)
        return SSL_write(c->ssl, bytes, (int)n) == (int)n;
    ssize_t sent = write(c->fd, bytes, n);
    if (sent == (ssize_t)n)
        return true;
    if (sent < 0 && errno != EAGAIN)
        return false;
    c->unsent = bytes + (sent > 0 ? sent : 0);
    c->unsent_length = n - (size_t)(sent > 0 ? sent : 0);
    /* WebSocket frames are on the stack. Only the constant responses stay valid. */
    if (c->websocket)
        return false;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.fd = c->fd};
    return epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event) == 0;
}

bool send_unsent_bytes(struct connection *c) {
    ssize_t sent = write(c->fd, c->unsent, c->unsent_length);
    if (sent < 0)
        return errno == EAGAIN;
    c->unsent += sent;
    c->unsent_length -= (size_t)sent;
    if (c->unsent_length > 0)
        return true;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = c->fd};
    return epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event) == 0;
}

uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

const char *find_header(const char *head, const char *end, const char *name) {
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
