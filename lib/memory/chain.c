/* SPDX-License-Identifier: MIT */
#include "memory/chain.h"

enum {
    JOIN_BYTES = 4096,     /* a copied tail shorter than that is copied once more when more follows */
    ROOM_BYTES = 64 << 10, /* behind bytes that were pulled up: as many as they are, but no more than that */
    LEAST_RANGES = 1024,   /* a chain may have so many, */
    BYTES_OF_A_RANGE = 256 /* and one more for each so many bytes of its limit */
};

void weir__chain_init(weir__chain *chain, uint64_t limit, weir__range_cache *cache, weir_pool *pool) {
    *chain = (weir__chain){ .limit = limit, .cache = cache, .pool = pool, .owner = cache->owner };
}

int weir__chain_reach(const weir__chain *chain, size_t offset, size_t size) {
    if (offset > chain->limit || size > chain->limit - offset)
        return -EMSGSIZE;
    return offset + size > chain->queue.bytes ? -EAGAIN : 0;
}

int weir__chain_push(weir__chain *chain, const weir_slice *slice) {
    weir__sendq *queue = &chain->queue;
    if (slice->size > chain->limit || queue->bytes > chain->limit - slice->size)
        return -EMSGSIZE;
    if (slice->size == 0)
        return 0;
    if (slice->owner != NULL && queue->count < LEAST_RANGES + chain->limit / BYTES_OF_A_RANGE)
        return weir__sendq_push(queue, chain->cache, slice);
    return weir__sendq_copy(queue, chain->cache, chain->pool, slice->data, slice->size);
}

/* ---- dropping --------------------------------------------------------------------------------------- */

static void drop_range(weir__chain *chain, weir__range *range) {
    weir_block *owner = range->owner;
    if (owner->kind == WEIR__BLOCK_EXTERNAL) {
        range->next = chain->late;
        chain->late = range;
        return;
    }
    if (chain->cache != NULL)
        weir__range_give(chain->cache, range);
    weir__block_unref_by(owner, chain->owner);
}

void weir__chain_release(weir__chain *chain) {
    const uint32_t generation = weir__pool_generation(chain->pool);
    weir__range *range;
    while (!weir__fork_is_child(generation) && (range = chain->late) != NULL) { /* a release function may fork */
        weir_block *owner = range->owner;
        chain->late = range->next;
        if (chain->cache != NULL)
            weir__range_give(chain->cache, range);
        weir__block_unref_by(owner, chain->owner);
    }
}

/* Remove bytes behind the range @before, or from the front (NULL). */
static void cut(weir__chain *chain, weir__range *before, uint64_t size) {
    weir__sendq *queue = &chain->queue;
    queue->bytes -= size;
    while (size > 0) {
        weir__range **at = before != NULL ? &before->next : &queue->first;
        weir__range *range = *at;
        if (size < range->size) {
            range->data += size;
            range->size -= (size_t)size;
            return;
        }
        size -= range->size;
        *at = range->next;
        if (queue->last == range)
            queue->last = before;
        queue->count--;
        drop_range(chain, range);
    }
}

void weir__chain_drop(weir__chain *chain, uint64_t size) {
    cut(chain, NULL, size);
    if (size >= chain->looked_to) {
        chain->needle_size = 0;
        chain->looked_from = chain->looked_to = 0;
    } else {
        chain->looked_to -= size;
        chain->looked_from -= weir__min_u64(size, chain->looked_from);
    }
}

void weir__chain_clear(weir__chain *chain) {
    weir__chain_drop(chain, chain->queue.bytes);
}

void weir__chain_part(weir__chain *chain) {
    for (weir__range *range = chain->queue.first; range != NULL; range = range->next) {
        weir__block_ref_shared(range->owner);
        weir__block_unref_by(range->owner, chain->owner);
    }
    chain->owner = NULL;
}

/* ---- joining ---------------------------------------------------------------------------------------- */

/* Where an offset lies: in a range, or right behind the last one (range NULL). */
typedef struct place {
    weir__range *before, *range; /* before: NULL at the front */
    size_t skip;                 /* bytes of the range before it */
} place;

static place find_place(const weir__chain *chain, uint64_t offset) {
    place it = { .range = chain->queue.first };
    while (it.range != NULL && offset >= it.range->size) {
        offset -= it.range->size;
        it.before = it.range;
        it.range = it.range->next;
    }
    it.skip = (size_t)offset;
    return it;
}

static void copy_from(const weir__range *range, size_t skip, uint8_t *target, size_t size) {
    for (; size > 0; range = range->next, skip = 0) {
        size_t part = size < range->size - skip ? size : range->size - skip;
        memcpy(target, range->data + skip, part);
        target += part;
        size -= part;
    }
}

/* Is there room behind a range, in a block that is not too large for both? */
static bool has_room(const weir__chain *chain, const weir__range *range, uint64_t size,
                     weir__heap_block **ret_block) {
    return weir__range_room(range, chain->owner, ret_block) >= size &&
           !weir__block_is_large_for(range->owner, range->size + (size_t)size);
}

/* A block with room behind its bytes; without, if there is no memory for that. */
static int new_block(weir__chain *chain, size_t size, size_t room, weir__heap_block **ret_block) {
    int r = weir__heap_block_new(chain->pool, size + room, ret_block);
    if (r == -ENOBUFS && room > 0)
        r = weir__heap_block_new(chain->pool, size, ret_block);
    if (r == -ENOBUFS && chain->owner != NULL) { /* idle buffers are the loop's thread's to give up */
        weir__pool_free_idle(chain->pool);
        r = weir__heap_block_new(chain->pool, size, ret_block);
    }
    return r;
}

/*
 * Put @size bytes from a place on into one range: behind the place's own bytes, if there is room in their block, or into
 * a new block. 0; -ENOBUFS; -ENOMEM.
 */
static int join(weir__chain *chain, place from, size_t size, size_t room, weir__range **ret_range) {
    weir__sendq *queue = &chain->queue;
    weir__range *first = from.range, *joined;
    weir__heap_block *block = NULL;
    size_t head = first->size - from.skip, tail = size > head ? size - head : 0;
    if (tail > 0 && has_room(chain, first, tail, &block)) {
        copy_from(first->next, 0, weir__heap_block_data(block) + block->used, tail);
        block->used += tail;
        cut(chain, first, tail);
        first->size += tail;
        queue->bytes += tail;
        weir__pool_add_copied(chain->pool, tail);
        *ret_range = first;
        return 0;
    }
    int r = new_block(chain, size, room, &block);
    if (r < 0)
        return r;
    joined = weir__range_take(chain->cache);
    if (joined == NULL) {
        weir__block_unref_shared(&block->block);
        return -ENOMEM;
    }
    copy_from(first, from.skip, weir__heap_block_data(block), size);
    block->used = size;
    *joined = (weir__range){ .data = weir__heap_block_data(block), .size = size, .owner = &block->block };
    weir__block_ref_by(&block->block, chain->owner); /* the block's first reference becomes the chain's */
    weir__block_unref_shared(&block->block);
    weir__pool_add_copied(chain->pool, size);
    if (from.skip > 0) {
        from.before = first;
        first->size -= head;
        queue->bytes -= head;
        cut(chain, first, tail);
    } else {
        cut(chain, from.before, size);
    }
    weir__sendq_insert(queue, from.before, joined);
    *ret_range = joined;
    return 0;
}

/* Make bytes lie together; @room is wanted behind them if that takes a new block. */
static int pull_up(weir__chain *chain, size_t offset, size_t size, size_t room, weir_slice *ret_slice) {
    int r = weir__chain_reach(chain, offset, size);
    if (r < 0)
        return r;
    *ret_slice = (weir_slice){ NULL, 0, NULL };
    if (size == 0)
        return 0;
    place from = find_place(chain, offset);
    weir__range *range = from.range;
    if (size > range->size - from.skip) {
        r = join(chain, from, size, room, &range);
        if (r < 0)
            return r;
        from.skip = range == from.range ? from.skip : 0;
    }
    *ret_slice = (weir_slice){ range->data + from.skip, size, range->owner };
    return 0;
}

int weir__chain_peek(weir__chain *chain, size_t offset, size_t size, const weir_slice **ret_slice) {
    weir_slice slice;
    int r = pull_up(chain, offset, size, size < ROOM_BYTES ? size : ROOM_BYTES, &slice);
    if (r < 0)
        return r;
    chain->shown = slice;
    *ret_slice = &chain->shown;
    return 0;
}

int weir__chain_take(weir__chain *chain, size_t size, weir_slice *ret_slice) {
    weir_slice slice;
    int r = pull_up(chain, 0, size, 0, &slice);
    if (r < 0)
        return r;
    if (slice.owner != NULL)
        weir__block_ref_shared(slice.owner);
    *ret_slice = slice;
    weir__chain_drop(chain, size);
    return 0;
}

/* ---- tidying ---------------------------------------------------------------------------------------- */

/* The next range that lies in another block. */
static weir__range *behind_block(weir__range *range) {
    const weir_block *owner = range->owner;
    while (range != NULL && range->owner == owner)
        range = range->next;
    return range;
}

/* Ranges in a row that lie in one block hold it together: are they small for it? */
static bool is_small(weir__range *range, uint64_t *ret_size) {
    const weir__range *end = behind_block(range);
    uint64_t size = 0;
    for (const weir__range *each = range; each != end; each = each->next)
        size += each->size;
    *ret_size = size;
    return weir__block_is_large_for(range->owner, (size_t)size);
}

/* Bytes that were copied earlier, and had better be copied once more together with what comes behind them now than be a
 * block of their own each? Not if others in their block would then be left alone with it. */
static bool is_to_grow(const weir__range *ahead, const weir__range *range) {
    return range->owner->kind == WEIR__BLOCK_HEAP && range->size < JOIN_BYTES &&
           (ahead == NULL || ahead->owner != range->owner);
}

int weir__chain_tidy(weir__chain *chain) {
    place at = { .range = chain->queue.first };
    weir__range *ahead = NULL; /* of at.before */
    while (at.range != NULL) {
        uint64_t size = 0, each;
        for (weir__range *range = at.range; range != NULL && is_small(range, &each); size += each)
            range = behind_block(range);
        if (size > 0) {
            weir__range *before = at.before;
            weir__heap_block *block = NULL;
            size_t room = 0;
            if (before != NULL && (has_room(chain, before, size, &block) || is_to_grow(ahead, before))) {
                at = (place){ .before = ahead, .range = before };
                size += before->size;
                room = (size_t)size;
            }
            int r = join(chain, at, (size_t)size, room, &at.range);
            if (r < 0)
                return r;
        }
        for (const weir__range *end = behind_block(at.range); at.range != end; at.range = at.range->next) {
            ahead = at.before;
            at.before = at.range;
        }
    }
    return 0;
}

/* ---- finding ---------------------------------------------------------------------------------------- */

static bool lies_at(const weir__range *range, size_t skip, const uint8_t *bytes, size_t size) {
    for (; size > 0; range = range->next, skip = 0) {
        if (range == NULL)
            return false;
        size_t part = size < range->size - skip ? size : range->size - skip;
        if (memcmp(range->data + skip, bytes, part) != 0)
            return false;
        bytes += part;
        size -= part;
    }
    return true;
}

static int64_t search(const weir__chain *chain, uint64_t start, const uint8_t *bytes, size_t size) {
    place at = find_place(chain, start);
    for (start -= at.skip; at.range != NULL; start += at.range->size, at.range = at.range->next, at.skip = 0) {
        const weir__range *range = at.range;
        const uint8_t *inside = memmem(range->data + at.skip, range->size - at.skip, bytes, size);
        if (inside != NULL)
            return (int64_t)(start + (uint64_t)(inside - range->data));
        /* From here on it would not end in this range. */
        size_t over = size - 1 < range->size ? range->size - (size - 1) : 0;
        for (size_t i = over > at.skip ? over : at.skip; i < range->size; i++)
            if (lies_at(range, i, bytes, size))
                return (int64_t)(start + i);
    }
    return -EAGAIN;
}

int64_t weir__chain_find(weir__chain *chain, size_t offset, const void *bytes, size_t size) {
    uint64_t start = offset;
    if (offset > chain->queue.bytes)
        return -EAGAIN;
    bool is_known = size == chain->needle_size && memcmp(bytes, chain->needle, size) == 0 &&
                    offset >= chain->looked_from && offset <= chain->looked_to;
    if (is_known)
        start = chain->looked_to;
    int64_t found = search(chain, start, bytes, size);
    if (size > sizeof chain->needle)
        return found;
    if (!is_known) {
        memcpy(chain->needle, bytes, size);
        chain->needle_size = size;
        chain->looked_from = offset;
    }
    uint64_t end = chain->queue.bytes >= size ? chain->queue.bytes - size + 1 : 0; /* where it may start still */
    chain->looked_to = found >= 0 ? (uint64_t)found : weir__max_u64(start, end);
    return found;
}
