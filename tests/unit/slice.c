/* SPDX-License-Identifier: MIT */
/* What the application does with slices on one thread: ref, sub, keep, new, copy, wrap. */
#include <sys/wait.h>
#include <unistd.h>

#include "unit/bench.h"

static bench b;

static void is_empty(const weir_slice *slice) {
    assert_null(slice->data);
    assert_int_equal(slice->size, 0);
    assert_null(slice->owner);
}

/* A received slice of @size at offset @skip of a buffer. */
static weir_slice received(size_t skip, size_t size) {
    bench_open(&b, true, 8, 1);
    bench_publish(&b);
    if (skip > 0)
        bench_arrive(&b, skip);
    uint8_t bytes[BUFFER];
    test_fill(7, 0, bytes, size);
    return bench_put(&b, bytes, size, false);
}

/* ---- ref and unref ---------------------------------------------------------------------------------- */

static void ref_is_the_same_bytes(void **state) {
    (void)state;
    weir_slice mine, slice = received(10, 100);
    weir_slice_ref(&slice, &mine);
    assert_ptr_equal(mine.data, slice.data);
    assert_int_equal(mine.size, 100);
    assert_ptr_equal(mine.owner, slice.owner);
    weir_slice_unref(&mine);
    bench_end_dispatch(&b);
    bench_close(&b);
}

static void ref_of_the_empty_slice_is_empty(void **state) {
    (void)state;
    weir_slice mine, empty = { 0 };
    memset(&mine, 0xEE, sizeof mine);
    weir_slice_ref(&empty, &mine);
    is_empty(&mine);
}

static void ref_of_uncounted_bytes_is_empty(void **state) {
    (void)state;
    weir_slice mine, text = { (const uint8_t *)"hello", 5, NULL };
    memset(&mine, 0xEE, sizeof mine);
    weir_slice_ref(&text, &mine);
    is_empty(&mine);
    memset(&mine, 0xEE, sizeof mine);
    weir_slice_ref(NULL, &mine);
    is_empty(&mine);
    weir_slice_ref(&text, NULL);
}

static void unref_empties_the_variable_and_may_be_repeated(void **state) {
    (void)state;
    weir_slice one, two, slice = received(0, 100);
    weir_slice_ref(&slice, &one);
    weir_slice_ref(&slice, &two);
    bench_arrive(&b, BUFFER - 100);
    bench_end_dispatch(&b);
    weir_slice_unref(&one);
    is_empty(&one);
    weir_slice_unref(&one); /* must not take two's reference */
    weir__pool_collect(b.pool);
    bench_expect(&b, 0, 0, 0, 1);
    weir_slice_unref(&two);
    weir__pool_collect(b.pool);
    bench_expect(&b, 1, 0, 0, 0);
    weir_slice_unref(NULL);
    bench_close(&b);
}

static void slice_narrowed_in_place_gives_the_whole_buffer_back(void **state) {
    (void)state;
    weir_slice mine, slice = received(0, BUFFER);
    weir_slice_ref(&slice, &mine);
    bench_end_dispatch(&b);
    mine.data += 100;
    mine.size -= 200;
    weir_slice_unref(&mine);
    weir__pool_collect(b.pool);
    bench_expect(&b, 1, 0, 0, 0);
    bench_close(&b);
}

/* ---- sub -------------------------------------------------------------------------------------------- */

static void sub_is_a_part_with_a_reference_of_its_own(void **state) {
    (void)state;
    weir_slice part, slice = received(0, BUFFER);
    test_ok(weir_slice_sub(&slice, 100, 50, &part));
    assert_ptr_equal(part.data, slice.data + 100);
    assert_int_equal(part.size, 50);
    bench_end_dispatch(&b);
    bench_expect(&b, 0, 0, 0, 1);
    assert_int_equal(test_differs(7, 100, part.data, 50), -1);
    weir_slice_unref(&part);
    weir__pool_collect(b.pool);
    bench_expect(&b, 1, 0, 0, 0);
    bench_close(&b);
}

static void sub_reaches_both_ends_and_not_beyond(void **state) {
    (void)state;
    weir_slice part = { 0 }, slice = received(0, 100);
    test_ok(weir_slice_sub(&slice, 0, 100, &part));
    weir_slice_unref(&part);
    test_ok(weir_slice_sub(&slice, 99, 1, &part));
    weir_slice_unref(&part);
    memset(&part, 0xEE, sizeof part);
    weir_slice before = part;
    assert_int_equal(weir_slice_sub(&slice, 99, 2, &part), -ERANGE);
    assert_int_equal(weir_slice_sub(&slice, 101, 0, &part), -ERANGE);
    assert_int_equal(weir_slice_sub(&slice, 100, SIZE_MAX, &part), -ERANGE);
    assert_int_equal(weir_slice_sub(&slice, SIZE_MAX, 1, &part), -ERANGE);
    assert_int_equal(weir_slice_sub(&slice, SIZE_MAX, SIZE_MAX, &part), -ERANGE);
    assert_memory_equal(&before, &part, sizeof part);
    bench_end_dispatch(&b);
    bench_close(&b);
}

static void sub_of_no_bytes_holds_nothing(void **state) {
    (void)state;
    weir_slice part, slice = received(0, BUFFER);
    test_ok(weir_slice_sub(&slice, 100, 0, &part));
    is_empty(&part);
    test_ok(weir_slice_sub(&slice, BUFFER, 0, &part));
    is_empty(&part);
    bench_end_dispatch(&b);
    bench_expect(&b, 1, 0, 0, 0);
    bench_close(&b);
}

static void sub_of_the_empty_slice_is_empty(void **state) {
    (void)state;
    weir_slice part, empty = { 0 };
    memset(&part, 0xEE, sizeof part);
    test_ok(weir_slice_sub(&empty, 0, 0, &part));
    is_empty(&part);
    assert_int_equal(weir_slice_sub(&empty, 0, 1, &part), -ERANGE);
}

static void sub_refuses_uncounted_bytes(void **state) {
    (void)state;
    weir_slice part, text = { (const uint8_t *)"hello", 5, NULL };
    assert_int_equal(weir_slice_sub(&text, 1, 2, &part), -EINVAL);
    assert_int_equal(weir_slice_sub(NULL, 0, 0, &part), -EINVAL);
}

/* ---- keep ------------------------------------------------------------------------------------------- */

static void keep_of_an_eighth_or_more_is_a_reference(void **state) {
    (void)state;
    weir_slice kept, slice = received(100, BUFFER / 8);
    test_ok(weir_slice_keep(&slice, &kept));
    assert_ptr_equal(kept.data, slice.data);
    assert_ptr_equal(kept.owner, slice.owner);
    assert_int_equal(weir__pool_copied(b.pool), 0);
    weir_slice_unref(&kept);
    bench_end_dispatch(&b);
    bench_close(&b);
}

static void keep_of_less_than_an_eighth_is_a_copy(void **state) {
    (void)state;
    weir_slice kept, slice = received(100, BUFFER / 8 - 1);
    test_ok(weir_slice_keep(&slice, &kept));
    assert_ptr_not_equal(kept.owner, slice.owner);
    assert_int_equal(kept.size, BUFFER / 8 - 1);
    assert_int_equal(test_differs(7, 0, kept.data, kept.size), -1);
    assert_int_equal(weir__pool_copied(b.pool), BUFFER / 8 - 1);
    bench_arrive(&b, bench_room(&b));
    bench_end_dispatch(&b);
    bench_expect(&b, 1, 0, 0, 0); /* the buffer went home without it */
    assert_int_equal(test_differs(7, 0, kept.data, kept.size), -1);
    bench_check(&b);
    weir_slice_unref(&kept);
    bench_close(&b);
}

static void keep_of_what_was_copied_out_is_a_reference(void **state) {
    (void)state;
    weir_slice kept, again, slice = received(0, 40);
    test_ok(weir_slice_keep(&slice, &kept));
    test_ok(weir_slice_keep(&kept, &again));
    assert_ptr_equal(again.owner, kept.owner);
    weir_slice_unref(&kept);
    assert_int_equal(test_differs(7, 0, again.data, again.size), -1);
    weir_slice_unref(&again);
    bench_end_dispatch(&b);
    bench_close(&b);
}

static void keep_of_nothing_is_empty(void **state) {
    (void)state;
    weir_slice kept, empty = { 0 };
    memset(&kept, 0xEE, sizeof kept);
    test_ok(weir_slice_keep(&empty, &kept));
    is_empty(&kept);
}

static void keep_refuses_uncounted_bytes(void **state) {
    (void)state;
    weir_slice kept = { 0 }, text = { (const uint8_t *)"hello", 5, NULL };
    assert_int_equal(weir_slice_keep(&text, &kept), -EINVAL);
    assert_int_equal(weir_slice_keep(NULL, &kept), -EINVAL);
    is_empty(&kept);
}

static void keep_that_fails_leaves_its_output_alone(void **state) {
    (void)state;
    weir_slice kept, before, slice = received(0, 40);
    memset(&kept, 0xEE, sizeof kept);
    before = kept;
    atomic_store(&b.memory.fail_at, atomic_load(&b.memory.allocations) + 1);
    assert_int_equal(weir_slice_keep(&slice, &kept), -ENOMEM);
    assert_memory_equal(&kept, &before, sizeof kept);
    bench_check(&b);
    bench_end_dispatch(&b);
    bench_close(&b);
}

static void keep_beyond_the_budget_is_refused(void **state) {
    (void)state;
    weir_slice kept;
    bench_open(&b, true, 1, 1); /* all of it is for receiving */
    bench_publish(&b);
    weir_slice slice = bench_arrive(&b, 40);
    assert_int_equal(weir_slice_keep(&slice, &kept), -ENOBUFS);
    bench_check(&b);
    bench_end_dispatch(&b);
    bench_close(&b);
}

/* ---- new and copy ----------------------------------------------------------------------------------- */

static void new_block_is_writable_to_its_last_byte(void **state) {
    (void)state;
    weir_slice slice;
    uint8_t *data;
    bench_open(&b, true, 8, 1);
    test_ok(weir_slice_new(b.pool, 777, &data, &slice));
    assert_ptr_equal(slice.data, data);
    assert_int_equal(slice.size, 777);
    test_fill(3, 0, data, 777);
    assert_int_equal(test_differs(3, 0, slice.data, 777), -1);
    weir_slice_unref(&slice);
    bench_close(&b);
}

static void copy_is_counted_and_independent(void **state) {
    (void)state;
    char text[] = "hello";
    weir_slice slice;
    bench_open(&b, true, 8, 1);
    test_ok(weir_slice_copy(b.pool, text, 5, &slice));
    memset(text, 'x', 5);
    assert_memory_equal(slice.data, "hello", 5);
    assert_int_equal(weir__pool_copied(b.pool), 5);
    weir_slice_unref(&slice);
    bench_close(&b);
}

static void blocks_want_a_pool_a_size_and_a_place(void **state) {
    (void)state;
    weir_slice slice = { 0 };
    uint8_t *data = NULL;
    bench_open(&b, true, 8, 1);
    assert_int_equal(weir_slice_new(NULL, 1, &data, &slice), -EINVAL);
    assert_int_equal(weir_slice_new(b.pool, 0, &data, &slice), -EINVAL);
    assert_int_equal(weir_slice_new(b.pool, 1, NULL, &slice), -EINVAL);
    assert_int_equal(weir_slice_new(b.pool, 1, &data, NULL), -EINVAL);
    assert_int_equal(weir_slice_copy(b.pool, NULL, 1, &slice), -EINVAL);
    assert_int_equal(weir_slice_copy(NULL, "x", 1, &slice), -EINVAL);
    assert_int_equal(weir_slice_wrap(NULL, "x", 1, NULL, NULL, &slice), -EINVAL);
    assert_int_equal(weir_slice_wrap(b.pool, NULL, 1, NULL, NULL, &slice), -EINVAL);
    assert_int_equal(weir_slice_wrap(b.pool, "x", 0, NULL, NULL, &slice), -EINVAL);
    assert_int_equal(weir_slice_wrap(b.pool, "x", 1, NULL, NULL, NULL), -EINVAL);
    assert_null(data);
    is_empty(&slice);
    bench_close(&b);
}

/* ---- wrap ------------------------------------------------------------------------------------------- */

typedef struct release {
    const void *data;
    size_t size;
    unsigned count;
    weir_slice *slice; /* looked at inside */
    bool was_empty;
} release;

static void released(const void *data, size_t size, void *userdata) {
    release *r = userdata;
    r->data = data;
    r->size = size;
    r->count++;
    if (r->slice != NULL)
        r->was_empty = r->slice->owner == NULL;
}

static void wrapped_memory_is_released_once_by_the_last_unref(void **state) {
    (void)state;
    static const char text[] = "the application's own";
    weir_slice slice, other;
    release r = { 0 };
    bench_open(&b, true, 8, 1);
    test_ok(weir_slice_wrap(b.pool, text, sizeof text, released, &r, &slice));
    assert_ptr_equal(slice.data, text);
    assert_int_equal(bench_stats(&b).used_bytes, 0); /* its bytes are not the pool's */
    test_ok(weir_slice_sub(&slice, 4, 3, &other));
    weir_slice_unref(&slice);
    assert_int_equal(r.count, 0);
    weir_slice_unref(&other);
    assert_int_equal(r.count, 1);
    assert_ptr_equal(r.data, text); /* all of it, whatever part was dropped last */
    assert_int_equal(r.size, sizeof text);
    weir_slice_unref(&other);
    assert_int_equal(r.count, 1);
    bench_close(&b);
}

static void variable_is_empty_before_its_memory_is_released(void **state) {
    (void)state;
    weir_slice slice;
    release r = { .slice = &slice };
    bench_open(&b, true, 8, 1);
    test_ok(weir_slice_wrap(b.pool, "x", 1, released, &r, &slice));
    weir_slice_unref(&slice);
    assert_true(r.was_empty);
    bench_close(&b);
}

static void wrap_without_release_is_for_memory_that_stays(void **state) {
    (void)state;
    weir_slice slice;
    bench_open(&b, true, 8, 1);
    test_ok(weir_slice_wrap(b.pool, "static", 6, NULL, NULL, &slice));
    weir_slice_unref(&slice);
    bench_close(&b);
}

static void wrap_that_fails_never_releases(void **state) {
    (void)state;
    weir_slice slice;
    release r = { 0 };
    bench_open(&b, true, 8, 1);
    atomic_store(&b.memory.fail_at, atomic_load(&b.memory.allocations) + 1);
    assert_int_equal(weir_slice_wrap(b.pool, "x", 1, released, &r, &slice), -ENOMEM);
    bench_close(&b);
    assert_int_equal(r.count, 0);
}

static void wrap_needs_nothing_of_the_budget(void **state) {
    (void)state;
    weir_slice slice;
    bench_open(&b, true, 2, 2);
    bench_publish(&b); /* all of the budget */
    test_ok(weir_slice_wrap(b.pool, "x", 1, NULL, NULL, &slice));
    bench_check(&b);
    weir_slice_unref(&slice);
    bench_close(&b);
}

static void keep_of_wrapped_memory_is_a_reference(void **state) {
    (void)state;
    weir_slice slice, part, kept;
    bench_open(&b, true, 8, 1);
    test_ok(weir_slice_wrap(b.pool, "wrapped", 7, NULL, NULL, &slice));
    test_ok(weir_slice_sub(&slice, 2, 1, &part));
    test_ok(weir_slice_keep(&part, &kept));
    assert_ptr_equal(kept.owner, slice.owner);
    weir_slice_unref(&slice);
    weir_slice_unref(&part);
    weir_slice_unref(&kept);
    bench_close(&b);
}

/* ---- after the loop --------------------------------------------------------------------------------- */

static void slices_outlive_the_close_of_their_pool(void **state) {
    (void)state;
    weir_slice mine, block, wrapped, slice = received(0, 600);
    uint8_t *data;
    release r = { 0 };
    weir_slice_ref(&slice, &mine);
    test_ok(weir_slice_new(b.pool, 100, &data, &block));
    test_fill(8, 0, data, 100);
    test_ok(weir_slice_wrap(b.pool, "wrapped", 7, released, &r, &wrapped));
    weir__pool_close(b.pool);
    assert_int_equal(atomic_load(&b.drops), 0);
    assert_int_equal(test_differs(7, 0, mine.data, 600), -1);
    assert_int_equal(test_differs(8, 0, block.data, 100), -1);
    weir_slice_unref(&mine);
    weir_slice_unref(&wrapped);
    assert_int_equal(r.count, 1);
    assert_int_equal(atomic_load(&b.drops), 0);
    weir_slice_unref(&block);
    bench_is_gone(&b);
}

static void slices_are_made_and_kept_after_the_close(void **state) {
    (void)state;
    weir_slice mine, kept, slice = received(0, 600);
    weir_pool *pool = weir_pool_ref(b.pool);
    weir_slice_ref(&slice, &mine);
    weir__pool_close(b.pool);
    test_ok(weir_slice_sub(&mine, 10, 20, &kept));
    weir_slice_unref(&mine);
    test_ok(weir_slice_keep(&kept, &mine)); /* a copy */
    assert_ptr_not_equal(mine.owner, kept.owner);
    weir_slice_unref(&kept);
    assert_int_equal(bench_stats(&b).buffers_retired, 0);
    assert_int_equal(test_differs(7, 10, mine.data, 20), -1);
    weir_slice_unref(&mine);
    assert_int_equal(bench_stats(&b).used_bytes, 0);
    assert_null(weir_pool_unref(pool));
    bench_is_gone(&b);
}

/* ---- after a fork ----------------------------------------------------------------------------------- */

/* In the child: every call says so, touches no payload and frees nothing. Return: the number of the first that
 * does otherwise. */
static int use_in_the_child(weir_slice *mine) {
    weir_pool_stats stats = { .size = sizeof stats };
    weir_slice slice, before = *mine;
    uint8_t *data;
    uint64_t live = atomic_load(&b.memory.live_blocks), allocations = atomic_load(&b.memory.allocations);
    if (weir_pool_get_stats(b.pool, &stats) != -ECHILD)
        return 1;
    if (weir_slice_new(b.pool, 10, &data, &slice) != -ECHILD)
        return 2;
    if (weir_slice_copy(b.pool, "x", 1, &slice) != -ECHILD)
        return 3;
    if (weir_slice_wrap(b.pool, "x", 1, NULL, NULL, &slice) != -ECHILD)
        return 4;
    if (weir_slice_sub(mine, 0, 1, &slice) != -ECHILD)
        return 5;
    if (weir_slice_keep(mine, &slice) != -ECHILD)
        return 6;
    weir_slice_ref(mine, &slice);
    if (slice.owner != NULL || slice.data != NULL || slice.size != 0)
        return 7;
    weir_slice_unref(mine);
    if (atomic_load(&before.owner->shared) != 2 || before.owner->local != 1)
        return 8;
    if (weir_pool_ref(b.pool) != b.pool || weir_pool_unref(b.pool) != NULL || weir_pool_unref(b.pool) != NULL)
        return 9;
    if (atomic_load(&b.memory.live_blocks) != live || atomic_load(&b.memory.allocations) != allocations)
        return 10;
    return 0;
}

static void slices_and_pool_are_dead_in_the_child_of_a_fork(void **state) {
    (void)state;
    weir_slice mine, slice = received(0, BUFFER / 2);
    int status = -1;
    weir_slice_ref(&slice, &mine);
    pid_t child = fork();
    if (child == 0)
        _exit(use_in_the_child(&mine));
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(test_differs(7, 0, mine.data, mine.size), -1); /* and the parent goes on */
    weir_slice_unref(&mine);
    bench_end_dispatch(&b);
    bench_close(&b);
}

static void pool_takes_null_for_nothing(void **state) {
    (void)state;
    assert_null(weir_pool_ref(NULL));
    assert_null(weir_pool_unref(NULL));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        bench_test(ref_is_the_same_bytes),
        bench_test(ref_of_the_empty_slice_is_empty),
        bench_test(ref_of_uncounted_bytes_is_empty),
        bench_test(unref_empties_the_variable_and_may_be_repeated),
        bench_test(slice_narrowed_in_place_gives_the_whole_buffer_back),
        bench_test(sub_is_a_part_with_a_reference_of_its_own),
        bench_test(sub_reaches_both_ends_and_not_beyond),
        bench_test(sub_of_no_bytes_holds_nothing),
        bench_test(sub_of_the_empty_slice_is_empty),
        bench_test(sub_refuses_uncounted_bytes),
        bench_test(keep_of_an_eighth_or_more_is_a_reference),
        bench_test(keep_of_less_than_an_eighth_is_a_copy),
        bench_test(keep_of_what_was_copied_out_is_a_reference),
        bench_test(keep_of_nothing_is_empty),
        bench_test(keep_refuses_uncounted_bytes),
        bench_test(keep_that_fails_leaves_its_output_alone),
        bench_test(keep_beyond_the_budget_is_refused),
        bench_test(new_block_is_writable_to_its_last_byte),
        bench_test(copy_is_counted_and_independent),
        bench_test(blocks_want_a_pool_a_size_and_a_place),
        bench_test(wrapped_memory_is_released_once_by_the_last_unref),
        bench_test(variable_is_empty_before_its_memory_is_released),
        bench_test(wrap_without_release_is_for_memory_that_stays),
        bench_test(wrap_that_fails_never_releases),
        bench_test(wrap_needs_nothing_of_the_budget),
        bench_test(keep_of_wrapped_memory_is_a_reference),
        bench_test(slices_outlive_the_close_of_their_pool),
        bench_test(slices_are_made_and_kept_after_the_close),
        bench_test(slices_and_pool_are_dead_in_the_child_of_a_fork),
        bench_test(pool_takes_null_for_nothing),
    };
    return cmocka_run_group_tests_name("slice", tests, NULL, NULL);
}
