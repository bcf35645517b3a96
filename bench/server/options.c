#include "options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options options = {.hold = -1};

void read_options(int argc, char **argv) {
    bool valid = argc > 1;
    options.port = valid ? atoi(argv[1]) : 0;
    for (int i = 2; i < argc && valid;) {
        if (strcmp(argv[i], "--tls") == 0 && i + 2 < argc) {
            options.certificate = argv[i + 1];
            options.key = argv[i + 2];
            i += 3;
        } else if (strcmp(argv[i], "--awake") == 0) {
            options.awake = true;
            i++;
        } else if (strcmp(argv[i], "--hold") == 0 && i + 2 < argc) {
            options.hold = strtoll(argv[i + 1], NULL, 10);
            options.report = argv[i + 2];
            i += 3;
        } else if (strcmp(argv[i], "--stamps") == 0 && i + 1 < argc) {
            options.stamps = argv[i + 1];
            i += 2;
        } else {
            valid = false;
        }
    }
    if (!valid) {
        fprintf(stderr, "usage: server PORT [--tls CERTIFICATE KEY] [--awake]"
                        " [--hold NANOSECONDS REPORT] [--stamps FILE]\n");
        exit(2);
    }
}
