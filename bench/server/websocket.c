/* WebSockets: the handshake, then every message sent back as it came. */
#define _GNU_SOURCE
#include "server.h"

#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>

enum { CLOSE = 8, PING = 9, PONG = 10, FINAL = 0x80, MASKED = 0x80, SMALL = 125, MASK = 4 };

bool upgrade(struct connection *c, const char *head, const char *end) {
    const char *key = header(head, end, "sec-websocket-key:");
    size_t length = strcspn(key, " \r");
    char both[128], answer[256];
    unsigned char digest[SHA_DIGEST_LENGTH], accept[64];
    if (length > 64)
        return false;
    int n = snprintf(both, sizeof both, "%.*s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", (int)length, key);
    SHA1((unsigned char *)both, (size_t)n, digest);
    EVP_EncodeBlock(accept, digest, sizeof digest);
    n = snprintf(answer, sizeof answer,
                 "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                 "Sec-WebSocket-Accept: %s\r\n\r\n",
                 accept);
    c->websocket = true;
    return send_bytes(c, answer, (size_t)n);
}

/* Answers the frame that is whole; false ends the connection. */
static bool echo(struct connection *c, int operation, char *payload, size_t length) {
    char frame[BUFFER];
    size_t head = length > SMALL ? 4 : 2;
    if (operation == PONG)
        return true;
    frame[0] = (char)(FINAL | (operation == PING ? PONG : operation));
    if (length > SMALL) {
        frame[1] = SMALL + 1;
        frame[2] = (char)(length >> 8);
        frame[3] = (char)length;
    } else {
        frame[1] = (char)length;
    }
    memcpy(frame + head, payload, length);
    return send_bytes(c, frame, head + length) && operation != CLOSE;
}

bool take_frames(struct connection *c, const char *data, size_t n) {
    while (n > 0) {
        size_t room = BUFFER - c->kept, now = n < room ? n : room;
        memcpy(c->head + c->kept, data, now);
        c->kept += now;
        data += now;
        n -= now;
        size_t at = 0;
        for (;;) {
            unsigned char *frame = (unsigned char *)c->head + at;
            size_t have = c->kept - at, head = 2 + MASK;
            if (have < head)
                break;
            size_t length = frame[1] & ~MASKED;
            if (length == SMALL + 1) {
                length = (size_t)frame[2] << 8 | frame[3];
                head += 2;
            }
            /* One frame is one message here, masked as a client's must be, and small. */
            if (!(frame[0] & FINAL) || !(frame[1] & MASKED) || head + length > BUFFER - 16)
                return false;
            if (have < head + length)
                break;
            unsigned char *mask = frame + head - MASK, *payload = frame + head;
            for (size_t i = 0; i < length; i++)
                payload[i] ^= mask[i % MASK];
            if (!echo(c, frame[0] & 0xf, (char *)payload, length))
                return false;
            at += head + length;
        }
        memmove(c->head, c->head + at, c->kept - at);
        c->kept -= at;
    }
    return true;
}
