/* The target of the benchmarks: one thread, epoll, answers that cost next to nothing, so that
 * the generator on the other core is the bottleneck and not this.
 *
 *   server PORT [--tls CERTIFICATE KEY] [--awake] [--hold NANOSECONDS REPORT] [--stamps FILE]
 *
 * Every request is answered 200 with two bytes, but for POST /v1/chat/completions, which gets a
 * streamed chat, and for a WebSocket's upgrade, after which messages are sent back as they come.
 * --awake never sleeps, so that nobody pays for waking it; --hold, which never does either, sends
 * each answer that long after its request arrived; --stamps keeps when requests arrived. The last
 * two write what they kept when SIGTERM ends the server.
 */
#define _GNU_SOURCE
#include "server.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 256, FEW_EVENTS = 8 };

struct options options = {.hold = -1};
int poller;
static struct connection *connections;
static SSL_CTX *tls;
static volatile sig_atomic_t ended;

static void end(int signal) {
    (void)signal;
    ended = 1;
}

/* Of the clock that the kernel stamps packets by. */
uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

struct connection *connection_of(int fd) { return &connections[fd]; }

void close_connection(struct connection *c) {
    if (c->ssl)
        SSL_free(c->ssl);
    close(c->fd);
    c->ssl = NULL;
    c->fd = -1;
}

/* Sends bytes; those that a socket does not take at once have to last until it does. */
bool send_bytes(struct connection *c, const char *bytes, size_t n) {
    if (c->left > 0)
        return false; /* A request before the last one's answer was read: no peer does that. */
    if (c->ssl)
        return SSL_write(c->ssl, bytes, (int)n) == (int)n;
    ssize_t sent = write(c->fd, bytes, n);
    if (sent == (ssize_t)n)
        return true;
    if (sent < 0 && errno != EAGAIN)
        return false;
    c->out = bytes + (sent > 0 ? sent : 0);
    c->left = n - (size_t)(sent > 0 ? sent : 0);
    /* Only constant text is long enough for a full socket. */
    if (c->websocket)
        return false;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.fd = c->fd};
    return epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event) == 0;
}

static bool send_more(struct connection *c) {
    ssize_t sent = write(c->fd, c->out, c->left);
    if (sent < 0)
        return errno == EAGAIN;
    c->out += sent;
    c->left -= (size_t)sent;
    if (c->left > 0)
        return true;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = c->fd};
    return epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event) == 0;
}

/* Bytes that arrived; 0 at the end, or -1 with EAGAIN when there are none. */
static ssize_t receive(struct connection *c, char *data, size_t size, uint64_t *arrived) {
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
    return stamped() ? receive_stamped(c->fd, data, size, arrived) : read(c->fd, data, size);
}

static void serve(struct connection *c, uint32_t events) {
    static char data[1 << 16];
    if (events & EPOLLOUT && !send_more(c)) {
        close_connection(c);
        return;
    }
    if (!(events & ~(uint32_t)EPOLLOUT))
        return;
    do {
        uint64_t arrived = 0;
        ssize_t n = receive(c, data, sizeof data, &arrived);
        if (n < 0 && errno == EAGAIN)
            return;
        bool good = n > 0 && (c->websocket ? take_frames(c, data, (size_t)n)
                                           : take_http(c, data, (size_t)n, arrived));
        if (!good) {
            close_connection(c);
            return;
        }
    } while (c->ssl && SSL_has_pending(c->ssl));
}

static void take_connections(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_FDS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (stamped())
            setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one);
        struct connection *c = &connections[fd];
        c->fd = fd;
        c->life++;
        c->websocket = c->chat = false;
        c->kept = c->body = c->left = 0;
        if (tls) {
            c->ssl = SSL_new(tls);
            SSL_set_fd(c->ssl, fd);
            SSL_set_accept_state(c->ssl);
        }
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

/* One cipher, so that no generator has a cheaper one than another. */
static SSL_CTX *make_tls(void) {
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    if (!context || SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1 ||
        SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") != 1 ||
        SSL_CTX_use_certificate_file(context, options.certificate, SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, options.key, SSL_FILETYPE_PEM) != 1) {
        ERR_print_errors_fp(stderr);
        exit(1);
    }
    SSL_CTX_set_num_tickets(context, 0);
    SSL_CTX_set_read_ahead(context, 1); /* A record in one read, not in two. */
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

static void read_options(int argc, char **argv) {
    bool good = argc > 1;
    options.port = good ? atoi(argv[1]) : 0;
    for (int i = 2; i < argc && good;) {
        if (strcmp(argv[i], "--tls") == 0 && i + 2 < argc) {
            options.certificate = argv[i + 1];
            options.key = argv[i + 2];
            i += 3;
        } else if (strcmp(argv[i], "--awake") == 0) {
            options.awake = true;
            i++;
        } else if (strcmp(argv[i], "--hold") == 0 && i + 2 < argc) {
            options.hold = strtoll(argv[i + 1], NULL, 10);
            options.report = argv[i + 2];
            i += 3;
        } else if (strcmp(argv[i], "--stamps") == 0 && i + 1 < argc) {
            options.stamps = argv[i + 1];
            i += 2;
        } else {
            good = false;
        }
    }
    if (!good) {
        fprintf(stderr, "usage: server PORT [--tls CERTIFICATE KEY] [--awake]"
                        " [--hold NANOSECONDS REPORT] [--stamps FILE]\n");
        exit(2);
    }
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    struct sigaction on_end = {.sa_handler = end}; /* Not restarted: the wait has to end. */
    sigaction(SIGTERM, &on_end, NULL);
    if (options.certificate)
        tls = make_tls();
    make_streams();
    connections = calloc(MAX_FDS, sizeof *connections);
    int listener = listen_on(options.port);
    poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    bool holding = options.hold >= 0;
    while (!ended) {
        /* A few at a time, so that no answer that is due waits for many requests to be read. */
        int ready = epoll_wait(poller, events, holding ? FEW_EVENTS : EVENTS,
                               holding || options.awake ? 0 : -1);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.fd == listener)
                take_connections(listener);
            else
                serve(&connections[events[i].data.fd], events[i].events);
        }
        if (holding)
            release_due();
    }
    write_reports();
    return 0;
}
