/* SPDX-License-Identifier: MIT */
#ifndef WEIR_POOL_H
#define WEIR_POOL_H

#include "base.h"

#if defined(__cplusplus) && !defined(WEIR_PARSE)
extern "C" {
#endif

/* Buffers that streams receive into, their budget, and the blocks of keep, copy and copied writes. A loop
 * has one. */

typedef struct weir_pool_options {
    size_t size;           /* sizeof(weir_pool_options) */
    uint64_t budget_bytes; /* all that it may allocate; a quarter is guaranteed to receiving; default 64 MiB */
    /* Of the budget, for streams that have something to read while all buffers are held by slices: they go on in blocks
     * of 4 KiB. Default an eighth, of a budget of 16 buffers or more; else none. Where the kernel cannot limit receives
     * (before Linux 6.17), metered streams receive into such blocks alone: once one of them has found no room, buffers leave
     * it for a block (and a budget of one buffer is all blocks then). */
    uint64_t reserve_bytes;
    uint32_t buffer_bytes; /* a receive buffer: a power of two, a page to 16 MiB; default 64 KiB, 16 KiB classic */
    /* Posted to the kernel at first: a buffer to the budget; default 1 MiB, or half of the budget. Epoll has one buffer. */
    uint32_t window_bytes;
} weir_pool_options;

/* How scarce memory is; weir_loop_set_pressure() tells of changes. */
enum weir_pressure_level {
    WEIR_PRESSURE_NONE = 0,
    WEIR_PRESSURE_HIGH = 1,   /* three quarters of the budget are used; nothing waits yet */
    WEIR_PRESSURE_PARKED = 2, /* all buffers are held by slices; streams wait, and the reserve carries them */
    WEIR_PRESSURE_STUCK =
        3 /* the reserve is spent, too: only an unref, a send or an end of a stream lets others go on */
};

/*
 * A snapshot. Every buffer is in one of four states: idle (weir's), posted (the kernel's, untouched), filling
 * (the kernel's, and partly handed out) or retired (the kernel is done with it, somebody still refers to it).
 */
typedef struct weir_pool_stats {
    size_t size; /* in: sizeof(weir_pool_stats); what is larger than the library's is zeroed */
    uint64_t budget_bytes;
    uint64_t used_bytes;            /* buffers and blocks; never more than the budget */
    uint64_t peak_bytes;            /* the most that used_bytes ever was */
    uint64_t pinned_bytes;          /* retired buffers: memory that waits for an unref or for a send */
    uint64_t pinned_received_bytes; /* of these, what was received; the rest is waste */
    uint64_t block_bytes;           /* keep, copy, copied writes */
    uint64_t private_bytes;         /* received into blocks, as the reserve is for */
    uint64_t reserve_bytes;         /* of the budget: for nothing else */
    uint32_t buffer_bytes;          /* the size of one buffer */
    uint32_t window_buffers;        /* how many weir means to have posted */
    uint32_t buffers_idle, buffers_posted, buffers_filling, buffers_retired;
    uint32_t parked_streams; /* streams that wait for a buffer */
    uint32_t level;          /* enum weir_pressure_level */
    uint64_t starved;        /* receives that found no buffer (-ENOBUFS completions) */
    uint64_t recycled;       /* times a buffer was posted again */
} weir_pool_stats;

/** weir_pool_ref() - any thread; returns @pool. */
WEIR_API weir_pool *weir_pool_ref(weir_pool *pool);
/** weir_pool_unref() - any thread; NULL is fine; returns NULL. Slices hold it too. */
WEIR_API weir_pool *weir_pool_unref(weir_pool *pool);
/** weir_pool_get_stats() - fill @stats, whose size the caller has set. The loop's thread: exact. Another thread: a
 * snapshot whose numbers may be a turn apart. 0; -EINVAL; -ECHILD. */
WEIR_API int weir_pool_get_stats(const weir_pool *pool, weir_pool_stats *stats);

#if defined(__cplusplus) && !defined(WEIR_PARSE)
}
#endif
#endif
