/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_SOAK_H
#define WEIR_TESTS_SOAK_H

/*
 * A soak is two processes: one with weir's loops (soak.c looks after it, server.c is what it serves), which is the one
 * that is measured, and one with plain sockets (peers.c), which gives it no rest. What they share lies in a mapping.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <weir.h>

#include "support/bytes.h"

#define MS INT64_C(1000000)
#define SECOND INT64_C(1000000000)

/* ---- what a peer asks for, as the first bytes of its connection ---------------------------------------- */

enum service {
    ECHO = 1, /* the same bytes back, then the end */
    PROXY,    /* likewise, by way of the other loop */
    SINK,     /* bytes are looked at; at their end one byte says that they were good */
    KEEP,     /* likewise, and held for a while and dropped by another thread */
    DISCARD,  /* nothing is looked at */
    SOURCE,   /* as many bytes as asked for, then the end */
    LISTEN,   /* one byte when the room is entered, then what is said there */
    TALK      /* to all in the room */
};

enum { MAGIC = 0x72696577, JOINED = 'J', GOOD = 'G' };

typedef struct request {
    uint32_t magic, service;
    uint64_t seed, length; /* the bytes are test_byte(seed, 0), ... */
    uint64_t room;         /* odd: who is slow there is thrown out; even: he is waited for */
} request;

/* ---- what both processes see --------------------------------------------------------------------------- */

enum { LOOPS = 2, PLACES = 4 };

/* Of the PLACES where a loop listens; what comes in at the last one is handed over to the other loop. */
enum place { TCP4, TCP6, UNIX, HANDED_OVER };

enum count {
    CONNECTIONS,
    BYTES, /* looked at, on either side */
    RESETS,
    ABRUPT,
    HALF_CLOSES,
    SLOW_READERS,
    URGENT,
    KEPT,
    THROWN_OUT,
    HANDED,
    PROXIED,
    RETRIES, /* of what found no memory or no descriptor */
    COUNTS
};

typedef struct soak_shared {
    _Atomic(uint32_t) is_quiet; /* peers finish what they do, and rest */
    _Atomic(uint32_t) is_over;
    _Atomic(uint32_t) resting; /* peers' threads */
    _Atomic(uint64_t) counts[COUNTS];
    _Atomic(uint32_t) has_failed;
    char failure[512];
    char addresses[LOOPS][PLACES][WEIR_ADDRESS_SIZE];
} soak_shared;

extern soak_shared *soak;

/* The first failure counts; either process, any thread. */
void soak_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
void soak_count(enum count count, uint64_t more);
int64_t soak_now(void);
void soak_sleep(int64_t ns);

/* ---- the loops ------------------------------------------------------------------------------------------ */

typedef struct server_figures {
    weir_loop_stats loop;
    weir_pool_stats pool;
} server_figures;

void servers_start(void);
/* As of a few milliseconds ago. */
server_figures server_get_figures(unsigned loop);
/* What the loops have allocated, and not freed. */
uint64_t servers_live(void);
/* Slices on their way to the thread that drops them. */
uint64_t servers_held(void);
/* From now on slices are held for so long at least. */
void servers_hold(int64_t ns);
/* Do not accept for a time. */
void servers_pause(unsigned loop);
/* Posts, a few. */
void servers_post(unsigned loop);
/* End: one loop drains, the other one is closed over what is open. */
void servers_stop(void);

/* ---- the peers ------------------------------------------------------------------------------------------- */

enum { PEER_THREADS = 8 };

/* The child's main. */
int peers_main(uint64_t seed);

#endif
