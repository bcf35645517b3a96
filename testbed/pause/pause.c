/* The first process of a pod: keeps the pod's namespaces open and reaps orphaned processes. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void exit_on_signal(int signal) { (void)signal; _exit(0); }
static void reap_children(int signal) { (void)signal; while (waitpid(-1, 0, WNOHANG) > 0) {} }

int main(void) {
    signal(SIGTERM, exit_on_signal);
    signal(SIGINT, exit_on_signal);
    signal(SIGCHLD, reap_children);
    for (;;) pause();
}
