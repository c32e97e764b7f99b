/* SPDX-License-Identifier: MIT */
#ifndef WEIR_MEMORY_SENDQ_H
#define WEIR_MEMORY_SENDQ_H

/*
 * Bytes in order, each range with a reference to what it lies in: what a stream has to send, and what it has
 * received and not delivered yet. Ranges come from a cache of the loop, so that queueing allocates nothing once
 * the cache has grown to what is in use.
 *
 * Dropping a range may call a release function, which may call anything that a callback may: every function here
 * has the queue in order before it drops.
 */

#include <sys/uio.h>

#include "memory/block.h"

typedef struct weir__range {
    struct weir__range *next;
    const uint8_t *data;
    size_t size;
    weir_block *owner;
} weir__range;

typedef struct weir__range_slab weir__range_slab;

typedef struct weir__range_cache {
    const weir_allocator *allocator;
    const void *owner; /* the loop, for counting */
    weir__range *free;
    weir__range_slab *slabs;
    uint32_t in_use;
    bool was_used; /* since the last trim */
} weir__range_cache;

void weir__range_cache_deinit(weir__range_cache *cache);
/* Some time has passed: if nothing was used in all of it, its memory is given back. */
void weir__range_cache_trim(weir__range_cache *cache);
/* NULL: no memory. */
weir__range *weir__range_take(weir__range_cache *cache);
void weir__range_give(weir__range_cache *cache, weir__range *range);
/* How many bytes may be written behind a range, into the block that it then has more of; @owner: the loop's key. */
size_t weir__range_room(const weir__range *range, const void *owner, weir__heap_block **ret_block);

/* bytes = sum of the sizes; count = number of ranges; both 0 when first is NULL. */
typedef struct weir__sendq {
    weir__range *first, *last;
    uint64_t bytes;
    uint32_t count;
} weir__sendq;

/* Append a slice by reference; a neighbour in the same memory extends the last range. 0; -ENOMEM. */
int weir__sendq_push(weir__sendq *queue, weir__range_cache *cache, const weir_slice *slice);
/* Append a slice, by reference or, while memory is short and it would pin much more than it is, as a copy. Return: bytes
 * copied; -ENOMEM. */
int weir__sendq_add(weir__sendq *queue, weir__range_cache *cache, weir_pool *pool, const weir_slice *slice);
/* Append a copy; small ones share a block. All or nothing. 0; -ENOMEM; -ENOBUFS. */
int weir__sendq_copy(weir__sendq *queue, weir__range_cache *cache, weir_pool *pool, const void *data, size_t size);
/* Append the first @bytes of ranges that are another's, each as by weir__sendq_add(). All or nothing. 0; -ENOMEM. */
int weir__sendq_join(weir__sendq *queue, weir__range_cache *cache, weir_pool *pool, const weir__range *range,
                     uint64_t bytes, uint64_t *ret_copied);
/* Put a range in behind another one; NULL: at the front. */
void weir__sendq_insert(weir__sendq *queue, weir__range *before, weir__range *range);
/* The first bytes of the queue as vectors, at most @max of them and @limit_bytes. Return: how many. */
unsigned weir__sendq_gather(const weir__sendq *queue, struct iovec *vectors, unsigned max, size_t limit_bytes);
/* Drop @bytes from the front. */
void weir__sendq_advance(weir__sendq *queue, weir__range_cache *cache, uint64_t bytes);
/* Take the first range out; its reference goes to the caller (weir__block_unref_by). false: empty. */
bool weir__sendq_take(weir__sendq *queue, weir__range_cache *cache, weir_slice *ret_slice);
/* Take at most @max bytes, at least 1, out of the first range. */
bool weir__sendq_take_part(weir__sendq *queue, weir__range_cache *cache, size_t max, weir_slice *ret_slice);

/* Where a queue ended, so that what was appended since can be taken back. Nothing else happens to it in between. */
typedef struct weir__sendq_mark {
    weir__range *last;
    size_t size, used; /* of the last range, and of its block if that is one of copies */
    uint64_t bytes;
    uint32_t count;
} weir__sendq_mark;
weir__sendq_mark weir__sendq_get_mark(const weir__sendq *queue);
void weir__sendq_rewind(weir__sendq *queue, weir__range_cache *cache, const weir__sendq_mark *mark);
/* Drop everything. */
void weir__sendq_clear(weir__sendq *queue, weir__range_cache *cache);

#endif
