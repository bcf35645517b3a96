/* Arrival times of requests: the kernel's timestamps of received packets.
 *
 * The kernel takes a timestamp when it receives a packet, so the arrival time does not include
 * the time that this process spends on other requests. */
#ifndef TIMESTAMPS_H
#define TIMESTAMPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Returns true if an option needs the arrival times of requests. */
bool needs_timestamps(void);

/* Asks the kernel to timestamp the packets of this socket. */
void request_timestamps(int fd);

/* Reads bytes like read(2) and sets the arrival time of the last packet. */
ssize_t receive_with_timestamp(int fd, char *data, size_t size, uint64_t *arrived);

/* Writes all arrival times to the file of --stamps. */
void write_arrivals(void);

#endif
