/* SPDX-License-Identifier: MIT */
#include "memory/sendq.h"

enum {
    SLAB_RANGES = 127,
    COPY_FIRST_BYTES = 512, /* the block of a lone small write */
    COPY_NEXT_BYTES = 4096  /* and of those that queue up behind it */
};

struct weir__range_slab {
    weir__range_slab *next;
    weir__range ranges[SLAB_RANGES];
};

weir__range *weir__range_take(weir__range_cache *cache) {
    if (cache->free == NULL) {
        weir__range_slab *slab = weir__alloc(cache->allocator, sizeof *slab);
        if (slab == NULL)
            return NULL;
        slab->next = cache->slabs;
        cache->slabs = slab;
        for (int i = 0; i < SLAB_RANGES; i++) {
            slab->ranges[i].next = cache->free;
            cache->free = &slab->ranges[i];
        }
    }
    weir__range *range = cache->free;
    cache->free = range->next;
    cache->in_use++;
    cache->was_used = true;
    return range;
}

void weir__range_give(weir__range_cache *cache, weir__range *range) {
    range->next = cache->free;
    cache->free = range;
    cache->in_use--;
}

void weir__range_cache_deinit(weir__range_cache *cache) {
    while (cache->slabs != NULL) {
        weir__range_slab *slab = cache->slabs;
        cache->slabs = slab->next;
        weir__free(cache->allocator, slab, sizeof *slab);
    }
    cache->free = NULL;
}

void weir__range_cache_trim(weir__range_cache *cache) {
    if (!cache->was_used && cache->in_use == 0)
        weir__range_cache_deinit(cache);
    cache->was_used = false;
}

void weir__sendq_insert(weir__sendq *queue, weir__range *before, weir__range *range) {
    weir__range **at = before != NULL ? &before->next : &queue->first;
    range->next = *at;
    *at = range;
    if (queue->last == before)
        queue->last = range;
    queue->count++;
    queue->bytes += range->size;
}

static void append(weir__sendq *queue, weir__range *range) {
    weir__sendq_insert(queue, queue->last, range);
}

static void grow_last(weir__sendq *queue, size_t size) {
    queue->last->size += size;
    queue->bytes += size;
}

static inline int push(weir__sendq *queue, weir__range_cache *cache, const weir_slice *slice) {
    weir__range *last = queue->last;
    if (last != NULL && last->owner == slice->owner && last->data + last->size == slice->data) {
        grow_last(queue, slice->size); /* the range's one reference holds these bytes as well */
        return 0;
    }
    weir__range *range = weir__range_take(cache);
    if (range == NULL)
        return -ENOMEM;
    *range = (weir__range){ .data = slice->data, .size = slice->size, .owner = slice->owner };
    weir__block_ref_by(slice->owner, cache->owner);
    append(queue, range);
    return 0;
}

int weir__sendq_push(weir__sendq *queue, weir__range_cache *cache, const weir_slice *slice) {
    return push(queue, cache, slice);
}

/*
 * A slice pins its whole buffer, and a queue that does not move could pin the whole budget with a few bytes of each
 * buffer: one peer that does not read would starve all others. So while memory is short, what a queue adds behind other
 * bytes pins no more than eight times its size, as with weir_slice_keep().
 */
int weir__sendq_add(weir__sendq *queue, weir__range_cache *cache, weir_pool *pool, const weir_slice *slice) {
    const weir__range *last = queue->last;
    if (last != NULL && last->owner != slice->owner && weir__block_is_large_for(slice->owner, slice->size) &&
        weir__pool_is_short(slice->owner->pool) && slice->size <= INT32_MAX &&
        weir__sendq_copy(queue, cache, pool, slice->data, slice->size) >= 0)
        return (int)slice->size;
    return push(queue, cache, slice);
}

/* Who ends where the block does may go on there, on the thread of the block's loop: nobody else writes. (Chains show their
 * blocks to the application, which may have a part of one sent by another loop.) */
size_t weir__range_room(const weir__range *range, const void *owner, weir__heap_block **ret_block) {
    if (range->owner->kind != WEIR__BLOCK_HEAP || weir__pool_owner(range->owner->pool) != owner)
        return 0;
    weir__heap_block *block = WEIR__CONTAINER(range->owner, weir__heap_block, block);
    if (range->data + range->size != weir__heap_block_data(block) + block->used)
        return 0;
    *ret_block = block;
    return block->block.capacity - block->used;
}

int weir__sendq_copy(weir__sendq *queue, weir__range_cache *cache, weir_pool *pool, const void *data,
                     size_t size) {
    weir__heap_block *tail = NULL, *fresh = NULL;
    size_t room = queue->last != NULL ? weir__range_room(queue->last, cache->owner, &tail) : 0;
    size_t behind = size < room ? size : room, rest = size - behind;
    if (rest > 0) { /* all that can fail comes first */
        size_t least = queue->bytes > 0 ? COPY_NEXT_BYTES : COPY_FIRST_BYTES;
        int r = weir__heap_block_new(pool, rest > least ? rest : least, &fresh);
        if (r == -ENOBUFS)
            r = weir__heap_block_new(pool, rest, &fresh);
        if (r == -ENOBUFS) {
            weir__pool_free_idle(pool);
            r = weir__heap_block_new(pool, rest, &fresh);
        }
        if (r < 0)
            return r;
        weir__range *range = weir__range_take(cache);
        if (range == NULL) {
            weir__block_unref_shared(&fresh->block);
            return -ENOMEM;
        }
        memcpy(weir__heap_block_data(fresh), (const uint8_t *)data + behind, rest);
        fresh->used = rest;
        *range = (weir__range){ .data = weir__heap_block_data(fresh), .size = rest, .owner = &fresh->block };
        /* The queue's reference is the only one there will be: the block's first becomes it. */
        weir__block_ref_by(&fresh->block, cache->owner);
        weir__block_unref_shared(&fresh->block);
        if (behind > 0) {
            memcpy(weir__heap_block_data(tail) + tail->used, data, behind);
            tail->used += behind;
            grow_last(queue, behind);
        }
        append(queue, range);
    } else if (behind > 0) {
        memcpy(weir__heap_block_data(tail) + tail->used, data, behind);
        tail->used += behind;
        grow_last(queue, behind);
    }
    weir__pool_add_copied(pool, size);
    return 0;
}

int weir__sendq_join(weir__sendq *queue, weir__range_cache *cache, weir_pool *pool, const weir__range *range,
                     uint64_t bytes, uint64_t *ret_copied) {
    weir__sendq_mark mark = weir__sendq_get_mark(queue);
    uint64_t copied = 0;
    for (; bytes > 0; range = range->next) {
        weir_slice slice = { range->data, (size_t)weir__min_u64(range->size, bytes), range->owner };
        int r = weir__sendq_add(queue, cache, pool, &slice);
        if (r < 0) {
            weir__sendq_rewind(queue, cache, &mark);
            return r;
        }
        copied += (uint64_t)r;
        bytes -= slice.size;
    }
    *ret_copied = copied;
    return 0;
}

unsigned weir__sendq_gather(const weir__sendq *queue, struct iovec *vectors, unsigned max, size_t limit_bytes) {
    unsigned count = 0;
    for (const weir__range *range = queue->first; range != NULL && count < max && limit_bytes > 0;
         range = range->next) {
        size_t size = range->size < limit_bytes ? range->size : limit_bytes;
        vectors[count++] = (struct iovec){ .iov_base = (void *)(uintptr_t)range->data, .iov_len = size };
        limit_bytes -= size;
    }
    return count;
}

/* Its reference goes to the caller. */
static weir_block *take_first(weir__sendq *queue, weir__range_cache *cache) {
    weir__range *first = queue->first;
    weir_block *owner = first->owner;
    queue->first = first->next;
    if (queue->first == NULL)
        queue->last = NULL;
    queue->count--;
    queue->bytes -= first->size;
    weir__range_give(cache, first);
    return owner;
}

bool weir__sendq_take(weir__sendq *queue, weir__range_cache *cache, weir_slice *ret_slice) {
    const weir__range *first = queue->first;
    if (first == NULL)
        return false;
    *ret_slice = (weir_slice){ first->data, first->size, first->owner };
    (void)take_first(queue, cache);
    return true;
}

bool weir__sendq_take_part(weir__sendq *queue, weir__range_cache *cache, size_t max, weir_slice *ret_slice) {
    weir__range *first = queue->first;
    if (first == NULL || first->size <= max)
        return weir__sendq_take(queue, cache, ret_slice);
    weir__block_ref_by(first->owner, cache->owner);
    *ret_slice = (weir_slice){ first->data, max, first->owner };
    first->data += max;
    first->size -= max;
    queue->bytes -= max;
    return true;
}

static weir__heap_block *copies_of(const weir__range *range) {
    bool has_copies = range != NULL && range->owner->kind == WEIR__BLOCK_HEAP;
    return has_copies ? WEIR__CONTAINER(range->owner, weir__heap_block, block) : NULL;
}

weir__sendq_mark weir__sendq_get_mark(const weir__sendq *queue) {
    const weir__heap_block *copies = copies_of(queue->last);
    return (weir__sendq_mark){ .last = queue->last,
                               .size = queue->last != NULL ? queue->last->size : 0,
                               .used = copies != NULL ? copies->used : 0,
                               .bytes = queue->bytes,
                               .count = queue->count };
}

void weir__sendq_rewind(weir__sendq *queue, weir__range_cache *cache, const weir__sendq_mark *mark) {
    weir__range *range = mark->last != NULL ? mark->last->next : queue->first;
    weir__heap_block *copies = copies_of(mark->last);
    queue->last = mark->last;
    queue->bytes = mark->bytes;
    queue->count = mark->count;
    if (mark->last != NULL) {
        mark->last->next = NULL;
        mark->last->size = mark->size;
    } else {
        queue->first = NULL;
    }
    if (copies != NULL)
        copies->used = mark->used;
    while (range != NULL) {
        weir__range *next = range->next;
        weir_block *owner = range->owner;
        weir__range_give(cache, range);
        weir__block_unref_by(owner, cache->owner);
        range = next;
    }
}

/* Drop one reference. false: a release function forked, and this is the child, where nothing more is called. */
static bool drop(weir_block *owner, const void *by) {
    bool may_call = owner->kind == WEIR__BLOCK_EXTERNAL;
    uint32_t generation = may_call ? weir__pool_generation(owner->pool) : 0;
    weir__block_unref_by(owner, by);
    return !may_call || !weir__fork_is_child(generation);
}

void weir__sendq_advance(weir__sendq *queue, weir__range_cache *cache, uint64_t bytes) {
    while (bytes > 0) {
        weir__range *first = queue->first;
        WEIR__ASSERT(first != NULL);
        if (bytes < first->size) {
            first->data += bytes;
            first->size -= (size_t)bytes;
            queue->bytes -= bytes;
            return;
        }
        bytes -= first->size;
        if (!drop(take_first(queue, cache), cache->owner))
            return;
    }
}

void weir__sendq_clear(weir__sendq *queue, weir__range_cache *cache) {
    weir_slice slice;
    while (weir__sendq_take(queue, cache, &slice) && drop(slice.owner, cache->owner))
        ;
}
