/* Responses that are held for an exact time after the arrival of their request.
 *
 * The main loop never sleeps while it holds responses. The actual hold time, up to the call that
 * sends the response, is the true latency to which a generator's figures are compared. */
#ifndef HELD_RESPONSES_H
#define HELD_RESPONSES_H

#include "connection.h"

/* Holds the plain response to a request that arrived at `arrived`. */
void hold_response(struct connection *c, uint64_t arrived);

/* Sends all held responses that are due. */
void send_due_responses(void);

/* Writes quantiles of the hold times to the report file of --hold. */
void write_hold_times(void);

#endif
