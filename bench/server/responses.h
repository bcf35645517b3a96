/* The constant responses: a plain one, and streamed chats. */
#ifndef RESPONSES_H
#define RESPONSES_H

#include "connection.h"

extern const struct text plain_response;

/* Makes the streamed chats; must be called before chat_response. */
void make_chat_responses(void);

/* Returns a streamed chat, with or without the event that has the token counts. */
struct text chat_response(bool usage);

#endif
