/* SPDX-License-Identifier: MIT */
#ifndef WEIR_MEMORY_BLOCK_H
#define WEIR_MEMORY_BLOCK_H

/*
 * What a slice refers to: memory with a count.
 *
 * The count is in two parts, so that the loop's thread, which does nearly all of the counting, needs no atomic
 * operation for it:
 *
 *   local   references of the loop's thread: the kernel's, this dispatch's, ranges queued or staged
 *   shared  references of the application, which may drop them on any thread, and 1 while local > 0
 *
 *   references = kernel + dispatch + owned = local + shared - (local > 0)
 *
 * The block is released when shared becomes 0. Only a loop whose pool the block belongs to may use `local`; a
 * stream of another loop counts in `shared`, as an application does.
 */

#include "base/base.h"
#include "base/fork.h"
#include "memory/pool.h"
#include "weir/slice.h"

enum weir__block_kind {
    WEIR__BLOCK_BUFFER = 1,  /* a receive buffer of the pool (struct weir__buffer) */
    WEIR__BLOCK_HEAP = 2,    /* made by new, copy, keep or a copied write (struct weir__heap_block) */
    WEIR__BLOCK_EXTERNAL = 3 /* somebody else's memory (struct weir__external_block) */
};

struct weir_block {
    _Atomic(uint32_t) shared;
    uint32_t local;
    weir_pool *pool;
    size_t capacity;         /* payload bytes that it occupies; 0: not ours */
    struct weir_block *next; /* pool.returned */
    uint8_t kind;            /* enum weir__block_kind */
    bool is_private;         /* received into, charged as such */
};

typedef struct weir__heap_block {
    weir_block block;
    size_t used; /* bytes of the payload written so far; a copied write may append */
} weir__heap_block;

typedef struct weir__external_block {
    weir_block block;
    weir_release_fn release;
    void *userdata;
    const void *data;
    size_t size;
} weir__external_block;

/* A block of @capacity bytes with one shared reference, charged to the pool. 0; -ENOMEM; -ENOBUFS. */
int weir__heap_block_new(weir_pool *pool, size_t capacity, weir__heap_block **ret_block);
/* One to receive into when no buffer is to be had; likewise, and nobody may append to it. */
int weir__private_block_new(weir_pool *pool, weir__heap_block **ret_block);
uint8_t *weir__heap_block_data(weir__heap_block *block);

/* The last reference is gone: give the memory back, on whichever thread this is. */
void weir__block_release(weir_block *block);

static inline void weir__block_ref_shared(weir_block *block) {
    atomic_fetch_add_explicit(&block->shared, 1, memory_order_relaxed);
}

static inline void weir__block_unref_shared(weir_block *block) {
    /* Who sees the count at 1 holds the only reference: nobody else can add one. */
    if (atomic_load_explicit(&block->shared, memory_order_acquire) == 1)
        atomic_store_explicit(&block->shared, 0, memory_order_relaxed);
    else if (atomic_fetch_sub_explicit(&block->shared, 1, memory_order_acq_rel) != 1)
        return;
    weir__block_release(block);
}

static inline void weir__block_ref_local(weir_block *block) {
    if (block->local++ == 0)
        weir__block_ref_shared(block);
}

static inline void weir__block_unref_local(weir_block *block) {
    WEIR__ASSERT(block->local > 0);
    if (--block->local == 0)
        weir__block_unref_shared(block);
}

/* Would a reference for @size bytes of it pin more than eight times as much? */
static inline bool weir__block_is_large_for(const weir_block *block, size_t size) {
    return size < (block->capacity + 7) / 8;
}

/* For the loop whose key is @owner: locally where the block is its own. */
static inline void weir__block_ref_by(weir_block *block, const void *owner) {
    if (WEIR__LIKELY(weir__pool_owner(block->pool) == owner))
        weir__block_ref_local(block);
    else
        weir__block_ref_shared(block);
}

static inline void weir__block_unref_by(weir_block *block, const void *owner) {
    if (WEIR__LIKELY(weir__pool_owner(block->pool) == owner))
        weir__block_unref_local(block);
    else
        weir__block_unref_shared(block);
}

#endif
