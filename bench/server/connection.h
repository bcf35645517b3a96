/* Connections: their state, and sending bytes on them. No protocol, apart from header lines. */
#ifndef CONNECTION_H
#define CONNECTION_H

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MAX_FDS = 20000, BUFFER = 4096 };

/* The state of one connection: the request that is being read, and the unsent response bytes. */
struct connection {
    int fd;
    uint32_t generation; /* counts the connections that have used this file descriptor */
    SSL *ssl;
    bool websocket, chat, usage;
    size_t buffered;       /* bytes in `buffer`: an incomplete request head or WebSocket frame */
    size_t body_remaining; /* bytes of the request's body that have not arrived */
    const char *unsent;    /* bytes that the socket has not accepted */
    size_t unsent_length;
    char buffer[BUFFER];
};

/* Constant text with its length. */
struct text {
    const char *bytes;
    size_t length;
};

/* Makes room for MAX_FDS connections. Returns the epoll instance that watches them. */
int init_connections(void);

/* Starts a connection on an accepted socket, with TLS if `tls` is not NULL. */
void open_connection(int fd, SSL_CTX *tls);

void close_connection(struct connection *c);

struct connection *connection_of(int fd);

/* Sends bytes. They must stay valid if the socket does not accept all of them at once. Returns
 * false on failure. */
bool send_bytes(struct connection *c, const char *bytes, size_t n);

/* Continues a send_bytes that was incomplete. Returns false on failure. */
bool send_unsent_bytes(struct connection *c);

/* Returns the time of the clock that the kernel uses for timestamps of packets. */
uint64_t now_ns(void);

/* Returns the value of a header, given as "name:"; NULL if the head has no such header. */
const char *find_header(const char *head, const char *end, const char *name);

#endif
