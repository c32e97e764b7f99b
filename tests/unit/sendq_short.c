/* SPDX-License-Identifier: MIT */
/* Queues while memory is short: what they copy rather than pin, and where the room for a copy comes from. */
#include "memory/sendq.h"
#include "unit/bench.h"

enum { BUDGET = 16, POSTED = 4, SMALL = BUFFER / 8 - 1 }; /* a slice of SMALL pins more than eight times itself */

static bench b;
static weir__range_cache cache;
static weir__sendq queue;
static uint64_t charged; /* a block that stands for what others hold */

static void charge(uint64_t bytes) {
    assert_true(weir__pool_charge(b.pool, bytes));
    charged = bytes;
}

static void open_queue(bool is_short) {
    bench_open(&b, true, BUDGET, POSTED);
    bench_publish(&b);
    cache = (weir__range_cache){ .allocator = &b.memory.allocator, .owner = &b.owner };
    queue = (weir__sendq){ 0 };
    charged = 0;
    if (is_short)
        charge((BUDGET * 3 / 4 - POSTED) * BUFFER + 1);
    assert_true(weir__pool_is_short(b.pool) == is_short);
}

static void close_queue(void) {
    weir__sendq_clear(&queue, &cache);
    bench_end_dispatch(&b);
    assert_int_equal(bench_stats(&b).buffers_retired, 0); /* no reference is left */
    assert_int_equal(bench_stats(&b).block_bytes, charged);
    if (charged > 0)
        weir__pool_uncharge(b.pool, charged);
    weir__range_cache_deinit(&cache);
    bench_close(&b);
}

/* Bytes arrive that have a buffer for themselves, and are added. Return: how many of them were copied. */
static int add_alone(const char *bytes, size_t size) {
    weir_slice slice = bench_put(&b, bytes, size, true);
    return weir__sendq_add(&queue, &cache, b.pool, &slice);
}

/* Buffers that the queue alone holds. */
static unsigned pinned(void) {
    bench_end_dispatch(&b);
    return bench_stats(&b).buffers_retired;
}

static void holds(const char *expected) {
    const weir__range *range = queue.first;
    assert_int_equal(queue.bytes, strlen(expected));
    for (; range != NULL; range = range->next) {
        assert_memory_equal(range->data, expected, range->size);
        expected += range->size;
    }
}

/*
 * A slice pins the whole buffer that it lies in. One peer that did not read, and sent ten bytes between the messages of
 * others, had an echo's queue pin every buffer that those filled, until the budget was spent and all of them were parked
 * for good. While memory is short what is small for its buffer is copied, behind others, and pins nothing.
 */
static void small_slice_behind_others_is_copied_while_memory_is_short(void **state) {
    (void)state;
    open_queue(true);
    assert_int_equal(add_alone("one ", 4), 0); /* into an empty queue: the next send has it */
    assert_int_equal(add_alone("two ", 4), 4);
    assert_int_equal(add_alone("three", 5), 5);
    assert_int_equal(pinned(), 1);
    assert_int_equal(queue.count, 2); /* the copies share a block */
    assert_int_equal(weir__pool_copied(b.pool), 9);
    holds("one two three");
    close_queue();
}

static void small_slice_is_referenced_while_memory_is_not_short(void **state) {
    (void)state;
    open_queue(false);
    charge((BUDGET * 3 / 4 - POSTED) * BUFFER); /* one byte from it */
    assert_int_equal(add_alone("one ", 4), 0);
    assert_int_equal(add_alone("two ", 4), 0);
    assert_int_equal(add_alone("three", 5), 0);
    assert_int_equal(pinned(), 3);
    assert_int_equal(weir__pool_copied(b.pool), 0);
    holds("one two three");
    close_queue();
}

static void slice_of_an_eighth_of_its_buffer_is_referenced_also_while_memory_is_short(void **state) {
    (void)state;
    static const char bytes[BUFFER];
    open_queue(true);
    assert_int_equal(add_alone("one", 3), 0);
    assert_int_equal(add_alone(bytes, SMALL + 1), 0);
    assert_int_equal(pinned(), 2);
    assert_int_equal(add_alone(bytes, SMALL), SMALL);
    assert_int_equal(pinned(), 2);
    close_queue();
}

/* It pins nothing that is not pinned already, whether it lies right behind the last range or not. */
static void slice_of_the_last_ranges_buffer_is_referenced_also_while_memory_is_short(void **state) {
    (void)state;
    open_queue(true);
    weir_slice one = bench_put(&b, "one ", 4, false), two = bench_put(&b, "two ", 4, false);
    bench_put(&b, "another stream's", 16, false);
    weir_slice three = bench_put(&b, "three", 5, true);
    test_ok(weir__sendq_add(&queue, &cache, b.pool, &one));
    test_ok(weir__sendq_add(&queue, &cache, b.pool, &two));
    assert_int_equal(queue.count, 1);
    test_ok(weir__sendq_add(&queue, &cache, b.pool, &three));
    assert_int_equal(pinned(), 1);
    assert_int_equal(weir__pool_copied(b.pool), 0);
    holds("one two three");
    close_queue();
}

/* Not a byte is refused for it: pinning more than it should is better than a gap. */
static void small_slice_that_finds_no_room_for_a_copy_is_referenced(void **state) {
    (void)state;
    open_queue(false);
    charge(BUDGET * 3 / 4 * BUFFER); /* all that blocks may have */
    assert_true(weir__pool_is_short(b.pool));
    assert_int_equal(add_alone("one ", 4), 0);
    assert_int_equal(add_alone("two", 3), 0);
    assert_int_equal(pinned(), 2);
    holds("one two");
    close_queue();
}

/*
 * Buffers that lay idle counted against the budget, and a copied write was refused for their sake until a tick had freed
 * them, half of them each second. Nobody uses them, so they go at once.
 */
static void copy_has_the_room_of_buffers_that_lie_idle(void **state) {
    (void)state;
    static const char bytes[10 * BUFFER];
    weir_slice held[BUDGET];
    bench_open(&b, true, BUDGET, BUDGET);
    assert_int_equal(bench_publish(&b), BUDGET);
    cache = (weir__range_cache){ .allocator = &b.memory.allocator, .owner = &b.owner };
    charged = 0;
    for (unsigned i = 0; i < BUDGET; i++) {
        weir_slice slice = bench_arrive(&b, BUFFER);
        weir_slice_ref(&slice, &held[i]);
    }
    bench_end_dispatch(&b);
    assert_int_equal(weir__sendq_copy(&queue, &cache, b.pool, "x", 1), -ENOBUFS); /* they are in use still */
    bench_end_dispatch(&b);
    for (unsigned i = 0; i < BUDGET; i++)
        weir_slice_unref(&held[i]);
    weir__pool_collect(b.pool);
    bench_expect(&b, BUDGET, 0, 0, 0);
    test_ok(weir__sendq_copy(&queue, &cache, b.pool, bytes, sizeof bytes));
    bench_check(&b);
    assert_int_equal(queue.bytes, sizeof bytes);
    assert_int_equal(bench_stats(&b).buffers_idle, 0);
    close_queue();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        bench_test(small_slice_behind_others_is_copied_while_memory_is_short),
        bench_test(small_slice_is_referenced_while_memory_is_not_short),
        bench_test(slice_of_an_eighth_of_its_buffer_is_referenced_also_while_memory_is_short),
        bench_test(slice_of_the_last_ranges_buffer_is_referenced_also_while_memory_is_short),
        bench_test(small_slice_that_finds_no_room_for_a_copy_is_referenced),
        bench_test(copy_has_the_room_of_buffers_that_lie_idle),
    };
    return cmocka_run_group_tests_name("sendq-short", tests, NULL, NULL);
}
