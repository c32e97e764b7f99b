/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_SIM_RING_H
#define WEIR_TESTS_SIM_RING_H

/* The simulated io_uring inside: ring.c has the queues, requests.c what requests do. */

#include "sim/world.h"

typedef struct request {
    struct request *next;
    struct io_uring_sqe sqe;
    sim_socket *socket;
    int polled;       /* events told already (edge-triggered) */
    uint64_t signals; /* of an eventfd, seen */
    bool has_tried, has_worker;
    bool was_dry;       /* a receive: armed when there was no buffer */
    bool is_unwanted;   /* somebody asked for its cancellation: that it starves then does not count */
    uint32_t brought;   /* by a receive */
    unsigned forgotten; /* a receive: an end that it will not notice, as end_of() has it */
    int ended;          /* a result that is to come: -ECANCELED and the like; 0: none */
    int64_t not_before; /* an answer that takes its time */
} request;

struct weir__buffer_ring {
    weir__provided *entries; /* as the kernel rewrites them */
    uint32_t mask, head, tail;
    uint16_t group, flags;
    bool is_registered,
        has_ended_one;  /* has_ended_one: a receive ended without filling the head, which is in use */
    uint64_t last_user; /* user_data of who filled the head so far */
};

struct weir__ring {
    const weir_allocator *allocator;
    struct io_uring_sqe *sqes;
    unsigned sq_entries, sq_count;
    weir__cqe *cqes;
    unsigned cq_entries, cq_head, cq_tail, cq_shown; /* the tail, when the library last looked */
    weir__cqe *overflow;
    size_t overflow_count, overflow_capacity;
    request *requests, **last;
    unsigned receives; /* of these */
    weir__buffer_ring *groups[256];
    uint32_t setup_flags;
    bool is_enabled;
    unsigned idle_enters; /* in a row */
    unsigned vain_looks;  /* at an empty queue, since the last enter */
};

/* ---- ring.c ----------------------------------------------------------------------------------------- */

bool sim_has_room(const weir__ring *ring);
void sim_post(weir__ring *ring, uint64_t user_data, int res, uint32_t flags);
/* The last completion of a request. The caller unlinks it. */
void sim_end_request(weir__ring *ring, request *r, int res, uint32_t flags);
/* A receive found no buffer. */
void sim_starve(const request *r);

/* ---- requests.c ------------------------------------------------------------------------------------- */

/* Try it. Return: it is over. */
bool sim_run_request(weir__ring *ring, request *r);
/* Would it complete something if it ran? */
bool sim_is_ready(const request *r);

#endif
