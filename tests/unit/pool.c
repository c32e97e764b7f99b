/* SPDX-License-Identifier: MIT */
/* The life of a receive buffer: what the kernel is given, what it says, and who has the bytes until when. */
#include "unit/bench.h"

static bench b;

/* ---- filling ---------------------------------------------------------------------------------------- */

static void partial_fill_leaves_the_buffer_with_the_kernel(void **state) {
    (void)state;
    bench_open(&b, true, 4, 1);
    bench_publish(&b);
    bench_expect(&b, 0, 1, 0, 0);
    bench_arrive(&b, 100);
    bench_expect(&b, 0, 0, 1, 0);
    assert_int_equal(weir__pool_available(b.pool), 1);
    bench_end_dispatch(&b);
    bench_expect(&b, 0, 0, 1, 0);
    bench_close(&b);
}

static void slices_of_one_buffer_lie_back_to_back(void **state) {
    (void)state;
    bench_open(&b, true, 4, 1);
    bench_publish(&b);
    weir_slice first = bench_put(&b, "stream one", 10, false);
    weir_slice second = bench_put(&b, "and two", 7, false);
    weir_slice third = bench_put(&b, "one again", 9, false);
    assert_ptr_equal(second.data, first.data + 10);
    assert_ptr_equal(third.data, second.data + 7);
    assert_memory_equal(first.data, "stream oneand twoone again", 26);
    bench_end_dispatch(&b);
    bench_close(&b);
}

static void exact_fill_retires_the_buffer(void **state) {
    (void)state;
    bench_open(&b, true, 4, 1);
    bench_publish(&b);
    bench_arrive(&b, 96);
    bench_arrive(&b, BUFFER - 96);
    bench_expect(&b, 0, 0, 0, 1);
    assert_int_equal(weir__pool_available(b.pool), 0);
    bench_end_dispatch(&b);
    bench_expect(&b, 1, 0, 0, 0);
    bench_close(&b);
}

static void buffer_retired_early_gives_up_its_tail(void **state) {
    (void)state;
    bench_open(&b, true, 4, 2);
    bench_publish(&b);
    uint16_t first = bench_head(&b);
    bench_put(&b, "last word", 9, true);
    bench_expect(&b, 0, 1, 0, 1);
    assert_int_not_equal(bench_head(&b), first);
    weir_slice next = bench_arrive(&b, 10);
    assert_ptr_equal(next.data, b.by_id[bench_head(&b)].data);
    bench_end_dispatch(&b);
    bench_close(&b);
}

static void completion_without_bytes_may_retire_a_buffer(void **state) {
    (void)state;
    bench_open(&b, true, 4, 1);
    bench_publish(&b);
    bench_arrive(&b, 10);
    weir_slice none = bench_put(&b, "", 0, true);
    assert_int_equal(none.size, 0);
    bench_expect(&b, 0, 0, 0, 1);
    bench_end_dispatch(&b);
    bench_expect(&b, 1, 0, 0, 0);
    bench_close(&b);
}

static void reused_buffer_fills_from_its_beginning(void **state) {
    (void)state;
    bench_open(&b, true, 1, 1);
    bench_publish(&b);
    weir_slice first = bench_arrive(&b, BUFFER);
    bench_end_dispatch(&b);
    assert_int_equal(bench_publish(&b), 1);
    weir_slice again = bench_arrive(&b, 10);
    assert_ptr_equal(again.data, first.data);
    bench_end_dispatch(&b);
    assert_int_equal(bench_stats(&b).recycled, 1);
    bench_close(&b);
}

static void classic_buffer_serves_one_receive_in_any_order(void **state) {
    (void)state;
    weir_slice slice;
    bench_open(&b, false, 4, 3);
    bench_publish(&b);
    test_ok(weir__pool_commit(b.pool, b.ring[2], 10, false, &slice));
    assert_ptr_equal(slice.data, b.by_id[b.ring[2]].data);
    test_ok(weir__pool_commit(b.pool, b.ring[0], BUFFER, false, &slice));
    bench_expect(&b, 0, 1, 0, 2);
    bench_end_dispatch(&b);
    bench_expect(&b, 2, 1, 0, 0);
    bench_close(&b);
}

static void next_byte_follows_offsets_and_the_order_of_the_ring(void **state) {
    (void)state;
    const uint8_t *data;
    uint32_t position;
    bench_open(&b, true, 4, 2);
    assert_false(weir__pool_next_byte(b.pool, &data, &position));
    bench_publish(&b);
    assert_true(weir__pool_next_byte(b.pool, &data, &position));
    assert_ptr_equal(data, b.by_id[b.ring[0]].data);
    assert_int_equal(position, 0);
    bench_arrive(&b, 100);
    assert_true(weir__pool_next_byte(b.pool, &data, &position));
    assert_ptr_equal(data, (uint8_t *)b.by_id[b.ring[0]].data + 100);
    bench_arrive(&b, BUFFER - 100);
    assert_true(weir__pool_next_byte(b.pool, &data, &position));
    assert_ptr_equal(data, b.by_id[b.ring[1]].data);
    assert_int_equal(position, 1);
    bench_arrive(&b, BUFFER);
    assert_false(weir__pool_next_byte(b.pool, &data, &position));
    bench_end_dispatch(&b);
    bench_close(&b);
}

/* ---- coming back ------------------------------------------------------------------------------------ */

static void slice_nobody_refs_is_readable_until_dispatch_ends(void **state) {
    (void)state;
    bench_open(&b, true, 2, 2);
    bench_publish(&b);
    uint8_t bytes[BUFFER];
    test_fill(1, 0, bytes, BUFFER);
    weir_slice slice = bench_put(&b, bytes, BUFFER, false);
    bench_publish(&b); /* must not be the same one */
    bench_arrive(&b, 10);
    assert_int_equal(test_differs(1, 0, slice.data, slice.size), -1);
    bench_end_dispatch(&b);
    bench_close(&b);
}

static void buffer_returns_only_after_last_unref(void **state) {
    (void)state;
    weir_slice one, two;
    bench_open(&b, true, 4, 1);
    bench_publish(&b);
    weir_slice slice = bench_arrive(&b, 100);
    weir_slice_ref(&slice, &one);
    slice = bench_arrive(&b, BUFFER - 100);
    weir_slice_ref(&slice, &two);
    bench_end_dispatch(&b);
    bench_expect(&b, 0, 0, 0, 1);
    assert_int_equal(bench_stats(&b).pinned_bytes, BUFFER);
    weir_slice_unref(&two);
    weir__pool_collect(b.pool);
    bench_expect(&b, 0, 0, 0, 1);
    weir_slice_unref(&one);
    weir__pool_collect(b.pool);
    bench_check(&b);
    bench_expect(&b, 1, 0, 0, 0);
    bench_close(&b);
}

/* A classic buffer serves one receive: what it pins beyond that is to be seen. */
static void what_is_pinned_beyond_what_was_received_is_counted(void **state) {
    (void)state;
    uint8_t byte = 7;
    weir_slice mine[2];
    bench_open(&b, false, 4, 2);
    bench_publish(&b);
    for (int i = 0; i < 2; i++) {
        weir_slice slice = bench_put(&b, &byte, 1, false);
        weir_slice_ref(&slice, &mine[i]);
    }
    bench_end_dispatch(&b);
    assert_int_equal(bench_stats(&b).pinned_bytes, 2 * BUFFER);
    assert_int_equal(bench_stats(&b).pinned_received_bytes, 2);
    weir_slice_unref(&mine[0]);
    weir__pool_collect(b.pool);
    assert_int_equal(bench_stats(&b).pinned_bytes, BUFFER);
    assert_int_equal(bench_stats(&b).pinned_received_bytes, 1);
    weir_slice_unref(&mine[1]);
    weir__pool_collect(b.pool);
    bench_check(&b);
    assert_int_equal(bench_stats(&b).pinned_received_bytes, 0);
    bench_close(&b);
}

static void last_unref_before_the_final_completion_leaves_the_buffer_filling(void **state) {
    (void)state;
    weir_slice mine;
    bench_open(&b, true, 4, 1);
    bench_publish(&b);
    weir_slice slice = bench_arrive(&b, 100);
    weir_slice_ref(&slice, &mine);
    bench_end_dispatch(&b);
    weir_slice_unref(&mine);
    weir__pool_collect(b.pool);
    bench_check(&b);
    bench_expect(&b, 0, 0, 1, 0);
    slice = bench_arrive(&b, BUFFER - 100); /* the kernel goes on where it was */
    assert_ptr_equal(slice.data, (uint8_t *)b.by_id[b.ring[0]].data + 100);
    bench_end_dispatch(&b);
    bench_expect(&b, 1, 0, 0, 0);
    bench_close(&b);
}

static void unref_inside_the_dispatch_of_the_final_completion_keeps_the_buffer(void **state) {
    (void)state;
    weir_slice mine;
    bench_open(&b, true, 4, 1);
    bench_publish(&b);
    weir_slice slice = bench_arrive(&b, BUFFER);
    weir_slice_ref(&slice, &mine);
    weir_slice_unref(&mine);
    bench_expect(&b, 0, 0, 0, 1);
    weir__pool_collect(b.pool);
    bench_expect(&b, 0, 0, 0, 1);
    bench_end_dispatch(&b);
    bench_expect(&b, 1, 0, 0, 0);
    bench_close(&b);
}

static void local_references_hold_a_buffer_like_shared_ones(void **state) {
    (void)state;
    weir_slice mine;
    bench_open(&b, true, 4, 1);
    bench_publish(&b);
    weir_slice slice = bench_arrive(&b, BUFFER);
    weir__block_ref_by(slice.owner, &b.owner); /* a queue of the loop's */
    weir_slice_ref(&slice, &mine);
    bench_end_dispatch(&b);
    weir_slice_unref(&mine);
    weir__pool_collect(b.pool);
    bench_check(&b);
    bench_expect(&b, 0, 0, 0, 1);
    weir__block_unref_by(slice.owner, &b.owner);
    weir__pool_collect(b.pool);
    bench_expect(&b, 1, 0, 0, 0);
    bench_close(&b);
}

static void local_references_dropped_first_leave_the_shared_one(void **state) {
    (void)state;
    weir_slice mine;
    bench_open(&b, true, 4, 1);
    bench_publish(&b);
    weir_slice slice = bench_arrive(&b, BUFFER);
    weir_slice_ref(&slice, &mine);
    weir__block_ref_by(slice.owner, &b.owner);
    bench_end_dispatch(&b);
    weir__block_unref_by(slice.owner, &b.owner);
    weir__pool_collect(b.pool);
    bench_expect(&b, 0, 0, 0, 1);
    weir__block_ref_by(mine.owner, &b.owner); /* queued again, from what the application kept */
    weir_slice_unref(&mine);
    weir__pool_collect(b.pool);
    bench_expect(&b, 0, 0, 0, 1);
    weir__block_unref_by(slice.owner, &b.owner);
    weir__pool_collect(b.pool);
    bench_expect(&b, 1, 0, 0, 0);
    bench_close(&b);
}

static void hottest_buffer_is_published_first(void **state) {
    (void)state;
    weir_slice first, second;
    bench_open(&b, true, 4, 2);
    bench_publish(&b);
    weir_slice slice = bench_arrive(&b, BUFFER);
    weir_slice_ref(&slice, &first);
    slice = bench_arrive(&b, BUFFER);
    weir_slice_ref(&slice, &second);
    bench_end_dispatch(&b);
    uint16_t cold = b.ring[1], hot = b.ring[0];
    weir_slice_unref(&second);
    weir__pool_collect(b.pool);
    weir_slice_unref(&first); /* touched last */
    weir__pool_collect(b.pool);
    bench_publish(&b);
    assert_int_equal(b.ring[2], hot);
    assert_int_equal(b.ring[3], cold);
    bench_close(&b);
}

/* ---- completions that cannot be --------------------------------------------------------------------- */

/* The commit is refused, and everything is as it was. */
static void refused(uint32_t id, size_t bytes, bool more) {
    const uint8_t *byte_before, *byte_after;
    uint32_t position_before, position_after;
    weir_slice slice = { (const uint8_t *)"untouched", 9, NULL };
    weir_pool_stats before = bench_stats(&b);
    assert_true(weir__pool_next_byte(b.pool, &byte_before, &position_before));
    assert_int_equal(weir__pool_commit(b.pool, id, bytes, more, &slice), -EILSEQ);
    weir_pool_stats after = bench_stats(&b);
    bench_check(&b);
    assert_memory_equal(&before, &after, sizeof before);
    assert_true(weir__pool_next_byte(b.pool, &byte_after, &position_after));
    assert_ptr_equal(byte_before, byte_after);
    assert_int_equal(position_before, position_after);
    assert_int_equal(slice.size, 9);
}

/* Then the pool goes on as if nothing had been said. */
static void goes_on_and_close(void) {
    bench_arrive(&b, 17);
    bench_end_dispatch(&b);
    bench_close(&b);
}

static void commit_of_an_id_that_never_was_is_refused(void **state) {
    (void)state;
    bench_open(&b, true, 4, 2);
    bench_publish(&b);
    refused(3, 10, true);
    refused(4, 10, true);
    refused(65535, 10, true);
    goes_on_and_close();
}

static void commit_of_an_idle_buffer_is_refused(void **state) {
    (void)state;
    bench_open(&b, true, 4, 2);
    bench_publish(&b);
    uint16_t first = bench_head(&b);
    bench_arrive(&b, BUFFER);
    bench_end_dispatch(&b);
    refused(first, 10, true);
    goes_on_and_close();
}

static void commit_of_a_retired_buffer_is_refused(void **state) {
    (void)state;
    bench_open(&b, true, 4, 2);
    bench_publish(&b);
    uint16_t first = bench_head(&b);
    bench_put(&b, "early", 5, true);
    refused(first, 10, true);
    refused(first, 10, false);
    bench_end_dispatch(&b);
    goes_on_and_close();
}

static void commit_of_more_than_the_rest_is_refused(void **state) {
    (void)state;
    bench_open(&b, true, 4, 1);
    bench_publish(&b);
    refused(bench_head(&b), BUFFER + 1, false);
    refused(bench_head(&b), SIZE_MAX, false);
    bench_arrive(&b, 100);
    refused(bench_head(&b), BUFFER - 99, false);
    goes_on_and_close();
}

static void commit_out_of_the_order_of_the_ring_is_refused(void **state) {
    (void)state;
    bench_open(&b, true, 4, 3);
    bench_publish(&b);
    refused(b.ring[1], 10, true);
    refused(b.ring[2], BUFFER, false);
    bench_arrive(&b, 10);
    refused(b.ring[1], 10, true);
    goes_on_and_close();
}

static void commit_of_a_full_buffer_with_more_to_come_is_refused(void **state) {
    (void)state;
    bench_open(&b, true, 4, 1);
    bench_publish(&b);
    refused(bench_head(&b), BUFFER, true);
    bench_arrive(&b, 96);
    refused(bench_head(&b), BUFFER - 96, true);
    goes_on_and_close();
}

static void commit_with_more_to_come_on_a_classic_ring_is_refused(void **state) {
    (void)state;
    bench_open(&b, false, 4, 2);
    bench_publish(&b);
    refused(bench_head(&b), 10, true);
    goes_on_and_close();
}

static void commit_twice_on_a_classic_ring_is_refused(void **state) {
    (void)state;
    bench_open(&b, false, 4, 2);
    bench_publish(&b);
    uint16_t first = bench_head(&b);
    bench_arrive(&b, 10);
    refused(first, 10, false);
    bench_end_dispatch(&b);
    bench_close(&b);
}

/* ---- the kernel gives up its ring ------------------------------------------------------------------- */

static void withdraw_takes_back_what_was_posted(void **state) {
    (void)state;
    weir_slice mine;
    bench_open(&b, true, 4, 3);
    bench_publish(&b);
    weir_slice slice = bench_put(&b, "kept", 4, false);
    weir_slice_ref(&slice, &mine);
    bench_end_dispatch(&b);
    weir__pool_withdraw(b.pool);
    bench_check(&b);
    bench_expect(&b, 2, 0, 0, 1);
    assert_int_equal(weir__pool_available(b.pool), 0);
    assert_memory_equal(mine.data, "kept", 4);
    weir_slice_unref(&mine);
    weir__pool_collect(b.pool);
    bench_expect(&b, 3, 0, 0, 0);
    bench_close(&b);
}

static void withdrawn_pool_serves_a_classic_ring(void **state) {
    (void)state;
    weir_slice slice;
    bench_open(&b, true, 4, 3);
    bench_publish(&b);
    bench_arrive(&b, 10);
    weir__pool_withdraw(b.pool);
    assert_false(weir__pool_is_incremental(b.pool));
    b.is_incremental = false;
    b.head = b.tail;
    assert_int_equal(bench_publish(&b), 3);
    uint16_t last = b.ring[(uint16_t)(b.tail - 1)];
    test_ok(weir__pool_commit(b.pool, last, 10, false, &slice));
    assert_ptr_equal(slice.data, b.by_id[last].data);
    bench_check(&b);
    bench_end_dispatch(&b);
    bench_close(&b);
}

static void close_frees_what_was_posted(void **state) {
    (void)state;
    bench_open(&b, true, 8, 4);
    bench_publish(&b);
    bench_arrive(&b, 10);
    bench_close(&b);
}

/* What the kernel may still write to is never freed; everything else is. */
static void abandon_leaves_only_what_was_posted(void **state) {
    static bench abandoned; /* stays reachable: its memory is lost on purpose */
    (void)state;
    weir_slice mine;
    bench_open(&abandoned, true, 8, 2);
    bench_publish(&abandoned);
    weir_slice slice = bench_arrive(&abandoned, BUFFER);
    weir_slice_ref(&slice, &mine);
    bench_end_dispatch(&abandoned);
    bench_publish(&abandoned);
    bench_arrive(&abandoned, BUFFER);
    bench_end_dispatch(&abandoned); /* one idle, one posted, one retired */
    bench_expect(&abandoned, 1, 1, 0, 1);
    bench_arrive(&abandoned, 10);
    weir__pool_abandon(abandoned.pool);
    bench_expect(&abandoned, 0, 0, 1, 1);
    assert_int_equal(bench_stats(&abandoned).used_bytes, 2 * BUFFER);
    weir_slice_unref(&mine);
    assert_int_equal(bench_stats(&abandoned).used_bytes, BUFFER);
    uint16_t id = bench_head(&abandoned); /* the kernel goes on writing */
    script_write((uint8_t *)abandoned.by_id[id].data + 10, "late", 4);
    assert_int_equal(atomic_load(&abandoned.drops), 0);
    assert_int_equal(script_mapped(), BUFFER);
    script_end_abandoned();
    script_begin();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        bench_test(partial_fill_leaves_the_buffer_with_the_kernel),
        bench_test(slices_of_one_buffer_lie_back_to_back),
        bench_test(exact_fill_retires_the_buffer),
        bench_test(buffer_retired_early_gives_up_its_tail),
        bench_test(completion_without_bytes_may_retire_a_buffer),
        bench_test(reused_buffer_fills_from_its_beginning),
        bench_test(classic_buffer_serves_one_receive_in_any_order),
        bench_test(next_byte_follows_offsets_and_the_order_of_the_ring),
        bench_test(slice_nobody_refs_is_readable_until_dispatch_ends),
        bench_test(buffer_returns_only_after_last_unref),
        bench_test(what_is_pinned_beyond_what_was_received_is_counted),
        bench_test(last_unref_before_the_final_completion_leaves_the_buffer_filling),
        bench_test(unref_inside_the_dispatch_of_the_final_completion_keeps_the_buffer),
        bench_test(local_references_hold_a_buffer_like_shared_ones),
        bench_test(local_references_dropped_first_leave_the_shared_one),
        bench_test(hottest_buffer_is_published_first),
        bench_test(commit_of_an_id_that_never_was_is_refused),
        bench_test(commit_of_an_idle_buffer_is_refused),
        bench_test(commit_of_a_retired_buffer_is_refused),
        bench_test(commit_of_more_than_the_rest_is_refused),
        bench_test(commit_out_of_the_order_of_the_ring_is_refused),
        bench_test(commit_of_a_full_buffer_with_more_to_come_is_refused),
        bench_test(commit_with_more_to_come_on_a_classic_ring_is_refused),
        bench_test(commit_twice_on_a_classic_ring_is_refused),
        bench_test(withdraw_takes_back_what_was_posted),
        bench_test(withdrawn_pool_serves_a_classic_ring),
        bench_test(close_frees_what_was_posted),
        bench_test(abandon_leaves_only_what_was_posted),
    };
    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
