/* SPDX-License-Identifier: MIT */
/* The part of the budget that is for private blocks alone, and how scarce memory is said to be. */
#include "unit/bench.h"

static bench b;

/* A pool of @budget buffers, of which @reserve are kept, and @window posted. */
static void open_reserved(unsigned budget, unsigned reserve, unsigned window) {
    bench_open(&b, true, budget, window);
    weir__pool_config config = bench_config(&b, true, budget, window);
    config.reserve_bytes = (uint64_t)reserve * BUFFER;
    weir__pool_close(b.pool);
    atomic_store(&b.drops, 0);
    test_ok(weir__pool_new(&config, &b.pool));
    bench_check(&b);
}

static unsigned hold_all(weir_slice *held) {
    unsigned count = 0;
    while (b.head != b.tail) {
        weir_slice slice = bench_arrive(&b, bench_room(&b));
        weir_slice_ref(&slice, &held[count++]);
    }
    bench_end_dispatch(&b);
    return count;
}

static void drop(weir_slice *held) {
    weir_slice_unref(held);
    weir__pool_collect(b.pool);
    bench_check(&b);
}

static void give_back_private(weir__heap_block *block) {
    weir__block_unref_shared(&block->block);
    bench_check(&b);
}

/* ---- the reserve ---------------------------------------------------------------------------------------- */

static void only_private_blocks_have_the_reserve(void **state) {
    (void)state;
    weir__heap_block *blocks[3];
    weir__pool_buffer buffer;
    uint8_t *data;
    weir_slice slice;
    open_reserved(8, 2, 8);
    assert_int_equal(bench_publish(&b), 6); /* the window is all of it, and the reserve is not in it */
    assert_false(weir__pool_publish(b.pool, &buffer));
    assert_int_equal(weir_slice_new(b.pool, 1, &data, &slice), -ENOBUFS);
    assert_false(weir__pool_charge(b.pool, 1));
    for (int i = 0; i < 2; i++) {
        assert_true(weir__pool_has_private(b.pool, WEIR__PRIVATE_BYTES));
        test_ok(weir__private_block_new(b.pool, &blocks[i]));
        bench_check(&b);
    }
    assert_false(weir__pool_has_private(b.pool, WEIR__PRIVATE_BYTES));
    assert_false(weir__pool_has_private(b.pool, 1));
    assert_int_equal(weir__private_block_new(b.pool, &blocks[2]), -ENOBUFS);
    weir_pool_stats stats = bench_stats(&b);
    assert_int_equal(stats.private_bytes, 2 * WEIR__PRIVATE_BYTES);
    assert_int_equal(stats.block_bytes, 0);
    assert_int_equal(stats.reserve_bytes, 2 * BUFFER);
    assert_int_equal(stats.used_bytes, stats.budget_bytes);
    assert_int_equal(stats.peak_bytes, stats.budget_bytes);
    give_back_private(blocks[0]);
    assert_int_equal(bench_stats(&b).private_bytes, WEIR__PRIVATE_BYTES);
    test_ok(weir__private_block_new(b.pool, &blocks[0]));
    give_back_private(blocks[0]);
    give_back_private(blocks[1]);
    assert_int_equal(bench_stats(&b).private_bytes, 0);
    assert_int_equal(bench_stats(&b).used_bytes, 6 * BUFFER);
    bench_close(&b);
}

static void private_blocks_may_be_outside_of_the_reserve(void **state) {
    (void)state;
    weir__heap_block *blocks[8];
    open_reserved(8, 2, 8);
    for (int i = 0; i < 8; i++)
        test_ok(weir__private_block_new(b.pool, &blocks[i]));
    assert_int_equal(bench_publish(&b), 0);
    for (int i = 0; i < 2; i++)
        give_back_private(blocks[i]);
    assert_int_equal(bench_publish(&b), 0); /* what is left free is the reserve */
    for (int i = 2; i < 8; i++)
        give_back_private(blocks[i]);
    assert_int_equal(bench_publish(&b), 6);
    bench_close(&b);
}

static void a_private_block_without_memory_gives_its_charge_back(void **state) {
    (void)state;
    weir__heap_block *block;
    open_reserved(8, 2, 2);
    atomic_store(&b.memory.fail_at, atomic_load(&b.memory.allocations) + 1);
    assert_int_equal(weir__private_block_new(b.pool, &block), -ENOMEM);
    bench_check(&b);
    assert_int_equal(bench_stats(&b).used_bytes, 0);
    assert_int_equal(bench_stats(&b).private_bytes, 0);
    bench_close(&b);
}

static void count_release(const void *data, size_t size, void *userdata) {
    (void)data, (void)size;
    ++*(unsigned *)userdata;
}

/*
 * Memory that is the application's takes nothing of the budget, but holds the pool. While the reserve was in use the budget
 * was asked all the same and refused, which nobody looked at: so the pool was not held, and freed under its last slice.
 */
static void wrapped_memory_holds_the_pool_while_the_reserve_is_in_use(void **state) {
    (void)state;
    weir__heap_block *block;
    weir_slice wrapped;
    unsigned releases = 0;
    open_reserved(8, 2, 8);
    assert_int_equal(bench_publish(&b), 6);
    test_ok(weir__private_block_new(b.pool, &block));
    assert_true(bench_stats(&b).used_bytes > 6 * BUFFER);
    test_ok(weir_slice_wrap(b.pool, "lent", 4, count_release, &releases, &wrapped));
    give_back_private(block);
    weir__pool_close(b.pool);
    assert_int_equal(atomic_load(&b.drops), 0);
    weir_slice_unref(&wrapped);
    assert_int_equal(releases, 1);
    bench_is_gone(&b);
}

static void a_private_block_that_comes_back_wakes_only_while_streams_are_parked(void **state) {
    (void)state;
    weir__heap_block *block;
    open_reserved(8, 2, 2);
    test_ok(weir__private_block_new(b.pool, &block));
    give_back_private(block);
    assert_int_equal(atomic_load(&b.wakes), 0);
    test_ok(weir__private_block_new(b.pool, &block));
    weir__pool_set_parked(b.pool, 1);
    give_back_private(block);
    assert_int_equal(atomic_load(&b.wakes), 1);
    bench_close(&b);
}

/* ---- the levels ----------------------------------------------------------------------------------------- */

static void level_is(uint32_t level) {
    assert_int_equal(weir__pool_look_at_pressure(b.pool), level);
    assert_int_equal(bench_stats(&b).level, level);
}

static void pressure_is_high_from_three_quarters_on_until_well_below(void **state) {
    (void)state;
    open_reserved(16, 2, 2); /* three quarters are 12, five eighths 10 */
    assert_int_equal(bench_publish(&b), 2);
    level_is(WEIR_PRESSURE_NONE);
    assert_true(weir__pool_charge(b.pool, 8 * BUFFER));
    assert_true(weir__pool_charge(b.pool, 2 * BUFFER - 1));
    assert_true(weir__pool_charge(b.pool, 1));
    level_is(WEIR_PRESSURE_NONE); /* exactly */
    assert_true(weir__pool_charge_private(b.pool, 1));
    level_is(WEIR_PRESSURE_HIGH);
    weir__pool_uncharge_private(b.pool, 1);
    level_is(WEIR_PRESSURE_HIGH);
    weir__pool_uncharge(b.pool, 2 * BUFFER - 1);
    level_is(WEIR_PRESSURE_HIGH); /* a byte above five eighths */
    weir__pool_uncharge(b.pool, 1);
    level_is(WEIR_PRESSURE_NONE);
    assert_true(weir__pool_charge(b.pool, 1));
    level_is(WEIR_PRESSURE_NONE); /* up again it is three quarters that count */
    weir__pool_uncharge(b.pool, 1);
    weir__pool_uncharge(b.pool, 8 * BUFFER);
    bench_close(&b);
}

static void pressure_is_parked_and_stuck_when_streams_wait(void **state) {
    (void)state;
    weir_slice held[8];
    weir__heap_block *blocks[2];
    open_reserved(8, 2, 8);
    bench_publish(&b);
    assert_int_equal(hold_all(held), 6);
    level_is(WEIR_PRESSURE_NONE); /* exactly three quarters, and nobody waits */
    weir__pool_set_parked(b.pool, 1);
    level_is(WEIR_PRESSURE_PARKED);
    test_ok(weir__private_block_new(b.pool, &blocks[0]));
    weir__pool_set_parked(b.pool, 0);
    level_is(WEIR_PRESSURE_PARKED); /* the reserve helps one after the other: that is no end of it */
    weir__pool_set_parked(b.pool, 1);
    test_ok(weir__private_block_new(b.pool, &blocks[1]));
    level_is(WEIR_PRESSURE_STUCK);
    weir__pool_set_parked(b.pool, 0);
    level_is(WEIR_PRESSURE_PARKED);
    weir__pool_set_parked(b.pool, 1);
    level_is(WEIR_PRESSURE_STUCK);
    give_back_private(blocks[1]);
    level_is(WEIR_PRESSURE_PARKED);
    weir_slice_unref(&held[0]); /* not taken in yet, but it is there */
    level_is(WEIR_PRESSURE_HIGH);
    weir__pool_collect(b.pool);
    level_is(WEIR_PRESSURE_HIGH);
    weir__pool_set_parked(b.pool, 0);
    give_back_private(blocks[0]);
    for (int i = 1; i < 6; i++)
        drop(&held[i]);
    weir__pool_free_idle(b.pool);
    level_is(WEIR_PRESSURE_NONE);
    bench_close(&b);
}

/* ---- the equation --------------------------------------------------------------------------------------- */

enum { HELD = 64 };

static void whatever_happens_the_sum_is_true_and_within_the_budget(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        uint64_t random = seed;
        unsigned budget = 4 + (unsigned)(test_random(&random) % 28),
                 reserve = (unsigned)(test_random(&random) % 4);
        static weir_slice slices[HELD];
        static weir__heap_block *privates[HELD];
        unsigned slice_count = 0, private_count = 0;
        open_reserved(budget, reserve, 1 + budget / 2);
        for (int step = 0; step < 400; step++) {
            uint64_t size = 1 + test_random(&random) % 6000;
            uint8_t *data;
            switch (test_random(&random) % 8) {
            case 0:
                bench_publish(&b);
                break;
            case 1:
                if (bench_room(&b) > 0 && slice_count < HELD) {
                    weir_slice slice = bench_arrive(&b, size < bench_room(&b) ? size : bench_room(&b));
                    weir_slice_ref(&slice, &slices[slice_count++]);
                }
                break;
            case 2:
                bench_end_dispatch(&b);
                break;
            case 3:
                if (slice_count < HELD && weir_slice_new(b.pool, size, &data, &slices[slice_count]) == 0)
                    slice_count++;
                break;
            case 4:
            case 5:
                if (private_count < HELD && weir__private_block_new(b.pool, &privates[private_count]) == 0)
                    private_count++;
                break;
            case 6:
                if (slice_count > 0)
                    weir_slice_unref(&slices[--slice_count]);
                break;
            default:
                if (private_count > 0)
                    weir__block_unref_shared(&privates[--private_count]->block);
                break;
            }
            bench_check(&b);
            weir_pool_stats s = bench_stats(&b);
            unsigned buffers = s.buffers_idle + s.buffers_posted + s.buffers_filling + s.buffers_retired;
            assert_int_equal(s.private_bytes, (uint64_t)private_count * WEIR__PRIVATE_BYTES);
            assert_int_equal(s.used_bytes, (uint64_t)buffers * BUFFER + s.block_bytes + s.private_bytes);
            assert_true(s.used_bytes <= s.budget_bytes && s.used_bytes <= s.peak_bytes);
            assert_true(s.used_bytes - s.private_bytes <= s.budget_bytes - s.reserve_bytes);
        }
        while (slice_count > 0)
            weir_slice_unref(&slices[--slice_count]);
        while (private_count > 0)
            weir__block_unref_shared(&privates[--private_count]->block);
        bench_close(&b);
    }
}

/* ---- options -------------------------------------------------------------------------------------------- */

static int configure(uint64_t budget, uint64_t reserve, weir__pool_config *config) {
    weir_pool_options options = {
        .size = sizeof options, .budget_bytes = budget, .reserve_bytes = reserve, .buffer_bytes = 64 << 10
    };
    *config = (weir__pool_config){ .page_bytes = 4096 };
    return weir__pool_configure(&options, 64 << 10, config);
}

static void reserve_is_an_eighth_of_a_budget_that_has_room_for_it(void **state) {
    (void)state;
    weir__pool_config config;
    test_ok(configure(0, 0, &config));
    assert_int_equal(config.reserve_bytes, 8 << 20);
    test_ok(configure(16 << 16, 0, &config));
    assert_int_equal(config.reserve_bytes, 2 << 16);
    test_ok(configure((16 << 16) - 1, 0, &config));
    assert_int_equal(config.reserve_bytes, 0);
    test_ok(configure(2 << 16, 1, &config)); /* who wants one has one */
    assert_int_equal(config.reserve_bytes, 1);
}

static void reserve_leaves_one_buffer_at_least(void **state) {
    (void)state;
    weir__pool_config config;
    test_ok(configure(20 << 16, 19 << 16, &config));
    assert_int_equal(configure(20 << 16, (19 << 16) + 1, &config), -EINVAL);
    assert_int_equal(configure(20 << 16, 20 << 16, &config), -EINVAL);
    assert_int_equal(configure(20 << 16, UINT64_MAX, &config), -EINVAL);
    assert_int_equal(configure(1 << 16, 1, &config), -EINVAL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        bench_test(only_private_blocks_have_the_reserve),
        bench_test(private_blocks_may_be_outside_of_the_reserve),
        bench_test(a_private_block_without_memory_gives_its_charge_back),
        bench_test(wrapped_memory_holds_the_pool_while_the_reserve_is_in_use),
        bench_test(a_private_block_that_comes_back_wakes_only_while_streams_are_parked),
        bench_test(pressure_is_high_from_three_quarters_on_until_well_below),
        bench_test(pressure_is_parked_and_stuck_when_streams_wait),
        bench_test(whatever_happens_the_sum_is_true_and_within_the_budget),
        bench_test(reserve_is_an_eighth_of_a_budget_that_has_room_for_it),
        bench_test(reserve_leaves_one_buffer_at_least),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
