/* SPDX-License-Identifier: MIT */
/* What the servers of the benchmark have in common; server.h says what for. */
#include "server.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { STATUS_FAILED = 1, STATUS_USAGE = 2, STATUS_UNSUPPORTED = 77 };

/* Not zeros: pages that the kernel really has to read. */
#define FOUR(...) __VA_ARGS__, __VA_ARGS__, __VA_ARGS__, __VA_ARGS__
#define TIMES_256(...) FOUR(FOUR(FOUR(FOUR(__VA_ARGS__))))
const uint8_t server_block[SERVER_WRITE_SIZE] = { TIMES_256(TIMES_256('w')) };

static const char *program = "server";

/* ---- complaints ------------------------------------------------------------------------------------- */

__attribute__((noreturn, format(printf, 2, 0))) static void end(int status, const char *format, va_list list) {
    fprintf(stderr, "%s: ", program);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    exit(status);
}

void server_die(const char *format, ...) {
    va_list list;
    va_start(list, format);
    end(STATUS_FAILED, format, list);
}

void server_unsupported(const char *format, ...) {
    va_list list;
    va_start(list, format);
    end(STATUS_UNSUPPORTED, format, list);
}

__attribute__((noreturn)) static void usage(const char *const *variants) {
    fprintf(stderr,
            "usage: %s echo|sink|source|proxy|hold PORT [--variant NAME] [--upstream PORT] [--connections N]\n"
            "variants:",
            program);
    for (; *variants != NULL; variants++)
        fprintf(stderr, " %s", *variants);
    fprintf(stderr, "\nproxy needs --upstream\n");
    exit(STATUS_USAGE);
}

/* ---- arguments -------------------------------------------------------------------------------------- */

/* A number of 1 to most, or 0. */
static unsigned number(const char *text, unsigned long most) {
    char *end_of_it;
    errno = 0;
    unsigned long value = strtoul(text, &end_of_it, 10);
    bool good = *text >= '0' && *text <= '9' && *end_of_it == '\0' && errno == 0 && value <= most;
    return good ? (unsigned)value : 0;
}

static enum server_workload workload(const char *name) {
    static const char *const names[] = { "echo", "sink", "source", "proxy", "hold" };
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0)
            return (enum server_workload)i;
    server_unsupported("no workload '%s'", name);
}

static const char *variant(const char *name, const char *const *variants) {
    for (; *variants != NULL; variants++)
        if (strcmp(name, *variants) == 0)
            return *variants;
    server_unsupported("no variant '%s'", name);
}

bool server_is_variant(const server_options *o, const char *name) {
    return strcmp(o->variant, name) == 0;
}

static void set_process_up(void) {
    struct rlimit files;
    const struct sigaction ignored = { .sa_handler = SIG_IGN }, usual = { .sa_handler = SIG_DFL };
    sigset_t none;
    sigemptyset(&none);
    sigaction(SIGPIPE, &ignored, NULL);
    sigaction(SIGTERM, &usual, NULL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        server_die("PR_SET_PDEATHSIG: %s", strerror(errno));
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
}

void server_arguments(int argc, char **argv, const char *const *variants, server_options *ret) {
    if (argc > 0)
        program = argv[0];
    if (argc < 3 || argc % 2 == 0)
        usage(variants);
    *ret = (server_options){ .workload = argv[1],
                             .port = (uint16_t)number(argv[2], UINT16_MAX),
                             .variant = variants[0] };
    for (int i = 3; i < argc; i += 2) {
        if (strcmp(argv[i], "--variant") == 0)
            ret->variant = argv[i + 1];
        else if (strcmp(argv[i], "--upstream") == 0 && (ret->upstream = (uint16_t)number(argv[i + 1], UINT16_MAX)))
            continue;
        else if (strcmp(argv[i], "--connections") == 0 && (ret->connections = number(argv[i + 1], 1000000)))
            continue;
        else
            usage(variants);
    }
    if (ret->port == 0)
        usage(variants);
    ret->work = workload(ret->workload);
    ret->variant = variant(ret->variant, variants);
    if (ret->work == SERVER_PROXY && ret->upstream == 0)
        usage(variants);
    set_process_up();
}

/* ---- sockets ---------------------------------------------------------------------------------------- */

static struct sockaddr_in loopback(uint16_t port) {
    return (struct sockaddr_in){ .sin_family = AF_INET,
                                 .sin_port = htons(port),
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
}

int server_listen(const server_options *o) {
    enum { TRIES = 200 };
    const struct timespec pause = { .tv_nsec = 10000000 };
    const struct sockaddr_in address = loopback(o->port);
    const int on = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0)
        server_die("socket: %s", strerror(errno));
    for (int tries = 0; bind(fd, (const struct sockaddr *)&address, sizeof address) < 0; tries++) {
        if (errno != EADDRINUSE || tries == TRIES)
            server_die("127.0.0.1:%u: %s", o->port, strerror(errno));
        nanosleep(&pause, NULL);
    }
    if (listen(fd, SERVER_BACKLOG) < 0)
        server_die("127.0.0.1:%u: %s", o->port, strerror(errno));
    return fd;
}

int server_accepted(int fd) {
    const int on = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

int server_connect(uint16_t port) {
    const struct sockaddr_in address = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    if (connect(fd, (const struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return server_accepted(fd);
}

void server_ready(const char *backend) {
    if (printf("ready %s\n", backend) < 0 || fflush(stdout) != 0)
        server_die("stdout: %s", strerror(errno));
}
