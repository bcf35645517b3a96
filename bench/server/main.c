/* The target of the benchmarks: one thread with epoll. Its responses need very little CPU, so the
 * generator on the other core is the bottleneck.
 *
 *   server PORT [--tls CERTIFICATE KEY] [--awake] [--hold NANOSECONDS REPORT] [--stamps FILE]
 *
 * Every request gets status 200 with a body of two bytes. There are two exceptions:
 * POST /v1/chat/completions gets a streamed chat, and an upgrade request starts a WebSocket that
 * echoes messages.
 *
 *   --awake   never sleep, so no client pays for waking the server
 *   --hold    send each response this long after its request arrived; never sleep
 *   --stamps  record the arrival times of requests
 *
 * The last two options write their file when SIGTERM ends the server.
 */
#define _GNU_SOURCE
#include "connection.h"
#include "held_responses.h"
#include "http.h"
#include "options.h"
#include "responses.h"
#include "timestamps.h"
#include "websocket.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 256, FEW_EVENTS = 8 };

static volatile sig_atomic_t terminated;

static void handle_sigterm(int signal) {
    (void)signal;
    terminated = 1;
}

/* Returns the number of bytes received: 0 at the end, -1 with EAGAIN if none are available. */
static ssize_t receive_bytes(struct connection *c, char *data, size_t size, uint64_t *arrived) {
    if (c->ssl) {
        int n = SSL_read(c->ssl, data, (int)size);
        if (n > 0)
            return n;
        if (SSL_get_error(c->ssl, n) == SSL_ERROR_WANT_READ) {
            errno = EAGAIN;
            return -1;
        }
        ERR_clear_error();
        return 0;
    }
    return needs_timestamps() ? receive_with_timestamp(c->fd, data, size, arrived)
                              : read(c->fd, data, size);
}

static void handle_events(struct connection *c, uint32_t events) {
    static char data[1 << 16];
    if (events & EPOLLOUT && !send_unsent_bytes(c)) {
        close_connection(c);
        return;
    }
    if (!(events & ~(uint32_t)EPOLLOUT))
        return;
    do {
        uint64_t arrived = 0;
        ssize_t n = receive_bytes(c, data, sizeof data, &arrived);
        if (n < 0 && errno == EAGAIN)
            return;
        bool valid = n > 0 && (c->websocket ? read_frames(c, data, (size_t)n)
                                            : read_requests(c, data, (size_t)n, arrived));
        if (!valid) {
            close_connection(c);
            return;
        }
    } while (c->ssl && SSL_has_pending(c->ssl));
}

static void accept_connections(int listener, SSL_CTX *tls) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_FDS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (needs_timestamps())
            request_timestamps(fd);
        open_connection(fd, tls);
    }
}

/* Allows one cipher only, so all generators have the same cost for encryption. */
static SSL_CTX *create_tls_context(void) {
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    if (!context || SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1 ||
        SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") != 1 ||
        SSL_CTX_use_certificate_file(context, options.certificate, SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, options.key, SSL_FILETYPE_PEM) != 1) {
        ERR_print_errors_fp(stderr);
        exit(1);
    }
    SSL_CTX_set_num_tickets(context, 0);
    SSL_CTX_set_read_ahead(context, 1); /* One read per TLS record instead of two. */
    return context;
}

static int listen_on(int port) {
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("listen");
        exit(1);
    }
    return listener;
}

static void raise_file_limit(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    raise_file_limit();
    signal(SIGPIPE, SIG_IGN);
    /* No SA_RESTART: SIGTERM must interrupt epoll_wait. */
    struct sigaction on_sigterm = {.sa_handler = handle_sigterm};
    sigaction(SIGTERM, &on_sigterm, NULL);
    SSL_CTX *tls = options.certificate ? create_tls_context() : NULL;
    make_chat_responses();
    int epoll_fd = init_connections();
    int listener = listen_on(options.port);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    bool holds = options.hold >= 0;
    while (!terminated) {
        /* A few events at a time, so a due response never waits for many requests. */
        int ready = epoll_wait(epoll_fd, events, holds ? FEW_EVENTS : EVENTS,
                               holds || options.awake ? 0 : -1);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.fd == listener)
                accept_connections(listener, tls);
            else
                handle_events(connection_of(events[i].data.fd), events[i].events);
        }
        if (holds)
            send_due_responses();
    }
    write_hold_times();
    write_arrivals();
    return 0;
}
