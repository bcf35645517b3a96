/* WebSockets: the handshake, and an echo of every message. */
#ifndef WEBSOCKET_H
#define WEBSOCKET_H

#include "connection.h"

/* Accepts the upgrade request in `head`. Returns false if the connection must be closed. */
bool accept_upgrade(struct connection *c, const char *head, const char *end);

/* Reads bytes that arrived and echoes complete messages. Returns false if the connection must be
 * closed. */
bool read_frames(struct connection *c, const char *data, size_t n);

#endif
