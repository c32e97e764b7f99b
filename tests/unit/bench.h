/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_UNIT_BENCH_H
#define WEIR_TESTS_UNIT_BENCH_H

/* A pool alone on a bench, and hands in the place of the kernel: they take its buffers in the order of the ring
 * and write into them. After each step the pool's books must balance. */

#include "memory/block.h"
#include "memory/pool.h"
#include "scripted/scripted.h"
#include "support/support.h"

enum { BUFFER = 4096, BENCH_IDS = 64 };

typedef struct bench {
    test_memory memory;
    weir_pool *pool;
    int owner; /* its address is the loop's key */
    bool is_incremental;
    _Atomic(unsigned) wakes, drops;
    weir__pool_buffer by_id[BENCH_IDS];
    uint32_t offset[BENCH_IDS];
    uint16_t ring[1 << 16]; /* ids as published; the kernel's head */
    uint16_t head, tail;
} bench;

static inline void bench_wake(void *host) {
    atomic_fetch_add(&((bench *)host)->wakes, 1);
}

static inline void bench_drop(void *host) {
    atomic_fetch_add(&((bench *)host)->drops, 1);
}

static inline weir__pool_config bench_config(bench *b, bool is_incremental, unsigned budget, unsigned window) {
    return (weir__pool_config){
        .allocator = &b->memory.allocator,
        .owner = &b->owner,
        .generation = weir__fork_generation(),
        .incremental = is_incremental,
        .budget_bytes = (uint64_t)budget * BUFFER,
        .buffer_bytes = BUFFER,
        .window_bytes = window * BUFFER,
        .page_bytes = weir__sys_page_bytes(),
        .map = weir__sys_map_private,
        .unmap = weir__sys_unmap,
        .wake = bench_wake,
        .drop = bench_drop,
        .host = b,
    };
}

static inline void bench_check(const bench *b) {
    assert_true(weir__pool_is_consistent(b->pool));
}

/* A pool of at most @budget buffers, @window of them posted at first. */
static inline void bench_open(bench *b, bool is_incremental, unsigned budget, unsigned window) {
    static bool is_installed;
    if (!is_installed)
        is_installed = weir__fork_install(weir__sys_wiped_page());
    memset(b, 0, sizeof *b);
    test_memory_init(&b->memory);
    b->is_incremental = is_incremental;
    weir__pool_config config = bench_config(b, is_incremental, budget, window);
    test_ok(weir__pool_new(&config, &b->pool));
    bench_check(b);
}

/* Nothing is left, and who made the pool has been told so once. */
static inline void bench_is_gone(bench *b) {
    assert_int_equal(atomic_load(&b->memory.live_blocks), 0);
    assert_int_equal(atomic_load(&b->memory.live_bytes), 0);
    assert_int_equal(script_mapped(), 0);
    assert_int_equal(atomic_load(&b->drops), 1);
}

static inline void bench_close(bench *b) {
    weir__pool_close(b->pool);
    bench_is_gone(b);
}

/* Publish all that the pool wants published. Return: how many. */
static inline unsigned bench_publish(bench *b) {
    weir__pool_buffer buffer;
    unsigned count = 0;
    while (weir__pool_publish(b->pool, &buffer)) {
        assert_true(buffer.id < BENCH_IDS);
        assert_int_equal(buffer.size, BUFFER);
        b->by_id[buffer.id] = buffer;
        b->offset[buffer.id] = 0;
        b->ring[b->tail++] = buffer.id;
        bench_check(b);
        count++;
    }
    return count;
}

/* The buffer that the kernel writes to next. */
static inline uint16_t bench_head(const bench *b) {
    assert_true(b->head != b->tail);
    return b->ring[b->head];
}

static inline uint32_t bench_room(const bench *b) {
    return b->head == b->tail ? 0 : BUFFER - b->offset[bench_head(b)];
}

/* What the kernel does with bytes that arrive: into the head, and a completion. @retires early, with room left. */
static inline weir_slice bench_put(bench *b, const void *bytes, size_t size, bool retires) {
    uint16_t id = bench_head(b);
    uint8_t *target = (uint8_t *)b->by_id[id].data + b->offset[id];
    assert_true(size <= bench_room(b));
    script_write(target, bytes, size);
    b->offset[id] += (uint32_t)size;
    bool more = !retires && b->is_incremental && b->offset[id] < BUFFER;
    if (!more)
        b->head++;
    weir_slice slice = { 0 };
    test_ok(weir__pool_commit(b->pool, id, size, more, &slice));
    bench_check(b);
    assert_ptr_equal(slice.data, target);
    assert_int_equal(slice.size, size);
    return slice;
}

/* Likewise with any bytes. */
static inline weir_slice bench_arrive(bench *b, size_t size) {
    static const uint8_t bytes[BUFFER] = "any";
    return bench_put(b, bytes, size, false);
}

static inline void bench_end_dispatch(bench *b) {
    weir__pool_end_dispatch(b->pool);
    bench_check(b);
}

static inline weir_pool_stats bench_stats(const bench *b) {
    weir_pool_stats stats = { .size = sizeof stats };
    test_ok(weir_pool_get_stats(b->pool, &stats));
    return stats;
}

static inline void bench_expect(const bench *b, unsigned idle, unsigned posted, unsigned filling,
                                unsigned retired) {
    weir_pool_stats stats = bench_stats(b);
    assert_int_equal(stats.buffers_idle, idle);
    assert_int_equal(stats.buffers_posted, posted);
    assert_int_equal(stats.buffers_filling, filling);
    assert_int_equal(stats.buffers_retired, retired);
}

static inline int bench_setup(void **state) {
    (void)state;
    script_begin();
    return 0;
}

static inline int bench_teardown(void **state) {
    (void)state;
    script_end();
    return 0;
}

#define bench_test(function) cmocka_unit_test_setup_teardown(function, bench_setup, bench_teardown)

#endif
