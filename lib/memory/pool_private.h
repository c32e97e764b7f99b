/* SPDX-License-Identifier: MIT */
#ifndef WEIR_MEMORY_POOL_PRIVATE_H
#define WEIR_MEMORY_POOL_PRIVATE_H

/* The pool inside: pool.c has the buffers' lives, budget.c what they and all blocks may take. */

#include "memory/block.h"
#include "memory/pool.h"

enum weir__buffer_state { IDLE, POSTED, FILLING, RETIRED, STATES };

typedef struct weir__buffer {
    weir_block block;
    weir__link link; /* pool.idle; pool.retiring while it holds a dispatch reference */
    uint8_t *data;
    uint32_t offset; /* bytes committed; the kernel's next byte */
    uint16_t id;
    uint8_t state;      /* enum weir__buffer_state */
    bool is_dispatched; /* holds a dispatch reference */
} weir__buffer;

/*
 * buffers owned = idle + posted + filling + retired
 * used = buffers owned * buffer_bytes + blocks + privates <= budget
 * blocks <= budget - reserve - receive share
 * Only privates may bring used above common_bytes, once buffers and blocks that were there before it fell are gone.
 */
struct weir_pool {
    weir__pool_config config;
    _Atomic(uint32_t) refs; /* the loop's, the application's, one a buffer and a block */

    /* The loop's thread; the counts are read by others, for statistics. */
    weir__buffer **by_id;
    uint16_t *free_ids; /* a stack */
    uint32_t free_id_count, max_buffers;
    uint16_t *order;                 /* ids as published; what the kernel takes them in, if incremental */
    uint32_t order_head, order_tail; /* free-running */
    weir__link idle;                 /* weir__buffer.link; hottest first */
    weir__link retiring;             /* weir__buffer.link */
    uint32_t window;                 /* buffers that are to be posted */
    uint32_t idle_low;               /* the fewest idle since the last trim */
    uint32_t parked_for_blocks;      /* of those that are parked */
    _Atomic(uint32_t) counts[STATES];
    _Atomic(uint64_t) starved, recycled;
    _Atomic(uint64_t) pinned_received; /* the sum of offsets of retired buffers */

    /* Any thread. */
    _Atomic(weir_block *) returned; /* a stack of weir_block.next; CLOSED once the loop is gone */
    _Atomic(uint32_t) parked;
    _Atomic(uint32_t) is_wanted; /* a block found no room: buffers are not to lie idle */
    _Atomic(uint64_t) used, peak, blocks, privates, copied;
    _Atomic(uint32_t) level;        /* enum weir_pressure_level */
    _Atomic(uint64_t) common_bytes; /* the budget without the reserve, or without room for one private block */
    uint64_t block_share;           /* what blocks may have of the budget without the reserve */
};

static inline uint64_t weir__pool_common_bytes(const weir_pool *pool) {
    return atomic_load_explicit(&pool->common_bytes, memory_order_relaxed);
}

static inline uint32_t weir__pool_count(const weir_pool *pool, enum weir__buffer_state state) {
    return atomic_load_explicit(&pool->counts[state], memory_order_relaxed);
}

/* Is there a buffer that nobody refers to, but the kernel? */
bool weir__pool_has_unused(const weir_pool *pool);
/* For a buffer. false: the budget has no room. */
bool weir__pool_use(weir_pool *pool, uint64_t bytes, uint64_t limit);
void weir__pool_drop(weir_pool *pool); /* one reference */

#endif
