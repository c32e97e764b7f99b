/* SPDX-License-Identifier: MIT */
/* Queues that are taken back to where they ended, and whose first range is taken in parts. */
#include "memory/sendq.h"
#include "unit/bench.h"

static bench b;
static weir__range_cache cache;
static weir__sendq queue;

static void open_queue(void) {
    bench_open(&b, true, 64, 4);
    bench_publish(&b);
    cache = (weir__range_cache){ .allocator = &b.memory.allocator, .owner = &b.owner };
    queue = (weir__sendq){ 0 };
}

static void close_queue(void) {
    weir__sendq_clear(&queue, &cache);
    assert_int_equal(queue.count, 0);
    bench_end_dispatch(&b);
    assert_int_equal(bench_stats(&b).buffers_retired, 0); /* no reference is left */
    assert_int_equal(bench_stats(&b).block_bytes, 0);
    weir__range_cache_deinit(&cache);
    bench_close(&b);
}

static void copy(const char *text) {
    test_ok(weir__sendq_copy(&queue, &cache, b.pool, text, strlen(text)));
}

static void push(const weir_slice *slice) {
    test_ok(weir__sendq_push(&queue, &cache, slice));
}

/* It is these bytes, and what it says of itself is so. */
static void holds_bytes(const uint8_t *expected, size_t size) {
    uint64_t bytes = 0;
    uint32_t count = 0;
    const weir__range *last = NULL;
    assert_int_equal(queue.bytes, size);
    for (const weir__range *range = queue.first; range != NULL; last = range, range = range->next) {
        assert_true(range->size > 0 && bytes + range->size <= size);
        assert_memory_equal(range->data, expected + bytes, range->size);
        bytes += range->size;
        count++;
    }
    assert_ptr_equal(queue.last, last);
    assert_int_equal(bytes, size);
    assert_int_equal(queue.count, count);
}

static void holds(const char *expected) {
    holds_bytes((const uint8_t *)expected, strlen(expected));
}

static unsigned free_ranges(void) {
    unsigned count = 0;
    for (const weir__range *range = cache.free; range != NULL; range = range->next)
        count++;
    return count;
}

static void rewind_to(const weir__sendq_mark *mark) {
    weir__sendq_rewind(&queue, &cache, mark);
    bench_check(&b);
}

/* ---- back to a mark ------------------------------------------------------------------------------------ */

static void a_queue_that_was_empty_is_empty_again(void **state) {
    (void)state;
    open_queue();
    weir__sendq_mark mark = weir__sendq_get_mark(&queue);
    rewind_to(&mark);
    holds("");
    copy("one");
    weir_slice slice = bench_put(&b, "two", 3, true);
    push(&slice);
    unsigned ranges = free_ranges();
    rewind_to(&mark);
    holds("");
    assert_int_equal(free_ranges(), ranges + 2);
    assert_int_equal(bench_stats(&b).block_bytes, 0);
    copy("again");
    holds("again");
    close_queue();
}

/* Copies that went behind others into their block: the room is there again, and not lost in between. */
static void copies_in_the_same_block_are_taken_back_with_their_room(void **state) {
    (void)state;
    open_queue();
    copy("one");
    const uint8_t *data = queue.last->data;
    weir__sendq_mark mark = weir__sendq_get_mark(&queue);
    copy("two");
    copy("three");
    assert_int_equal(queue.count, 1);
    rewind_to(&mark);
    holds("one");
    copy("four");
    holds("onefour");
    assert_int_equal(queue.count, 1);
    assert_ptr_equal(queue.last->data, data);
    close_queue();
}

/* The first part of a copy fills its predecessor's block, the rest has a block of its own: both are taken back. */
static void a_copy_over_two_blocks_is_taken_back_from_both(void **state) {
    (void)state;
    static char big[5000];
    memset(big, 'x', sizeof big - 1);
    open_queue();
    copy("one");
    uint64_t before = bench_stats(&b).block_bytes;
    weir__sendq_mark mark = weir__sendq_get_mark(&queue);
    copy(big);
    assert_int_equal(queue.count, 2);
    rewind_to(&mark);
    holds("one");
    assert_int_equal(bench_stats(&b).block_bytes, before);
    copy("two");
    holds("onetwo");
    assert_int_equal(queue.count, 1);
    close_queue();
}

static void a_neighbour_that_extended_the_last_range_is_taken_back(void **state) {
    (void)state;
    open_queue();
    weir_slice one = bench_put(&b, "one", 3, false), two = bench_put(&b, "two", 3, true);
    push(&one);
    weir__sendq_mark mark = weir__sendq_get_mark(&queue);
    push(&two);
    assert_int_equal(queue.count, 1);
    rewind_to(&mark);
    holds("one");
    push(&two);
    holds("onetwo");
    assert_int_equal(queue.count, 1);
    close_queue();
}

/* The range that the kernel has begun to send lies before the mark, shorter than it was. */
static void what_was_partly_sent_stays_as_it_is(void **state) {
    (void)state;
    open_queue();
    copy("alpha");
    weir__sendq_advance(&queue, &cache, 2);
    weir__sendq_mark mark = weir__sendq_get_mark(&queue);
    copy("beta");
    weir_slice slice = bench_put(&b, "gamma", 5, true);
    push(&slice);
    holds("phabetagamma");
    rewind_to(&mark);
    holds("pha");
    copy("se");
    holds("phase");
    close_queue();
}

static void write_more(const void *data, size_t size, void *userdata) {
    (void)data, (void)size;
    ++*(unsigned *)userdata;
    copy("more ");
}

/* The queue is in order before anything is dropped: a release function may write. */
static void what_is_taken_back_may_be_released_and_that_may_write(void **state) {
    (void)state;
    unsigned releases = 0;
    weir_slice first, second;
    open_queue();
    copy("one ");
    weir__sendq_mark mark = weir__sendq_get_mark(&queue);
    test_ok(weir_slice_wrap(b.pool, "first", 5, write_more, &releases, &first));
    test_ok(weir_slice_wrap(b.pool, "second", 6, write_more, &releases, &second));
    push(&first);
    push(&second);
    weir_slice_unref(&first);
    weir_slice_unref(&second);
    rewind_to(&mark);
    assert_int_equal(releases, 2);
    holds("one more more ");
    close_queue();
}

/* ---- parts --------------------------------------------------------------------------------------------- */

static void take(size_t max, const char *expected) {
    weir_slice slice;
    assert_true(weir__sendq_take_part(&queue, &cache, max, &slice));
    assert_int_equal(slice.size, strlen(expected));
    assert_memory_equal(slice.data, expected, slice.size);
    weir__block_unref_by(slice.owner, &b.owner);
    bench_check(&b);
}

static void no_more_is_taken_than_allowed_and_no_more_than_one_range(void **state) {
    (void)state;
    weir_slice slice;
    open_queue();
    assert_false(weir__sendq_take_part(&queue, &cache, 1, &slice));
    weir_slice one = bench_put(&b, "alpha", 5, true), two = bench_put(&b, "beta", 4, true);
    push(&one);
    push(&two);
    take(1, "a");
    holds("lphabeta");
    take(3, "lph");
    holds("abeta");
    take(1, "a"); /* exactly what is left of it */
    holds("beta");
    assert_int_equal(queue.count, 1);
    take(SIZE_MAX, "beta");
    holds("");
    assert_false(weir__sendq_take_part(&queue, &cache, SIZE_MAX, &slice));
    close_queue();
}

static void each_part_holds_the_memory(void **state) {
    (void)state;
    weir_slice parts[2];
    open_queue();
    weir_slice slice = bench_put(&b, "alpha", 5, true);
    push(&slice);
    bench_end_dispatch(&b);
    assert_true(weir__sendq_take_part(&queue, &cache, 2, &parts[0]));
    assert_true(weir__sendq_take_part(&queue, &cache, 3, &parts[1]));
    weir__block_unref_by(parts[1].owner, &b.owner);
    weir__pool_collect(b.pool);
    assert_int_equal(bench_stats(&b).buffers_retired, 1);
    assert_memory_equal(parts[0].data, "al", 2);
    weir__block_unref_by(parts[0].owner, &b.owner);
    weir__pool_collect(b.pool);
    assert_int_equal(bench_stats(&b).buffers_retired, 0);
    close_queue();
}

/* ---- at random ----------------------------------------------------------------------------------------- */

enum { MOST = 60000 };

static uint8_t model[1 << 20]; /* what is queued lies from begin to end */
static size_t begin, end;

/* Something of some size, in one of the ways there are, if there is room for it. */
static void append_something(uint64_t *random) {
    static const char *const seeds = "any bytes that differ from their neighbours";
    uint8_t bytes[3000];
    weir_slice slice;
    size_t size = 1 + test_random(random) % (test_random(random) % 4 == 0 ? sizeof bytes : 40);
    test_fill((uint64_t)seeds[test_random(random) % 40], end, bytes, size);
    if (test_random(random) % 2 == 0) {
        if (weir__sendq_copy(&queue, &cache, b.pool, bytes, size) < 0)
            return;
    } else {
        if (weir_slice_copy(b.pool, bytes, size, &slice) < 0)
            return;
        weir_slice half = { slice.data, size / 2, slice.owner },
                   rest = { slice.data + size / 2, size - size / 2, slice.owner };
        if (half.size > 0)
            push(&half);
        push(&rest); /* which extends it */
        weir_slice_unref(&slice);
    }
    memcpy(model + end, bytes, size);
    end += size;
}

static void take_something(uint64_t *random) {
    weir_slice slice;
    size_t max = 1 + test_random(random) % 2000;
    if (!weir__sendq_take_part(&queue, &cache, max, &slice)) {
        assert_int_equal(begin, end);
        return;
    }
    assert_true(slice.size > 0 && slice.size <= max);
    assert_memory_equal(slice.data, model + begin, slice.size);
    begin += slice.size;
    weir__block_unref_by(slice.owner, &b.owner);
}

static void try_and_take_back(uint64_t *random) {
    weir__sendq_mark mark = weir__sendq_get_mark(&queue);
    size_t kept = end, size = queue.last != NULL ? queue.last->size : 0;
    uint64_t block_bytes = bench_stats(&b).block_bytes;
    uint32_t count = queue.count;
    for (uint64_t left = test_random(random) % 5; left > 0; left--)
        append_something(random);
    rewind_to(&mark);
    end = kept;
    assert_int_equal(queue.count, count);
    assert_int_equal(queue.last != NULL ? queue.last->size : 0, size);
    assert_int_equal(bench_stats(&b).block_bytes, block_bytes);
}

static void random_steps_leave_what_a_plain_array_has(void **state) {
    (void)state;
    uint64_t random = 12, rewinds = 0;
    open_queue();
    begin = end = 0;
    for (unsigned step = 0; step < 4000 && end + 20000 < sizeof model; step++) {
        uint64_t how = test_random(&random) % 8;
        if (how < 3 && end - begin < MOST) {
            append_something(&random);
        } else if (how < 5) {
            take_something(&random);
        } else if (how < 6) {
            uint64_t bytes = test_random(&random) % (end - begin + 1);
            bytes = bytes < 1000 ? bytes : 1000;
            weir__sendq_advance(&queue, &cache, bytes);
            begin += bytes;
        } else {
            try_and_take_back(&random);
            rewinds++;
        }
        holds_bytes(model + begin, end - begin);
        bench_check(&b);
    }
    assert_true(begin > 100000 && rewinds > 500);
    close_queue();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        bench_test(a_queue_that_was_empty_is_empty_again),
        bench_test(copies_in_the_same_block_are_taken_back_with_their_room),
        bench_test(a_copy_over_two_blocks_is_taken_back_from_both),
        bench_test(a_neighbour_that_extended_the_last_range_is_taken_back),
        bench_test(what_was_partly_sent_stays_as_it_is),
        bench_test(what_is_taken_back_may_be_released_and_that_may_write),
        bench_test(no_more_is_taken_than_allowed_and_no_more_than_one_range),
        bench_test(each_part_holds_the_memory),
        bench_test(random_steps_leave_what_a_plain_array_has),
    };
    return cmocka_run_group_tests_name("sendq-mark", tests, NULL, NULL);
}
