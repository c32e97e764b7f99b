/* SPDX-License-Identifier: MIT */
#include "memory/pool_private.h"

/* What all memory of a loop may take together, what each kind of it may have of that, and how scarce it is. */

static bool add_within(_Atomic(uint64_t) *sum, uint64_t bytes, uint64_t limit, uint64_t *ret_sum) {
    uint64_t now = atomic_load_explicit(sum, memory_order_relaxed);
    do {
        if (bytes > limit || now > limit - bytes)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(sum, &now, now + bytes, memory_order_relaxed,
                                                    memory_order_relaxed));
    *ret_sum = now + bytes;
    return true;
}

bool weir__pool_use(weir_pool *pool, uint64_t bytes, uint64_t limit) {
    uint64_t sum;
    if (!add_within(&pool->used, bytes, limit, &sum))
        return false;
    uint64_t peak = atomic_load_explicit(&pool->peak, memory_order_relaxed);
    while (peak < sum && !atomic_compare_exchange_weak_explicit(&pool->peak, &peak, sum, memory_order_relaxed,
                                                                memory_order_relaxed))
        ;
    return true;
}

bool weir__pool_charge(weir_pool *pool, uint64_t bytes) {
    uint64_t sum;
    if (bytes > 0 && !add_within(&pool->blocks, bytes, pool->block_share, &sum))
        return false;
    if (bytes > 0 && !weir__pool_use(pool, bytes, weir__pool_common_bytes(pool))) {
        atomic_fetch_sub(&pool->blocks, bytes);
        atomic_store_explicit(&pool->is_wanted, 1, memory_order_relaxed);
        return false;
    }
    atomic_fetch_add_explicit(&pool->refs, 1, memory_order_relaxed);
    return true;
}

static void give_back(weir_pool *pool, uint64_t bytes) {
    atomic_fetch_sub(&pool->used, bytes); /* sequentially consistent: before the look at who waits */
    if (bytes > 0 && atomic_load(&pool->parked) > 0)
        pool->config.wake(pool->config.host);
    weir__pool_drop(pool);
}

void weir__pool_uncharge(weir_pool *pool, uint64_t bytes) {
    atomic_fetch_sub(&pool->blocks, bytes);
    give_back(pool, bytes);
}

bool weir__pool_charge_private(weir_pool *pool, uint64_t bytes) {
    if (!weir__pool_use(pool, bytes, pool->config.budget_bytes))
        return false;
    atomic_fetch_add_explicit(&pool->privates, bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&pool->refs, 1, memory_order_relaxed);
    return true;
}

void weir__pool_uncharge_private(weir_pool *pool, uint64_t bytes) {
    atomic_fetch_sub(&pool->privates, bytes);
    give_back(pool, bytes);
}

bool weir__pool_has_private(const weir_pool *pool, uint64_t bytes) {
    uint64_t used = atomic_load_explicit(&pool->used, memory_order_relaxed);
    return bytes <= pool->config.budget_bytes - used;
}

bool weir__pool_is_crowded(const weir_pool *pool) {
    uint64_t privates = atomic_load_explicit(&pool->privates, memory_order_relaxed);
    uint64_t used = atomic_load_explicit(&pool->used, memory_order_relaxed);
    return used > pool->config.budget_bytes - WEIR__PRIVATE_BYTES + privates && weir__pool_has_unused(pool);
}

void weir__pool_make_room(weir_pool *pool) {
    uint64_t most = pool->config.budget_bytes - WEIR__PRIVATE_BYTES;
    if (weir__pool_common_bytes(pool) > most)
        atomic_store_explicit(&pool->common_bytes, most, memory_order_relaxed);
    if (weir__pool_is_crowded(pool))
        weir__pool_free_idle(pool);
}

bool weir__pool_is_short(const weir_pool *pool) {
    uint64_t budget = pool->config.budget_bytes;
    return atomic_load_explicit(&pool->used, memory_order_relaxed) > budget - budget / 4;
}

void weir__pool_add_copied(weir_pool *pool, uint64_t bytes) {
    atomic_fetch_add_explicit(&pool->copied, bytes, memory_order_relaxed);
}

uint64_t weir__pool_copied(const weir_pool *pool) {
    return atomic_load_explicit(&pool->copied, memory_order_relaxed);
}

/* ---- pressure --------------------------------------------------------------------------------------- */

/*
 * Levels rise at once. High falls again well below where it rose; parked lasts as long as there is no buffer, although the
 * reserve helps one stream after the other and none may be waiting at the moment.
 */
uint32_t weir__pool_look_at_pressure(weir_pool *pool) {
    uint64_t budget = pool->config.budget_bytes, used = atomic_load_explicit(&pool->used, memory_order_relaxed);
    uint32_t before = atomic_load_explicit(&pool->level, memory_order_relaxed), level;
    bool may_grow = pool->free_id_count > 0 && used + pool->config.buffer_bytes <= weir__pool_common_bytes(pool);
    bool is_dry = weir__pool_available(pool) + weir__pool_count(pool, IDLE) == 0 && !may_grow &&
                  !weir__pool_has_returned(pool);
    bool is_parked = atomic_load_explicit(&pool->parked, memory_order_relaxed) > 0;
    bool is_waiting = (is_dry && is_parked) || pool->parked_for_blocks > 0;
    if (is_waiting && !weir__pool_has_private(pool, WEIR__PRIVATE_BYTES) && !weir__pool_is_crowded(pool))
        level = WEIR_PRESSURE_STUCK;
    else if (is_dry && (is_parked || before >= WEIR_PRESSURE_PARKED))
        level = WEIR_PRESSURE_PARKED;
    else if (weir__pool_is_short(pool) || (before > WEIR_PRESSURE_NONE && used > budget - budget / 8 * 3))
        level = WEIR_PRESSURE_HIGH;
    else
        level = WEIR_PRESSURE_NONE;
    if (level != before)
        atomic_store_explicit(&pool->level, level, memory_order_relaxed);
    return level;
}
