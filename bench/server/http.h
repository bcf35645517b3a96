/* HTTP requests. The server reads them up to the blank line and skips a body with a
 * Content-Length. It knows nothing else of HTTP. */
#ifndef HTTP_H
#define HTTP_H

#include "connection.h"

/* Reads bytes that arrived and responds to complete requests. Returns false if the connection
 * must be closed. */
bool read_requests(struct connection *c, const char *data, size_t n, uint64_t arrived);

#endif
