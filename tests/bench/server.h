/* SPDX-License-Identifier: MIT */
/*
 * What the servers of the benchmark have in common, whichever library they are made with: their arguments, their
 * sockets, and how they say that they are ready. What is measured is not here.
 *
 *   SERVER WORKLOAD PORT [--variant NAME] [--upstream PORT] [--connections N]
 *
 * A server listens on 127.0.0.1:PORT, prints one line, `ready BACKEND`, and is killed with its parent. Wrong usage
 * ends it with status 2, a workload or variant that it does not have with 77, anything unexpected with 1.
 */
#ifndef WEIR_BENCH_SERVER_H
#define WEIR_BENCH_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    SERVER_WRITE_SIZE = 65536,     /* of one write of the source */
    SERVER_QUEUE = 262144,         /* the source has so much queued with its library */
    SERVER_PROXY_QUEUE = 1 << 20,  /* with so much waiting for one side nothing is read from the other */
    SERVER_HOLD_SIZE = 1024,       /* a message of hold */
    SERVER_RECEIVE_SIZE = 1 << 19, /* the one receive buffer of servers that share one among all connections */
    SERVER_BACKLOG = 4096
};

enum server_workload {
    SERVER_ECHO,   /* every byte goes back, in order */
    SERVER_SINK,   /* read and drop */
    SERVER_SOURCE, /* server_block to everyone, endlessly */
    SERVER_PROXY,  /* to 127.0.0.1:upstream and back */
    SERVER_HOLD    /* what has come is kept until SERVER_HOLD_SIZE are there; 1 byte answers them */
};

typedef struct server_options {
    const char *workload; /* as it was given */
    uint16_t port;
    const char *variant;  /* never NULL */
    uint16_t upstream;    /* given where the workload is proxy */
    unsigned connections; /* how many to prepare for; 0: not said */
    enum server_workload work;
} server_options;

/* What the source sends. */
extern const uint8_t server_block[SERVER_WRITE_SIZE];

/* Reads the command line, and sets the process up: it dies with its parent, may open as many files as it is
 * allowed at all, ignores SIGPIPE and ends by SIGTERM. variants: NULL-terminated, the first one is the default.
 * Does not return if the usage is wrong. */
void server_arguments(int argc, char **argv, const char *const *variants, server_options *ret);

bool server_is_variant(const server_options *o, const char *name);

/* A workload, or a variant, that this server does not have here and now: why, and status 77. */
__attribute__((noreturn, format(printf, 1, 2))) void server_unsupported(const char *format, ...);

/* Something unexpected: why, and status 1. */
__attribute__((noreturn, format(printf, 1, 2))) void server_die(const char *format, ...);

/* A non-blocking, listening socket, also if the port is free only after a moment. */
int server_listen(const server_options *o);

/* For a socket that was accepted, with SOCK_NONBLOCK where that is wanted: sets TCP_NODELAY. Returns it. */
int server_accepted(int fd);

/* A non-blocking socket on its way to 127.0.0.1:port, with TCP_NODELAY; -1 and errno. */
int server_connect(uint16_t port);

/* Says that the server listens, and what really runs. */
void server_ready(const char *backend);

#ifdef __cplusplus
}
#endif
#endif
