/* The command line of the server. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

struct options {
    int port;
    const char *certificate, *key; /* PEM files; NULL disables TLS */
    bool awake;                    /* never sleep while waiting for requests */
    int64_t hold;                  /* nanoseconds to hold each response; below 0: don't hold */
    const char *report;            /* file for the quantiles of the hold times */
    const char *stamps;            /* file for the arrival times */
};

/* Set once by read_options, then constant. */
extern struct options options;

/* Reads the command line. Ends the program if it is invalid. */
void read_options(int argc, char **argv);

#endif
