/* SPDX-License-Identifier: MIT */
#ifndef WEIR_MEMORY_POOL_H
#define WEIR_MEMORY_POOL_H

/*
 * Receive buffers, and the budget of all that a loop holds. It knows no kernel: it says which buffers are to be
 * published, is told "id, bytes, more?" for each completion, and answers with slices.
 *
 *             publish                 first bytes             the kernel's last word
 *    IDLE ───────────────▶ POSTED ───────────────▶ FILLING ───────────────────────▶ RETIRED
 *     ▲                       (the kernel holds a reference: POSTED and FILLING)         │
 *     └─────────────────────────────── last reference dropped ◀──────────────────────────┘
 *
 * When the kernel has said its last word, its reference becomes the dispatch's: the slices handed out in this
 * dispatch stay readable until weir__pool_end_dispatch(), although nobody counted them.
 *
 * Functions are the loop's thread's, unless they say otherwise.
 */

#include "base/alloc.h"
#include "base/base.h"
#include "base/list.h"
#include "weir/pool.h"
#include "weir/slice.h"

enum { WEIR__PRIVATE_BYTES = 4096 }; /* a private block and its header */

typedef struct weir__pool_config {
    const weir_allocator *allocator;
    const void *owner;   /* whose thread counts locally: the loop; compared, never looked into */
    uint32_t generation; /* weir__fork_generation() */
    bool incremental;    /* one buffer serves many completions, in ring order */
    uint64_t budget_bytes;
    uint64_t reserve_bytes; /* of the budget: for private blocks alone */
    uint32_t buffer_bytes;  /* a power of two */
    uint32_t window_bytes;
    /* Payload is mapped and not allocated: a child of fork does not get it, neighbours share a mapping, and what is
     * given back is the system's again. */
    size_t page_bytes;
    void *(*map)(size_t size); /* NULL: no memory */
    void (*unmap)(void *memory, size_t size);
    /* Memory came back on another thread while streams are parked. Any thread. */
    void (*wake)(void *host);
    /* The pool is freed. Any thread. */
    void (*drop)(void *host);
    void *host;
} weir__pool_config;

typedef struct weir__pool_buffer {
    void *data;
    uint32_t size;
    uint16_t id;
} weir__pool_buffer;

/* Check and complete options. @mode_buffer_bytes is the default of the mode. 0; -EINVAL. */
int weir__pool_configure(const weir_pool_options *options, uint32_t mode_buffer_bytes, weir__pool_config *config);
/* The pool, with one reference, which the loop drops by weir__pool_close(). 0; -ENOMEM. */
int weir__pool_new(const weir__pool_config *config, weir_pool **ret_pool);

/* The most buffers that the pool will ever own: the size of the ring. */
uint32_t weir__pool_max_buffers(const weir_pool *pool);
bool weir__pool_is_incremental(const weir_pool *pool);
uint32_t weir__pool_buffer_bytes(const weir_pool *pool);

/* Pick a buffer to publish, up to the window: idle ones first, the hottest one first; then new ones, within the
 * budget. false: the window is full, or there is no memory. */
bool weir__pool_publish(weir_pool *pool, weir__pool_buffer *ret_buffer);
/* Buffers that the kernel may still fill. */
uint32_t weir__pool_available(const weir_pool *pool);

/* The kernel put @bytes into buffer @id, and will put more there or not. -EILSEQ: it cannot have, and nothing has
 * changed: the group is not to be trusted any more. The slice is borrowed until the end of the dispatch. */
int weir__pool_commit(weir_pool *pool, uint32_t id, size_t bytes, bool more, weir_slice *ret_slice);
/* Where the kernel should write next, for a comparison with what it thinks. false: nothing is filling or posted. */
bool weir__pool_next_byte(const weir_pool *pool, const uint8_t **ret_data, uint32_t *ret_position);

/* The callbacks of a batch of completions are over: drop the dispatch's references. */
void weir__pool_end_dispatch(weir_pool *pool);
/* Has another thread given something back that was not taken in yet? */
bool weir__pool_has_returned(const weir_pool *pool);
/* Take in what other threads gave back. */
void weir__pool_collect(weir_pool *pool);
/* A receive found no buffer. */
void weir__pool_starve(weir_pool *pool);
/* Streams that wait for a buffer; while there are any, memory that comes back on another thread wakes the loop. */
void weir__pool_set_parked(weir_pool *pool, uint32_t streams);
/* Of these, those that no buffer helps, for they receive into private blocks alone. */
void weir__pool_set_parked_for_blocks(weir_pool *pool, uint32_t streams);
/* Give up buffers that lie idle: somebody else needs the memory. */
void weir__pool_free_idle(weir_pool *pool);
/* Buffers and other blocks leave no room for one private block, and there are buffers that nobody refers to. */
bool weir__pool_is_crowded(const weir_pool *pool);
/* From now on they leave room for one; idle buffers that have it go. What the kernel has may be in the way still. */
void weir__pool_make_room(weir_pool *pool);
/* How scarce is memory? enum weir_pressure_level, as of the end of a turn. */
uint32_t weir__pool_look_at_pressure(weir_pool *pool);
/* Some time has passed (about a second): free what was not needed in all of it. */
void weir__pool_trim(weir_pool *pool);

/* The kernel has given up its buffer ring: it holds nothing any more, and what is published next is a new ring's first. */
void weir__pool_take_back(weir_pool *pool);
/* Likewise, and from now on the pool serves a classic ring. */
void weir__pool_withdraw(weir_pool *pool);
/* The loop is gone, and with it the kernel: what nobody refers to is freed now, the rest by its last unref. */
void weir__pool_close(weir_pool *pool);
/* As close, but the kernel may still write: what it was given is never freed. */
void weir__pool_abandon(weir_pool *pool);

/* Any thread. */
static inline const void *weir__pool_owner(const weir_pool *pool) {
    return ((const weir__pool_config *)(const void *)pool)->owner; /* a pool begins with its configuration */
}
uint32_t weir__pool_generation(const weir_pool *pool);
const weir_allocator *weir__pool_allocator(const weir_pool *pool);
bool weir__pool_charge(weir_pool *pool,
                       uint64_t bytes); /* for a block; false: the share is spent; 0 always works */
void weir__pool_uncharge(weir_pool *pool, uint64_t bytes); /* and wake those who wait for it */
/* The same for a private block, which may have the reserve as well. */
bool weir__pool_charge_private(weir_pool *pool, uint64_t bytes);
void weir__pool_uncharge_private(weir_pool *pool, uint64_t bytes);
bool weir__pool_has_private(const weir_pool *pool, uint64_t bytes); /* is there room for one? */
bool weir__pool_is_short(const weir_pool *pool);                    /* three quarters of the budget are used */
void weir__pool_add_copied(weir_pool *pool, uint64_t bytes);
uint64_t weir__pool_copied(const weir_pool *pool);
void weir__pool_return(weir_block *buffer); /* the last reference to a buffer is gone */

/* Every buffer in one state, every count right, the budget's sum true: for tests and debug builds. */
bool weir__pool_is_consistent(const weir_pool *pool);

#endif
