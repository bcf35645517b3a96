#include "websocket.h"

#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>

enum { CLOSE = 8, PING = 9, PONG = 10, FINAL = 0x80, MASKED = 0x80, MAX_SHORT_LENGTH = 125 };
enum { MASK_LENGTH = 4 };

bool accept_upgrade(struct connection *c, const char *head, const char *end) {
    const char *key = find_header(head, end, "sec-websocket-key:");
    size_t length = strcspn(key, " \r");
    char key_and_guid[128], response[256];
    unsigned char digest[SHA_DIGEST_LENGTH], accept[64];
    if (length > 64)
        return false;
    int n = snprintf(key_and_guid, sizeof key_and_guid,
                     "%.*s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", (int)length, key);
    SHA1((unsigned char *)key_and_guid, (size_t)n, digest);
    EVP_EncodeBlock(accept, digest, sizeof digest);
    n = snprintf(response, sizeof response,
                 "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                 "Sec-WebSocket-Accept: %s\r\n\r\n",
                 accept);
    c->websocket = true;
    return send_bytes(c, response, (size_t)n);
}

/* Replies to a complete frame. Returns false if the connection must be closed. */
static bool reply_to_frame(struct connection *c, int opcode, char *payload, size_t length) {
    char frame[BUFFER];
    size_t head = length > MAX_SHORT_LENGTH ? 4 : 2;
    if (opcode == PONG)
        return true;
    frame[0] = (char)(FINAL | (opcode == PING ? PONG : opcode));
    if (length > MAX_SHORT_LENGTH) {
        frame[1] = MAX_SHORT_LENGTH + 1;
        frame[2] = (char)(length >> 8);
        frame[3] = (char)length;
    } else {
        frame[1] = (char)length;
    }
    memcpy(frame + head, payload, length);
    return send_bytes(c, frame, head + length) && opcode != CLOSE;
}

bool read_frames(struct connection *c, const char *data, size_t n) {
    while (n > 0) {
        size_t room = BUFFER - c->buffered, now = n < room ? n : room;
        memcpy(c->buffer + c->buffered, data, now);
        c->buffered += now;
        data += now;
        n -= now;
        size_t at = 0;
        for (;;) {
            unsigned char *frame = (unsigned char *)c->buffer + at;
            size_t available = c->buffered - at, head = 2 + MASK_LENGTH;
            if (available < head)
                break;
            size_t length = frame[1] & ~MASKED;
            if (length == MAX_SHORT_LENGTH + 1) {
                length = (size_t)frame[2] << 8 | frame[3];
                head += 2;
            }
            /* Each message must be one small frame. Clients must mask their frames. */
            if (!(frame[0] & FINAL) || !(frame[1] & MASKED) || head + length > BUFFER - 16)
                return false;
            if (available < head + length)
                break;
            unsigned char *mask = frame + head - MASK_LENGTH, *payload = frame + head;
            for (size_t i = 0; i < length; i++)
                payload[i] ^= mask[i % MASK_LENGTH];
            if (!reply_to_frame(c, frame[0] & 0xf, (char *)payload, length))
                return false;
            at += head + length;
        }
        memmove(c->buffer, c->buffer + at, c->buffered - at);
        c->buffered -= at;
    }
    return true;
}
