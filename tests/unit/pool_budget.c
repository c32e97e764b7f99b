/* SPDX-License-Identifier: MIT */
/* How much the pool owns, how much of it the kernel has, and what blocks leave for receiving. */
#include "unit/bench.h"

static bench b;

/* Fill what the kernel has and keep all of it. */
static unsigned hold_all(weir_slice *held) {
    unsigned count = 0;
    while (b.head != b.tail) {
        weir_slice slice = bench_arrive(&b, bench_room(&b));
        weir_slice_ref(&slice, &held[count++]);
    }
    bench_end_dispatch(&b);
    return count;
}

static void drop_all(weir_slice *held, unsigned count) {
    for (unsigned i = 0; i < count; i++)
        weir_slice_unref(&held[i]);
    weir__pool_collect(b.pool);
    bench_check(&b);
}

/* ---- growing ---------------------------------------------------------------------------------------- */

static void nothing_is_owned_before_it_is_needed(void **state) {
    (void)state;
    bench_open(&b, true, 16, 4);
    assert_int_equal(bench_stats(&b).used_bytes, 0);
    bench_expect(&b, 0, 0, 0, 0);
    bench_close(&b);
}

static void window_bounds_what_is_posted(void **state) {
    (void)state;
    bench_open(&b, true, 16, 4);
    assert_int_equal(bench_publish(&b), 4);
    assert_int_equal(bench_stats(&b).used_bytes, 4 * BUFFER);
    bench_arrive(&b, 10);
    assert_int_equal(bench_publish(&b), 0); /* one that is filling is one */
    bench_arrive(&b, BUFFER - 10);
    assert_int_equal(bench_publish(&b), 1);
    bench_end_dispatch(&b);
    bench_close(&b);
}

static void pool_grows_up_to_its_budget_and_not_beyond(void **state) {
    (void)state;
    weir_slice held[8];
    unsigned count = 0;
    bench_open(&b, true, 6, 4);
    bench_publish(&b);
    count += hold_all(held);
    assert_int_equal(bench_publish(&b), 2);
    count += hold_all(held + count);
    assert_int_equal(count, 6);
    assert_int_equal(bench_publish(&b), 0);
    weir_pool_stats stats = bench_stats(&b);
    assert_int_equal(stats.used_bytes, stats.budget_bytes);
    assert_int_equal(stats.peak_bytes, 6 * BUFFER);
    drop_all(held, count);
    assert_int_equal(bench_publish(&b), 4);
    bench_close(&b);
}

static void ids_are_few_enough_for_the_ring(void **state) {
    (void)state;
    bench_open(&b, true, 5, 5);
    assert_int_equal(weir__pool_max_buffers(b.pool), 8); /* a ring has a power of two entries */
    assert_int_equal(bench_publish(&b), 5);
    for (unsigned i = 0; i < 5; i++)
        assert_true(b.ring[i] < 8);
    bench_close(&b);
}

static void buffer_without_memory_leaves_the_pool_as_it_was(void **state) {
    (void)state;
    weir__pool_buffer buffer;
    bench_open(&b, true, 4, 4);
    atomic_store(&b.memory.fail_at, atomic_load(&b.memory.allocations) + 1);
    assert_false(weir__pool_publish(b.pool, &buffer));
    bench_check(&b);
    assert_int_equal(bench_stats(&b).used_bytes, 0);
    uint64_t live = atomic_load(&b.memory.live_blocks);
    script_fail(SCRIPT_MAP, -ENOMEM, 1);
    assert_false(weir__pool_publish(b.pool, &buffer));
    bench_check(&b);
    assert_int_equal(bench_stats(&b).used_bytes, 0);
    assert_int_equal(atomic_load(&b.memory.live_blocks), live);
    assert_int_equal(bench_publish(&b), 4);
    bench_close(&b);
}

static void pool_without_memory_is_not_made(void **state) {
    (void)state;
    bench_open(&b, true, 4, 4);
    uint64_t before = atomic_load(&b.memory.live_blocks);
    weir__pool_config config = bench_config(&b, true, 4, 4);
    for (unsigned nth = 1; nth <= 4; nth++) {
        weir_pool *none = NULL;
        atomic_store(&b.memory.fail_at, atomic_load(&b.memory.allocations) + nth);
        assert_int_equal(weir__pool_new(&config, &none), -ENOMEM);
        assert_null(none);
        assert_int_equal(atomic_load(&b.memory.live_blocks), before);
    }
    bench_close(&b);
}

/* ---- the window ------------------------------------------------------------------------------------- */

/* Widening it where streams starve walked the kernel's writes out of the cache, and cost more than it saved. */
static void starving_is_counted_and_widens_nothing(void **state) {
    (void)state;
    bench_open(&b, true, 64, 2);
    weir__pool_starve(b.pool);
    weir__pool_starve(b.pool);
    assert_int_equal(bench_stats(&b).starved, 2);
    assert_int_equal(bench_stats(&b).window_buffers, 2);
    assert_int_equal(bench_publish(&b), 2);
    bench_close(&b);
}

/* ---- shrinking -------------------------------------------------------------------------------------- */

static void trim_frees_what_lay_idle_and_halves_it(void **state) {
    (void)state;
    weir_slice held[16];
    bench_open(&b, true, 16, 8);
    bench_publish(&b);
    unsigned count = hold_all(held);
    assert_int_equal(count, 8);
    drop_all(held, count);
    weir__pool_trim(b.pool); /* this time has seen them in use */
    bench_expect(&b, 8, 0, 0, 0);
    weir__pool_trim(b.pool);
    bench_check(&b);
    bench_expect(&b, 4, 0, 0, 0);
    weir__pool_trim(b.pool);
    bench_expect(&b, 2, 0, 0, 0);
    weir__pool_trim(b.pool);
    weir__pool_trim(b.pool);
    bench_expect(&b, 0, 0, 0, 0);
    assert_int_equal(bench_stats(&b).used_bytes, 0);
    bench_check(&b);
    bench_close(&b);
}

static void trim_leaves_what_was_needed_meanwhile(void **state) {
    (void)state;
    weir_slice held[16];
    bench_open(&b, true, 16, 4);
    bench_publish(&b);
    unsigned count = hold_all(held);
    drop_all(held, count);
    weir__pool_trim(b.pool);
    bench_publish(&b); /* all four in use, once, in all this time */
    count = hold_all(held);
    drop_all(held, count);
    bench_expect(&b, 4, 0, 0, 0);
    weir__pool_trim(b.pool);
    bench_expect(&b, 4, 0, 0, 0);
    bench_close(&b);
}

static void trim_frees_the_coldest_first(void **state) {
    (void)state;
    weir_slice held[4];
    bench_open(&b, true, 4, 2);
    bench_publish(&b);
    uint16_t cold = b.ring[1], hot = b.ring[0];
    assert_int_equal(hold_all(held), 2);
    weir_slice_unref(&held[1]);
    weir__pool_collect(b.pool);
    weir_slice_unref(&held[0]);
    weir__pool_collect(b.pool);
    weir__pool_trim(b.pool);
    weir__pool_trim(b.pool);
    bench_expect(&b, 1, 0, 0, 0);
    const void *hot_data = b.by_id[hot].data;
    assert_int_not_equal(hot, cold);
    bench_publish(&b);
    assert_ptr_equal(b.by_id[b.ring[2]].data, hot_data);
    bench_close(&b);
}

static void freed_id_serves_a_new_buffer(void **state) {
    (void)state;
    bench_open(&b, true, 1, 1);
    for (int round = 0; round < 5; round++) {
        assert_int_equal(bench_publish(&b), 1);
        bench_arrive(&b, BUFFER);
        bench_end_dispatch(&b);
        weir__pool_trim(b.pool);
        weir__pool_trim(b.pool);
        assert_int_equal(bench_stats(&b).used_bytes, 0);
        bench_check(&b);
    }
    bench_close(&b);
}

/* ---- blocks ----------------------------------------------------------------------------------------- */

static void blocks_are_charged_with_all_they_occupy(void **state) {
    (void)state;
    weir_slice slice;
    uint8_t *data;
    bench_open(&b, true, 16, 4);
    test_ok(weir_slice_new(b.pool, 1000, &data, &slice));
    bench_check(&b);
    weir_pool_stats stats = bench_stats(&b);
    assert_in_range(stats.block_bytes, 1000, 1100);
    assert_int_equal(stats.used_bytes, stats.block_bytes);
    weir_slice_unref(&slice);
    assert_int_equal(bench_stats(&b).used_bytes, 0);
    assert_in_range(bench_stats(&b).peak_bytes, 1000, 1100);
    bench_close(&b);
}

static void quarter_of_the_budget_is_guaranteed_to_receiving(void **state) {
    (void)state;
    weir_slice blocks[64];
    uint8_t *data;
    unsigned count = 0;
    int r = 0;
    bench_open(&b, true, 16, 16);
    while (count < 64 && (r = weir_slice_new(b.pool, 1000, &data, &blocks[count])) == 0) {
        bench_check(&b);
        count++;
    }
    assert_int_equal(r, -ENOBUFS);
    assert_true(bench_stats(&b).block_bytes <= 12 * BUFFER);
    assert_true(bench_stats(&b).block_bytes > 11 * BUFFER);
    assert_int_equal(bench_publish(&b), 4);
    while (count > 0)
        weir_slice_unref(&blocks[--count]);
    assert_int_equal(bench_publish(&b), 12);
    bench_close(&b);
}

static void small_budget_guarantees_one_buffer_at_least(void **state) {
    (void)state;
    weir_slice slice;
    uint8_t *data;
    bench_open(&b, true, 2, 1);
    assert_int_equal(weir_slice_new(b.pool, BUFFER, &data, &slice), -ENOBUFS); /* with its header it is more */
    test_ok(weir_slice_new(b.pool, BUFFER / 2, &data, &slice));
    assert_int_equal(bench_publish(&b), 1);
    weir_slice_unref(&slice);
    bench_close(&b);
}

static void buffers_leave_no_room_for_blocks_when_they_have_it_all(void **state) {
    (void)state;
    weir_slice slice;
    uint8_t *data;
    bench_open(&b, true, 4, 4);
    assert_int_equal(bench_publish(&b), 4);
    assert_int_equal(weir_slice_new(b.pool, 1, &data, &slice), -ENOBUFS);
    bench_check(&b);
    assert_int_equal(bench_stats(&b).block_bytes, 0);
    bench_close(&b);
}

static void block_of_a_size_that_cannot_be_is_refused(void **state) {
    (void)state;
    weir_slice slice;
    uint8_t *data;
    bench_open(&b, true, 4, 4);
    assert_int_equal(weir_slice_new(b.pool, SIZE_MAX, &data, &slice), -ENOBUFS);
    assert_int_equal(weir_slice_new(b.pool, SIZE_MAX - 16, &data, &slice), -ENOBUFS);
    assert_int_equal(weir_slice_new(b.pool, SIZE_MAX / 2, &data, &slice), -ENOBUFS);
    bench_check(&b);
    bench_close(&b);
}

static void block_without_memory_gives_its_charge_back(void **state) {
    (void)state;
    weir_slice slice;
    uint8_t *data;
    bench_open(&b, true, 4, 4);
    atomic_store(&b.memory.fail_at, atomic_load(&b.memory.allocations) + 1);
    assert_int_equal(weir_slice_new(b.pool, 100, &data, &slice), -ENOMEM);
    bench_check(&b);
    assert_int_equal(bench_stats(&b).used_bytes, 0);
    bench_close(&b);
}

/*
 * Blocks were refused while buffers lay idle, because those count against the budget and only the tick gave them up, half of
 * them each second. Who makes a block may be on any thread, so there it is noted, and the next dispatch gives them up;
 * who is on the loop's thread need not wait for that.
 */
static void lie_idle(unsigned buffers) {
    weir_slice held[8];
    assert_int_equal(bench_publish(&b), buffers);
    assert_int_equal(hold_all(held), buffers);
    drop_all(held, buffers);
    bench_expect(&b, buffers, 0, 0, 0);
}

static void idle_buffers_can_be_given_up_for_a_block_at_once(void **state) {
    (void)state;
    bench_open(&b, true, 8, 8);
    lie_idle(8);
    assert_false(weir__pool_charge(b.pool, 100));
    bench_expect(&b, 8, 0, 0, 0); /* that could be any thread */
    weir__pool_free_idle(b.pool);
    bench_check(&b);
    bench_expect(&b, 0, 0, 0, 0);
    assert_int_equal(bench_stats(&b).used_bytes, 0);
    assert_true(weir__pool_charge(b.pool, 100));
    assert_int_equal(bench_publish(&b), 7); /* receiving goes on with what is left */
    weir__pool_uncharge(b.pool, 100);
    assert_int_equal(bench_publish(&b), 1);
    bench_close(&b);
}

static void idle_buffers_are_given_up_after_a_block_found_no_room(void **state) {
    (void)state;
    bench_open(&b, true, 8, 8);
    lie_idle(8);
    bench_end_dispatch(&b);
    bench_expect(&b, 8, 0, 0, 0); /* nobody asked */
    assert_false(weir__pool_charge(b.pool, 100));
    bench_end_dispatch(&b);
    bench_expect(&b, 0, 0, 0, 0);
    assert_true(weir__pool_charge(b.pool, 100));
    weir__pool_uncharge(b.pool, 100);
    lie_idle(8);
    bench_end_dispatch(&b);
    bench_expect(&b, 8, 0, 0, 0); /* once a question */
    bench_close(&b);
}

static void memory_is_short_above_three_quarters_of_the_budget(void **state) {
    (void)state;
    bench_open(&b, true, 16, 4);
    assert_false(weir__pool_is_short(b.pool));
    bench_publish(&b); /* buffers count as blocks do */
    assert_true(weir__pool_charge(b.pool, 8 * BUFFER));
    assert_int_equal(bench_stats(&b).used_bytes, 12 * BUFFER);
    assert_false(weir__pool_is_short(b.pool));
    assert_true(weir__pool_charge(b.pool, 1));
    assert_true(weir__pool_is_short(b.pool));
    weir__pool_uncharge(b.pool, 1);
    assert_false(weir__pool_is_short(b.pool));
    weir__pool_uncharge(b.pool, 8 * BUFFER);
    bench_close(&b);
}

/* ---- waking ----------------------------------------------------------------------------------------- */

static void memory_that_comes_back_wakes_only_while_streams_are_parked(void **state) {
    (void)state;
    weir_slice held[2], block;
    uint8_t *data;
    bench_open(&b, true, 8, 2);
    bench_publish(&b);
    assert_int_equal(hold_all(held), 2);
    test_ok(weir_slice_new(b.pool, 100, &data, &block));
    weir_slice_unref(&held[0]);
    weir_slice_unref(&block);
    assert_int_equal(atomic_load(&b.wakes), 0);

    test_ok(weir_slice_new(b.pool, 100, &data, &block));
    weir__pool_set_parked(b.pool, 1);
    assert_int_equal(bench_stats(&b).parked_streams, 1);
    weir_slice_unref(&block);
    assert_int_equal(atomic_load(&b.wakes), 1);
    weir_slice_unref(&held[1]);
    assert_int_equal(atomic_load(&b.wakes), 2);

    weir__pool_set_parked(b.pool, 0);
    test_ok(weir_slice_new(b.pool, 100, &data, &block));
    weir_slice_unref(&block);
    assert_int_equal(atomic_load(&b.wakes), 2);
    bench_close(&b);
}

static void reference_that_is_not_the_last_wakes_nobody(void **state) {
    (void)state;
    weir_slice one, two;
    bench_open(&b, true, 8, 1);
    bench_publish(&b);
    weir_slice slice = bench_arrive(&b, BUFFER);
    weir_slice_ref(&slice, &one);
    weir_slice_ref(&slice, &two);
    bench_end_dispatch(&b);
    weir__pool_set_parked(b.pool, 1);
    weir_slice_unref(&one);
    assert_int_equal(atomic_load(&b.wakes), 0);
    weir_slice_unref(&two);
    assert_int_equal(atomic_load(&b.wakes), 1);
    bench_close(&b);
}

/* ---- options ---------------------------------------------------------------------------------------- */

static int configure(uint64_t budget, uint32_t buffer, uint32_t window, weir__pool_config *config) {
    weir_pool_options options = {
        .size = sizeof options, .budget_bytes = budget, .buffer_bytes = buffer, .window_bytes = window
    };
    *config = (weir__pool_config){ .page_bytes = 4096 };
    return weir__pool_configure(&options, 64 << 10, config);
}

static void options_of_zero_are_the_defaults(void **state) {
    (void)state;
    weir__pool_config config;
    test_ok(configure(0, 0, 0, &config));
    assert_int_equal(config.budget_bytes, 64 << 20);
    assert_int_equal(config.buffer_bytes, 64 << 10);
    assert_int_equal(config.window_bytes, 1 << 20);
}

static void small_budget_has_a_small_default_window(void **state) {
    (void)state;
    weir__pool_config config;
    test_ok(configure(256 << 10, 0, 0, &config));
    assert_int_equal(config.window_bytes, 128 << 10); /* half of it */
    test_ok(configure(64 << 10, 0, 0, &config));
    assert_int_equal(config.window_bytes, 64 << 10); /* but a buffer there must be */
}

/* A default that the library picks is never a reason to refuse what the user asked for: buffers of 2 MiB and more
 * used to be refused, because the default window is 1 MiB. */
static void large_buffer_widens_the_default_window(void **state) {
    (void)state;
    weir__pool_config config;
    test_ok(configure(0, 4 << 20, 0, &config));
    assert_int_equal(config.window_bytes, 4 << 20);
}

/* A buffer is mapped by itself, so that neither it nor its neighbour shares a page. */
static void buffer_is_a_page_at_least(void **state) {
    (void)state;
    weir_pool_options options = { .size = sizeof options, .buffer_bytes = 16 << 10 };
    weir__pool_config config = { .page_bytes = 64 << 10 };
    assert_int_equal(weir__pool_configure(&options, 16 << 10, &config), -EINVAL);
    options.buffer_bytes = 0;
    test_ok(weir__pool_configure(&options, 16 << 10, &config));
    assert_int_equal(config.buffer_bytes, 64 << 10);
}

static void options_out_of_range_are_refused(void **state) {
    (void)state;
    static const struct {
        uint64_t budget;
        uint32_t buffer, window;
    } bad[] = {
        { 0, 1, 0 },          { 0, 2048, 0 },    { 0, 4097, 0 }, { 0, 12 << 10, 0 },    { 64 << 20, 32 << 20, 0 },
        { 0, UINT32_MAX, 0 }, { 4096, 8192, 0 }, { 1, 0, 0 },    { 0, 64 << 10, 4096 }, { 1 << 20, 4096, 2 << 20 },
    };
    weir__pool_config config;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(configure(bad[i].budget, bad[i].buffer, bad[i].window, &config), -EINVAL);
    test_ok(configure(4096, 4096, 4096, &config));
    test_ok(configure(16 << 20, 16 << 20, 16 << 20, &config));
}

static void statistics_want_a_pool_and_their_size(void **state) {
    (void)state;
    weir_pool_stats stats = { .size = sizeof stats - 1 };
    bench_open(&b, true, 4, 4);
    assert_int_equal(weir_pool_get_stats(b.pool, &stats), -EINVAL);
    assert_int_equal(weir_pool_get_stats(b.pool, NULL), -EINVAL);
    stats.size = sizeof stats;
    assert_int_equal(weir_pool_get_stats(NULL, &stats), -EINVAL);
    struct {
        weir_pool_stats known;
        uint64_t unknown;
    } larger = { .known.size = sizeof larger, .unknown = 7 };
    test_ok(weir_pool_get_stats(b.pool, &larger.known));
    assert_int_equal(larger.known.size, sizeof larger);
    assert_int_equal(larger.unknown, 0);
    bench_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        bench_test(nothing_is_owned_before_it_is_needed),
        bench_test(window_bounds_what_is_posted),
        bench_test(pool_grows_up_to_its_budget_and_not_beyond),
        bench_test(ids_are_few_enough_for_the_ring),
        bench_test(buffer_without_memory_leaves_the_pool_as_it_was),
        bench_test(pool_without_memory_is_not_made),
        bench_test(starving_is_counted_and_widens_nothing),
        bench_test(trim_frees_what_lay_idle_and_halves_it),
        bench_test(trim_leaves_what_was_needed_meanwhile),
        bench_test(trim_frees_the_coldest_first),
        bench_test(freed_id_serves_a_new_buffer),
        bench_test(blocks_are_charged_with_all_they_occupy),
        bench_test(quarter_of_the_budget_is_guaranteed_to_receiving),
        bench_test(small_budget_guarantees_one_buffer_at_least),
        bench_test(buffers_leave_no_room_for_blocks_when_they_have_it_all),
        bench_test(block_of_a_size_that_cannot_be_is_refused),
        bench_test(block_without_memory_gives_its_charge_back),
        bench_test(idle_buffers_can_be_given_up_for_a_block_at_once),
        bench_test(idle_buffers_are_given_up_after_a_block_found_no_room),
        bench_test(memory_is_short_above_three_quarters_of_the_budget),
        bench_test(memory_that_comes_back_wakes_only_while_streams_are_parked),
        bench_test(reference_that_is_not_the_last_wakes_nobody),
        bench_test(options_of_zero_are_the_defaults),
        bench_test(small_budget_has_a_small_default_window),
        bench_test(large_buffer_widens_the_default_window),
        bench_test(buffer_is_a_page_at_least),
        bench_test(options_out_of_range_are_refused),
        bench_test(statistics_want_a_pool_and_their_size),
    };
    return cmocka_run_group_tests_name("pool-budget", tests, NULL, NULL);
}
