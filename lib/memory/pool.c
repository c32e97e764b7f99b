/* SPDX-License-Identifier: MIT */
#include "memory/pool_private.h"

#include "base/fork.h"

enum {
    MIN_BUFFER_BYTES = 4096,
    MAX_BUFFER_BYTES = 16 << 20,
    MAX_BUFFERS = 32768,   /* what a buffer ring can have */
    LEAST_FOR_RESERVE = 16 /* buffers in a budget that keeps a reserve by itself */
};

static weir_block closed_marker;
#define CLOSED (&closed_marker)

/* Once a buffer, not once a slice; others look at it, and change it when the loop is gone. */
static void count_add(_Atomic(uint32_t) *count, uint32_t change) {
    atomic_fetch_add_explicit(count, change, memory_order_relaxed);
}

static weir__buffer *to_buffer(const weir_block *block) {
    return WEIR__CONTAINER(block, weir__buffer, block);
}

static void set_state(weir_pool *pool, weir__buffer *buffer, enum weir__buffer_state state) {
    count_add(&pool->counts[buffer->state], UINT32_MAX);
    count_add(&pool->counts[state], 1);
    buffer->state = (uint8_t)state;
}

/* references = kernel + dispatch + owned, as far as one thread can see it. */
static bool is_balanced(const weir__buffer *buffer) {
    uint32_t kernel = buffer->state == POSTED || buffer->state == FILLING;
    uint32_t dispatch = buffer->is_dispatched;
    uint32_t shared = atomic_load_explicit(&buffer->block.shared, memory_order_relaxed);
    if (buffer->state == IDLE)
        return buffer->block.local == 0 && shared == 0;
    return buffer->block.local >= kernel + dispatch && shared >= (buffer->block.local > 0);
}

/* ---- life ------------------------------------------------------------------------------------------- */

int weir__pool_configure(const weir_pool_options *options, uint32_t mode_buffer_bytes, weir__pool_config *config) {
    uint64_t budget = options->budget_bytes, buffer = options->buffer_bytes, window = options->window_bytes;
    budget = budget > 0 ? budget : 64 << 20;
    buffer = buffer > 0 ? buffer : weir__max_u64(mode_buffer_bytes, config->page_bytes);
    window = window > 0 ? window : weir__max_u64(buffer, weir__min_u64(1 << 20, budget / 2));
    if (buffer < MIN_BUFFER_BYTES || buffer < config->page_bytes || buffer > MAX_BUFFER_BYTES ||
        (buffer & (buffer - 1)) != 0)
        return -EINVAL;
    /* A small pool has no memory to spare for that, unless it is said. */
    uint64_t reserve = options->reserve_bytes;
    reserve = reserve > 0 ? reserve : budget / buffer >= LEAST_FOR_RESERVE ? budget / 8 : 0;
    if (budget < buffer || reserve > budget - buffer || window < buffer || window > budget)
        return -EINVAL;
    config->reserve_bytes = reserve;
    config->budget_bytes = budget;
    config->buffer_bytes = (uint32_t)buffer;
    config->window_bytes = (uint32_t)weir__min_u64(window, UINT32_MAX);
    return 0;
}

void weir__pool_drop(weir_pool *pool) {
    if (atomic_fetch_sub_explicit(&pool->refs, 1, memory_order_acq_rel) != 1)
        return;
    const weir_allocator *allocator = pool->config.allocator;
    weir__free(allocator, pool->by_id, pool->max_buffers * sizeof *pool->by_id);
    weir__free(allocator, pool->free_ids, pool->max_buffers * sizeof *pool->free_ids);
    weir__free(allocator, pool->order, pool->max_buffers * sizeof *pool->order);
    void (*drop)(void *) = pool->config.drop;
    void *host = pool->config.host;
    weir__free(allocator, pool, sizeof *pool);
    drop(host);
}

int weir__pool_new(const weir__pool_config *config, weir_pool **ret_pool) {
    weir_pool *pool = weir__alloc_zeroed(config->allocator, sizeof *pool);
    if (pool == NULL)
        return -ENOMEM;
    uint64_t common = config->budget_bytes - config->reserve_bytes;
    uint32_t most = (uint32_t)weir__min_u64(common / config->buffer_bytes, MAX_BUFFERS), power = 1;
    while (power < most)
        power *= 2; /* rings have a power of two entries; so have our tables, to be indexed by position */
    pool->config = *config;
    pool->max_buffers = power;
    pool->by_id = weir__alloc_zeroed(config->allocator, power * sizeof *pool->by_id);
    pool->free_ids = weir__alloc(config->allocator, power * sizeof *pool->free_ids);
    pool->order = weir__alloc(config->allocator, power * sizeof *pool->order);
    if (pool->by_id == NULL || pool->free_ids == NULL || pool->order == NULL) {
        weir__free(config->allocator, pool->by_id, power * sizeof *pool->by_id);
        weir__free(config->allocator, pool->free_ids, power * sizeof *pool->free_ids);
        weir__free(config->allocator, pool->order, power * sizeof *pool->order);
        weir__free(config->allocator, pool, sizeof *pool);
        return -ENOMEM;
    }
    while (pool->free_id_count < power) {
        uint32_t id = power - 1 - pool->free_id_count;
        pool->free_ids[pool->free_id_count++] = (uint16_t)id;
    }
    atomic_init(&pool->refs, 1);
    weir__list_init(&pool->idle);
    weir__list_init(&pool->retiring);
    pool->window = (uint32_t)weir__max_u64(1, config->window_bytes / config->buffer_bytes);
    atomic_init(&pool->common_bytes, common);
    pool->block_share = common - weir__max_u64(common / 4, config->buffer_bytes);
    *ret_pool = pool;
    return 0;
}

uint32_t weir__pool_max_buffers(const weir_pool *pool) {
    return pool->max_buffers;
}

bool weir__pool_is_incremental(const weir_pool *pool) {
    return pool->config.incremental;
}

uint32_t weir__pool_buffer_bytes(const weir_pool *pool) {
    return pool->config.buffer_bytes;
}

static_assert(offsetof(weir_pool, config) == 0, "weir__pool_owner() relies on it");

uint32_t weir__pool_generation(const weir_pool *pool) {
    return pool->config.generation;
}

const weir_allocator *weir__pool_allocator(const weir_pool *pool) {
    return pool->config.allocator;
}

/* ---- owning buffers --------------------------------------------------------------------------------- */

static weir__buffer *buffer_new(weir_pool *pool) {
    const weir__pool_config *config = &pool->config;
    if (pool->free_id_count == 0 || !weir__pool_use(pool, config->buffer_bytes, weir__pool_common_bytes(pool)))
        return NULL;
    weir__buffer *buffer = weir__alloc_zeroed(config->allocator, sizeof *buffer);
    uint8_t *data = buffer != NULL ? config->map(config->buffer_bytes) : NULL;
    if (data == NULL) {
        weir__free(config->allocator, buffer, sizeof *buffer);
        atomic_fetch_sub(&pool->used, config->buffer_bytes);
        return NULL;
    }
    WEIR__POISON(data, config->buffer_bytes);
    buffer->block = (weir_block){ .kind = WEIR__BLOCK_BUFFER, .pool = pool, .capacity = config->buffer_bytes };
    buffer->data = data;
    buffer->state = IDLE;
    weir__list_init(&buffer->link);
    buffer->id = pool->free_ids[--pool->free_id_count];
    pool->by_id[buffer->id] = buffer;
    count_add(&pool->counts[IDLE], 1);
    atomic_fetch_add_explicit(&pool->refs, 1, memory_order_relaxed);
    return buffer;
}

/* Free the memory; the caller has taken it out of the tables and counts. Any thread. */
static void buffer_free(weir_pool *pool, weir__buffer *buffer) {
    const weir__pool_config *config = &pool->config;
    WEIR__UNPOISON(buffer->data, config->buffer_bytes);
    config->unmap(buffer->data, config->buffer_bytes);
    weir__free(config->allocator, buffer, sizeof *buffer);
    atomic_fetch_sub(&pool->used, config->buffer_bytes);
    weir__pool_drop(pool);
}

static void idle_free(weir_pool *pool, weir__buffer *buffer) {
    weir__list_remove(&buffer->link);
    pool->by_id[buffer->id] = NULL;
    pool->free_ids[pool->free_id_count++] = buffer->id;
    count_add(&pool->counts[IDLE], UINT32_MAX);
    buffer_free(pool, buffer);
}

static void become_idle(weir_pool *pool, weir__buffer *buffer) {
    WEIR__ASSERT(buffer->state == RETIRED);
    atomic_fetch_sub_explicit(&pool->pinned_received, buffer->offset, memory_order_relaxed);
    buffer->offset = 0;
    WEIR__POISON(buffer->data, pool->config.buffer_bytes);
    set_state(pool, buffer, IDLE);
    WEIR__ASSERT(is_balanced(buffer));
    weir__list_prepend(&pool->idle, &buffer->link);
}

/* ---- the kernel's side ------------------------------------------------------------------------------ */

uint32_t weir__pool_available(const weir_pool *pool) {
    return weir__pool_count(pool, POSTED) + weir__pool_count(pool, FILLING);
}

bool weir__pool_has_unused(const weir_pool *pool) {
    if (weir__pool_count(pool, IDLE) + weir__pool_count(pool, POSTED) > 0)
        return true;
    if (weir__pool_count(pool, FILLING) == 0)
        return false;
    const weir__buffer *buffer = pool->by_id[pool->order[pool->order_head & (pool->max_buffers - 1)]];
    return buffer->block.local == 1 && atomic_load_explicit(&buffer->block.shared, memory_order_relaxed) == 1;
}

bool weir__pool_publish(weir_pool *pool, weir__pool_buffer *ret_buffer) {
    if (weir__pool_available(pool) >= pool->window)
        return false;
    weir__buffer *buffer;
    if (!weir__list_is_empty(&pool->idle)) {
        buffer = WEIR__CONTAINER(pool->idle.next, weir__buffer, link);
        weir__list_remove(&buffer->link);
        atomic_store_explicit(&pool->recycled, atomic_load_explicit(&pool->recycled, memory_order_relaxed) + 1,
                              memory_order_relaxed);
        if (weir__pool_count(pool, IDLE) - 1 < pool->idle_low)
            pool->idle_low = weir__pool_count(pool, IDLE) - 1;
    } else if ((buffer = buffer_new(pool)) == NULL) {
        return false;
    } else {
        pool->idle_low = 0;
    }
    set_state(pool, buffer, POSTED);
    weir__block_ref_local(&buffer->block); /* the kernel's */
    WEIR__ASSERT(is_balanced(buffer));
    pool->order[pool->order_tail++ & (pool->max_buffers - 1)] = buffer->id;
    *ret_buffer = (weir__pool_buffer){ .data = buffer->data, .size = pool->config.buffer_bytes, .id = buffer->id };
    return true;
}

/* The kernel's reference becomes the dispatch's. */
static void retire(weir_pool *pool, weir__buffer *buffer) {
    set_state(pool, buffer, RETIRED);
    atomic_fetch_add_explicit(&pool->pinned_received, buffer->offset, memory_order_relaxed);
    buffer->is_dispatched = true;
    weir__list_append(&pool->retiring, &buffer->link);
}

int weir__pool_commit(weir_pool *pool, uint32_t id, size_t bytes, bool more, weir_slice *ret_slice) {
    weir__buffer *buffer = id < pool->max_buffers ? pool->by_id[id] : NULL;
    if (buffer == NULL || (buffer->state != POSTED && buffer->state != FILLING))
        return -EILSEQ;
    if (bytes > pool->config.buffer_bytes - buffer->offset)
        return -EILSEQ;
    if (pool->config.incremental) {
        /* The kernel takes buffers in the order of the ring, and goes on to the next one when one is full. */
        if (pool->order[pool->order_head & (pool->max_buffers - 1)] != id)
            return -EILSEQ;
        if (more && bytes == pool->config.buffer_bytes - buffer->offset)
            return -EILSEQ;
    } else if (more) {
        return -EILSEQ;
    }
    uint8_t *data = buffer->data + buffer->offset;
    WEIR__UNPOISON(data, bytes);
    buffer->offset += (uint32_t)bytes;
    if (!more) {
        pool->order_head++;
        retire(pool, buffer);
    } else if (buffer->state == POSTED) {
        set_state(pool, buffer, FILLING);
    }
    WEIR__ASSERT(is_balanced(buffer));
    *ret_slice = (weir_slice){ .data = data, .size = bytes, .owner = &buffer->block };
    return 0;
}

bool weir__pool_next_byte(const weir_pool *pool, const uint8_t **ret_data, uint32_t *ret_position) {
    if (pool->order_head == pool->order_tail)
        return false;
    const weir__buffer *buffer = pool->by_id[pool->order[pool->order_head & (pool->max_buffers - 1)]];
    *ret_data = buffer->data + buffer->offset;
    *ret_position = pool->order_head;
    return true;
}

void weir__pool_end_dispatch(weir_pool *pool) {
    weir__link *link;
    while ((link = weir__list_take_first(&pool->retiring)) != NULL) {
        weir__buffer *buffer = WEIR__CONTAINER(link, weir__buffer, link);
        buffer->is_dispatched = false;
        weir__block_unref_local(&buffer->block);
    }
    weir__pool_collect(pool);
    if (WEIR__UNLIKELY(atomic_load_explicit(&pool->is_wanted, memory_order_relaxed) != 0)) {
        atomic_store_explicit(&pool->is_wanted, 0, memory_order_relaxed);
        weir__pool_free_idle(pool);
    }
}

void weir__pool_free_idle(weir_pool *pool) {
    while (!weir__list_is_empty(&pool->idle))
        idle_free(pool, WEIR__CONTAINER(pool->idle.previous, weir__buffer, link));
    pool->idle_low = 0;
}

void weir__pool_starve(weir_pool *pool) {
    atomic_store_explicit(&pool->starved, atomic_load_explicit(&pool->starved, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

void weir__pool_set_parked(weir_pool *pool, uint32_t streams) {
    atomic_store(&pool->parked, streams);
}

void weir__pool_set_parked_for_blocks(weir_pool *pool, uint32_t streams) {
    pool->parked_for_blocks = streams;
}

void weir__pool_trim(weir_pool *pool) {
    /* What lay idle for the whole time was not needed; half of it goes, the coldest first. */
    for (uint32_t spare = (pool->idle_low + 1) / 2; spare > 0 && !weir__list_is_empty(&pool->idle); spare--)
        idle_free(pool, WEIR__CONTAINER(pool->idle.previous, weir__buffer, link));
    pool->idle_low = weir__pool_count(pool, IDLE);
}

/* ---- coming back ------------------------------------------------------------------------------------ */

void weir__pool_return(weir_block *block) {
    weir_pool *pool = block->pool;
    weir_block *top = atomic_load(&pool->returned);
    /* The buffer holds the pool, but once it is on the stack the loop may take it, close, and free both. */
    atomic_fetch_add_explicit(&pool->refs, 1, memory_order_relaxed);
    do {
        if (top == CLOSED) {
            atomic_fetch_sub_explicit(&pool->counts[RETIRED], 1, memory_order_relaxed);
            atomic_fetch_sub_explicit(&pool->pinned_received, to_buffer(block)->offset, memory_order_relaxed);
            buffer_free(pool, to_buffer(block));
            weir__pool_drop(pool);
            return;
        }
        block->next = top;
    } while (!atomic_compare_exchange_weak(&pool->returned, &top, block));
    if (atomic_load(&pool->parked) > 0)
        pool->config.wake(pool->config.host);
    weir__pool_drop(pool);
}

static void collect(weir_pool *pool, weir_block *block) {
    while (block != NULL) {
        weir_block *next = block->next;
        become_idle(pool, to_buffer(block));
        block = next;
    }
}

bool weir__pool_has_returned(const weir_pool *pool) {
    return atomic_load(&pool->returned) != NULL;
}

void weir__pool_collect(weir_pool *pool) {
    if (weir__pool_has_returned(pool))
        collect(pool, atomic_exchange(&pool->returned, NULL));
}

void weir__pool_take_back(weir_pool *pool) {
    for (uint32_t id = 0; id < pool->max_buffers; id++) {
        weir__buffer *buffer = pool->by_id[id];
        if (buffer != NULL && (buffer->state == POSTED || buffer->state == FILLING))
            retire(pool, buffer);
    }
    pool->order_head = pool->order_tail = 0;
    weir__pool_end_dispatch(pool);
}

void weir__pool_withdraw(weir_pool *pool) {
    weir__pool_take_back(pool);
    pool->config.incremental = false;
}

static void close_returns(weir_pool *pool) {
    atomic_store(&pool->parked, 0);
    weir__pool_collect(pool);
    collect(pool, atomic_exchange(&pool->returned, CLOSED));
    weir__pool_free_idle(pool);
    weir__pool_drop(pool);
}

void weir__pool_close(weir_pool *pool) {
    weir__pool_withdraw(pool);
    close_returns(pool);
}

void weir__pool_abandon(weir_pool *pool) {
    weir__pool_end_dispatch(pool); /* posted buffers keep the kernel's reference, and so the pool, for ever */
    close_returns(pool);
}

/* ---- the public side -------------------------------------------------------------------------------- */

WEIR_API weir_pool *weir_pool_ref(weir_pool *pool) {
    if (pool != NULL && !weir__fork_is_child(pool->config.generation))
        atomic_fetch_add_explicit(&pool->refs, 1, memory_order_relaxed);
    return pool;
}

WEIR_API weir_pool *weir_pool_unref(weir_pool *pool) {
    if (pool != NULL && !weir__fork_is_child(pool->config.generation))
        weir__pool_drop(pool);
    return NULL;
}

WEIR_API int weir_pool_get_stats(const weir_pool *pool, weir_pool_stats *stats) {
    size_t size = stats != NULL ? stats->size : 0;
    if (pool == NULL || size < sizeof *stats)
        return WEIR__MISTAKE(-EINVAL, "no pool, no statistics, or a wrong size");
    if (weir__fork_is_child(pool->config.generation))
        return -ECHILD;
    memset(stats, 0, size);
    stats->size = size;
    stats->budget_bytes = pool->config.budget_bytes;
    stats->used_bytes = atomic_load(&pool->used);
    stats->peak_bytes = atomic_load(&pool->peak);
    stats->block_bytes = atomic_load(&pool->blocks);
    stats->reserve_bytes = pool->config.reserve_bytes;
    stats->private_bytes = atomic_load(&pool->privates);
    stats->level = atomic_load(&pool->level);
    stats->buffer_bytes = pool->config.buffer_bytes;
    stats->window_buffers = pool->window;
    stats->buffers_idle = weir__pool_count(pool, IDLE);
    stats->buffers_posted = weir__pool_count(pool, POSTED);
    stats->buffers_filling = weir__pool_count(pool, FILLING);
    stats->buffers_retired = weir__pool_count(pool, RETIRED);
    stats->pinned_bytes = (uint64_t)stats->buffers_retired * pool->config.buffer_bytes;
    stats->pinned_received_bytes = atomic_load(&pool->pinned_received);
    stats->parked_streams = atomic_load(&pool->parked);
    stats->starved = atomic_load(&pool->starved);
    stats->recycled = atomic_load(&pool->recycled);
    return 0;
}

bool weir__pool_is_consistent(const weir_pool *pool) {
    uint32_t counts[STATES] = { 0 }, owned = 0;
    uint64_t received = 0;
    for (uint32_t id = 0; id < pool->max_buffers; id++) {
        const weir__buffer *buffer = pool->by_id[id];
        if (buffer == NULL)
            continue;
        owned++;
        counts[buffer->state]++;
        received += buffer->state == RETIRED ? buffer->offset : 0;
        if (buffer->id != id || !is_balanced(buffer) || buffer->offset > pool->config.buffer_bytes)
            return false;
    }
    for (enum weir__buffer_state state = IDLE; state < STATES; state++)
        if (counts[state] != weir__pool_count(pool, state))
            return false;
    uint64_t used = atomic_load(&pool->used), blocks = atomic_load(&pool->blocks);
    return owned + pool->free_id_count == pool->max_buffers && received == atomic_load(&pool->pinned_received) &&
           used == (uint64_t)owned * pool->config.buffer_bytes + blocks + atomic_load(&pool->privates) &&
           used <= pool->config.budget_bytes && blocks <= pool->block_share;
}
