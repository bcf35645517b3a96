/* What the parts of the benchmarks' target share. See main.c for what it does. */
#ifndef SERVER_H
#define SERVER_H

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { MAX_FDS = 20000, BUFFER = 4096 };

struct options {
    int port;
    const char *certificate, *key; /* PEM files; NULL is without TLS */
    bool awake;                    /* never sleeps */
    int64_t hold;                  /* nanoseconds each answer is held; below 0 is not at all */
    const char *report;            /* where the hold times go */
    const char *stamps;            /* where the moments of arrival go */
};

/* What of a request has been seen on a connection: bytes of its head that are kept, or bytes of
 * its body that are still to come; and what of its answer the socket did not take yet. */
struct connection {
    int fd;
    uint32_t life; /* tells a connection from the one before it on the same file */
    SSL *ssl;
    bool websocket, chat, usage;
    size_t kept, body;
    const char *out;
    size_t left;
    char head[BUFFER];
};

/* A piece of constant text with its length. */
struct text {
    const char *bytes;
    size_t length;
};

extern struct options options;
extern int poller;

/* main.c */
uint64_t now_ns(void);
bool send_bytes(struct connection *c, const char *bytes, size_t n);
void close_connection(struct connection *c);
struct connection *connection_of(int fd);

/* http.c: takes bytes that arrived; false for what is no request. */
bool take_http(struct connection *c, const char *data, size_t n, uint64_t arrived);
const char *header(const char *head, const char *end, const char *name);
extern const struct text plain_answer;

/* websocket.c */
bool upgrade(struct connection *c, const char *head, const char *end);
bool take_frames(struct connection *c, const char *data, size_t n);

/* chat.c */
void make_streams(void);
struct text stream_answer(bool usage);

/* clock.c: answers that are held, and moments that are kept. */
bool stamped(void);
ssize_t receive_stamped(int fd, char *data, size_t size, uint64_t *arrived);
void hold(struct connection *c, uint64_t arrived);
void release_due(void);
void write_reports(void);

#endif
