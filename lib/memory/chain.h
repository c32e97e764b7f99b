/* SPDX-License-Identifier: MIT */
#ifndef WEIR_MEMORY_CHAIN_H
#define WEIR_MEMORY_CHAIN_H

/*
 * Bytes that do not make a message yet: a queue of ranges that can be looked into, searched and cut, and that pins
 * little.
 *
 *   joining    Bytes that are wanted in one piece and lie in several are copied into a block, once, which takes their
 *              place. Blocks have room behind their bytes where more is likely to follow, so that who asks for one byte
 *              more each time does not copy everything each time.
 *   tidying    What is left when the loop is about to sleep is held by ranges that are large for their blocks; what is
 *              small is joined. So it pins at most eight times its size, and a block's header.
 *
 * Dropping wrapped memory calls its release function, which may call anything. Such ranges are put aside, and dropped by
 * weir__chain_release() when the chain is in order; the others are dropped at once.
 */

#include "memory/sendq.h"

enum { WEIR__CHAIN_NEEDLE = 80 }; /* a boundary of MIME with its line end, and a bit */

typedef struct weir__chain {
    weir__sendq queue;
    uint64_t limit;
    weir__range_cache *cache; /* NULL: another thread's by now, so that ranges are not given back */
    weir_pool *pool;          /* where copies are made */
    const void *owner;        /* cache's, for counting locally; NULL: all is counted in `shared` */
    weir__range *late;        /* dropped, but for their references */
    weir_slice shown;         /* by peek */

    /* The needle starts at none of the offsets looked_from <= i < looked_to. */
    uint64_t looked_from, looked_to;
    size_t needle_size; /* 0: nothing is known */
    uint8_t needle[WEIR__CHAIN_NEEDLE];
} weir__chain;

void weir__chain_init(weir__chain *chain, uint64_t limit, weir__range_cache *cache, weir_pool *pool);

/* Can so many bytes be had? 0; -EAGAIN: not yet; -EMSGSIZE: never, they are more than its limit. */
int weir__chain_reach(const weir__chain *chain, size_t offset, size_t size);
/* Append, by reference; uncounted bytes are copied, and so is everything once it has very many ranges. 0; -EMSGSIZE;
 * -ENOBUFS; -ENOMEM. */
int weir__chain_push(weir__chain *chain, const weir_slice *slice);
/* Show bytes in one piece, good until the next call. 0; as weir__chain_reach(); -ENOBUFS; -ENOMEM. */
int weir__chain_peek(weir__chain *chain, size_t offset, size_t size, const weir_slice **ret_slice);
/* Remove bytes in one piece; the reference is a shared one. As weir__chain_peek(). */
int weir__chain_take(weir__chain *chain, size_t size, weir_slice *ret_slice);
/* Remove bytes, which are there. */
void weir__chain_drop(weir__chain *chain, uint64_t size);
/* Where @bytes first lie at or after @offset; -EAGAIN. */
int64_t weir__chain_find(weir__chain *chain, size_t offset, const void *bytes, size_t size);

/* Join what is small for its blocks. On failure some of it is as it was. 0; -ENOBUFS; -ENOMEM. */
int weir__chain_tidy(weir__chain *chain);
/* Count every reference in `shared`: from here on any one thread may drop them. */
void weir__chain_part(weir__chain *chain);
/* Remove everything. */
void weir__chain_clear(weir__chain *chain);
/* Drop what was put aside: calls release functions. */
void weir__chain_release(weir__chain *chain);

#endif
