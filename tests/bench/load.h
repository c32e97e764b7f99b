/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BENCH_LOAD_H
#define WEIR_BENCH_LOAD_H

/* What the load generator's files share: what was asked for, the servers, and the state of a run. */

#include "load_histogram.h"
#include "load_ring.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

enum { LOAD_SERVERS_MAX = 32 };

enum load_workload {
    LOAD_ECHO,
    LOAD_PROXY, /* an echo through another server: the same for who stands before it */
    LOAD_SINK,
    LOAD_SOURCE,
    LOAD_CHURN,
    LOAD_HOLD,
    LOAD_IDLE,
    LOAD_SLOW,
};

struct load_server {
    const char *name;
    uint16_t port;
    pid_t pid;
    clockid_t clock; /* its CPU time */
    unsigned first;  /* of its connections */
};

struct load_options {
    enum load_workload workload;
    unsigned connections; /* to each server */
    unsigned depth;
    unsigned rounds;
    unsigned slice_ms;
    size_t size;
    uint64_t seed;
    bool verify;
    bool spin; /* never sleep, so that only the server has to be woken */
    uint16_t upstream_port;
    uint64_t rate_bytes; /* a second */
    unsigned seconds;
    struct load_server servers[LOAD_SERVERS_MAX];
    unsigned server_count;
};

struct load;

/* One of the ways to put load on a server. Between start and stop it is called for each completion and at the end
 * of each turn; after stop it gives no new work to the server, and is busy until the last one is back. */
struct load_engine {
    void (*start)(struct load *load, const struct load_server *server);
    void (*complete)(struct load *load, struct io_uring_cqe *cqe);
    void (*flush)(struct load *load);
    void (*stop)(struct load *load);
};

struct load_connection;
struct sockaddr_in;
struct load_slot;

struct load {
    const struct load_options *options;
    const struct load_engine *engine;
    struct load_ring ring;
    const struct load_server *server; /* whose turn it is */
    bool stopping;
    unsigned busy; /* connections (slots) of this server that wait for something */

    uint64_t now_ns;      /* when the last wait ended */
    uint64_t progress_ns; /* when something last came of the server */
    uint64_t operations;
    uint64_t bytes;
    uint64_t verified_bytes;
    bool recording;
    struct load_histogram latency_ns;

    const uint8_t *pattern; /* what is sent where nobody compares */
    size_t pattern_size;

    struct load_connection *connections;
    unsigned connection_count;
    unsigned connected;
    struct load_connection **due; /* those to whom something is to be sent at the end of the turn */
    unsigned due_count;

    struct load_slot *slots;
    unsigned *idle; /* the numbers of those that are to begin */
    unsigned idle_count;
    uint64_t sequence; /* of churn's connections */
};

extern const struct load_engine load_flow; /* load_flow.c */
void load_flow_open(struct load *load);
void load_flow_send(struct load *load, unsigned index, size_t bytes);
void load_flow_close(struct load *load);
const struct sockaddr_in *load_flow_local(const struct load *load, unsigned index);

extern const struct load_engine load_churn; /* load_churn.c */
void load_churn_open(struct load *load);

void load_slices(struct load *load); /* load_slice.c */
/* Until a server has worked off what it was given; the seconds that took. */
double load_settle(const struct load_server *server);
void load_held(struct load *load);                  /* load_held.c */
void load_slow(const struct load_options *options); /* load_slow.c */

/* What went through a server's calls on all connections, since each began (load_diag.c). */
struct load_passed {
    uint64_t read_bytes;
    uint64_t written_bytes;
};
struct load_passed load_ask_passed(const struct load *load);

/* load_common.c */
uint64_t load_now_ns(clockid_t clock);
uint64_t load_server_cpu_ns(const struct load_server *server);
/* Says on stderr what is wrong with the server, or with the load if it is NULL, and ends. */
_Noreturn void load_fail(const struct load_server *server, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* A socket with TCP_NODELAY on one of many local addresses: all ports of one would not be enough. */
int load_socket(uint64_t number);
void load_turn(struct load *load, uint64_t until_ns);
/* Until nothing is busy any more; a server that is silent for ten seconds is reported. */
void load_drain(struct load *load);
void load_watch_silence(struct load *load);
void *load_allocate(size_t count, size_t size);

#endif
