/* SPDX-License-Identifier: MIT */
/* Queues of bytes: what merges, what is copied, what goes out, and whose references they hold. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

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

static void is_queue_empty(void) {
    assert_null(queue.first);
    assert_null(queue.last);
    assert_int_equal(queue.bytes, 0);
    assert_int_equal(queue.count, 0);
}

static void close_queue(void) {
    weir__sendq_clear(&queue, &cache);
    is_queue_empty();
    bench_end_dispatch(&b);
    assert_int_equal(bench_stats(&b).buffers_retired, 0); /* no reference is left */
    assert_int_equal(bench_stats(&b).block_bytes, 0);
    weir__range_cache_deinit(&cache);
    bench_close(&b);
}

/* The whole queue as one piece. Return: its length. */
static size_t contents(char *text, size_t size) {
    struct iovec vectors[256];
    unsigned count = weir__sendq_gather(&queue, vectors, 256, SIZE_MAX);
    size_t length = 0;
    assert_int_equal(count, queue.count);
    for (unsigned i = 0; i < count; i++) {
        assert_true(length + vectors[i].iov_len <= size);
        memcpy(text + length, vectors[i].iov_base, vectors[i].iov_len);
        length += vectors[i].iov_len;
    }
    assert_int_equal(length, queue.bytes);
    return length;
}

static void holds(const char *expected) {
    char text[4096];
    size_t length = contents(text, sizeof text);
    assert_int_equal(length, strlen(expected));
    assert_memory_equal(text, expected, length);
}

static void copy(const char *text) {
    test_ok(weir__sendq_copy(&queue, &cache, b.pool, text, strlen(text)));
}

static void push(const weir_slice *slice) {
    test_ok(weir__sendq_push(&queue, &cache, slice));
}

static weir_slice text_block(const char *text) {
    weir_slice slice;
    test_ok(weir_slice_copy(b.pool, text, strlen(text), &slice));
    return slice;
}

/* ---- references ------------------------------------------------------------------------------------- */

static void pushed_slice_keeps_its_buffer(void **state) {
    (void)state;
    open_queue();
    weir_slice slice = bench_arrive(&b, BUFFER);
    push(&slice);
    bench_end_dispatch(&b);
    assert_int_equal(bench_stats(&b).buffers_retired, 1);
    weir__sendq_advance(&queue, &cache, BUFFER);
    weir__pool_collect(b.pool);
    assert_int_equal(bench_stats(&b).buffers_retired, 0);
    is_queue_empty();
    close_queue();
}

static void neighbours_in_one_buffer_become_one_range(void **state) {
    (void)state;
    open_queue();
    weir_slice first = bench_put(&b, "one ", 4, false), second = bench_put(&b, "two ", 4, false);
    weir_slice third = bench_put(&b, "three", 5, false);
    push(&first);
    push(&second);
    push(&third);
    assert_int_equal(queue.count, 1);
    holds("one two three");
    close_queue();
}

static void neighbours_with_a_gap_stay_apart(void **state) {
    (void)state;
    open_queue();
    weir_slice first = bench_put(&b, "one ", 4, false);
    bench_put(&b, "another stream's", 16, false);
    weir_slice third = bench_put(&b, "three", 5, false);
    push(&first);
    push(&third);
    assert_int_equal(queue.count, 2);
    push(&first); /* behind it again: not a neighbour either */
    assert_int_equal(queue.count, 3);
    holds("one threeone ");
    close_queue();
}

/* Adjacent addresses in two different blocks: one reference would not hold both. */
static void adjacent_bytes_of_two_owners_stay_apart(void **state) {
    (void)state;
    static const char text[] = "leftright";
    weir_slice left, right;
    open_queue();
    test_ok(weir_slice_wrap(b.pool, text, 4, NULL, NULL, &left));
    test_ok(weir_slice_wrap(b.pool, text + 4, 5, NULL, NULL, &right));
    push(&left);
    push(&right);
    assert_int_equal(queue.count, 2);
    weir_slice_unref(&left);
    weir_slice_unref(&right);
    holds("leftright");
    close_queue();
}

static void merged_range_holds_its_buffer_to_its_last_byte(void **state) {
    (void)state;
    open_queue();
    weir_slice first = bench_arrive(&b, 100), second = bench_arrive(&b, BUFFER - 100);
    push(&first);
    push(&second);
    bench_end_dispatch(&b);
    weir__sendq_advance(&queue, &cache, BUFFER - 1);
    weir__pool_collect(b.pool);
    assert_int_equal(bench_stats(&b).buffers_retired, 1);
    weir__sendq_advance(&queue, &cache, 1);
    weir__pool_collect(b.pool);
    assert_int_equal(bench_stats(&b).buffers_retired, 0);
    close_queue();
}

static void own_block_is_counted_locally_and_another_loops_shared(void **state) {
    (void)state;
    weir__range_cache foreign;
    weir__sendq theirs = { 0 };
    int other_loop;
    open_queue();
    foreign = (weir__range_cache){ .allocator = &b.memory.allocator, .owner = &other_loop };
    weir_slice slice = text_block("sent to both");
    assert_int_equal(atomic_load(&slice.owner->shared), 1);
    test_ok(weir__sendq_push(&theirs, &foreign, &slice));
    assert_int_equal(atomic_load(&slice.owner->shared), 2);
    assert_int_equal(slice.owner->local, 0);
    push(&slice);
    assert_int_equal(slice.owner->local, 1);
    assert_int_equal(atomic_load(&slice.owner->shared), 3);
    weir__block_ref_local(slice.owner);
    assert_int_equal(atomic_load(&slice.owner->shared), 3); /* all local ones are one */
    weir__block_unref_local(slice.owner);
    weir__sendq_clear(&queue, &cache);
    assert_int_equal(atomic_load(&slice.owner->shared), 2);
    weir_slice kept = slice;
    weir_slice_unref(&slice);
    assert_int_equal(atomic_load(&kept.owner->shared), 1);
    assert_memory_equal(theirs.first->data, "sent to both", 12);
    weir__sendq_clear(&theirs, &foreign);
    weir__range_cache_deinit(&foreign);
    close_queue();
}

/* ---- copies ----------------------------------------------------------------------------------------- */

static void small_copies_share_a_block(void **state) {
    (void)state;
    open_queue();
    copy("many ");
    uint64_t used = bench_stats(&b).block_bytes;
    copy("small ");
    copy("writes");
    assert_int_equal(queue.count, 1);
    assert_int_equal(bench_stats(&b).block_bytes, used);
    assert_int_equal(weir__pool_copied(b.pool), 17);
    holds("many small writes");
    close_queue();
}

static void copy_fills_the_tail_and_goes_on_in_a_new_block(void **state) {
    (void)state;
    char text[700], again[1400];
    open_queue();
    test_fill(1, 0, text, 300);
    test_ok(weir__sendq_copy(&queue, &cache, b.pool, text, 300));
    test_fill(1, 300, text, 700);
    test_ok(weir__sendq_copy(&queue, &cache, b.pool, text, 700));
    assert_int_equal(queue.count, 2);
    assert_int_equal(queue.first->size, 512); /* the first block is full */
    assert_int_equal(contents(again, sizeof again), 1000);
    assert_int_equal(test_differs(1, 0, again, 1000), -1);
    close_queue();
}

static void copy_after_a_slice_does_not_write_into_it(void **state) {
    (void)state;
    open_queue();
    weir_slice block = text_block("the application's");
    push(&block);
    copy(" ours");
    assert_int_equal(queue.count, 2);
    holds("the application's ours");
    assert_memory_equal(block.data, "the application's", 17);
    weir_slice_unref(&block);
    close_queue();
}

static void copy_goes_on_behind_what_was_partly_sent(void **state) {
    (void)state;
    open_queue();
    copy("hello ");
    weir__sendq_advance(&queue, &cache, 3);
    copy("world");
    assert_int_equal(queue.count, 1);
    holds("lo world");
    close_queue();
}

static void large_copy_is_one_block_of_its_size(void **state) {
    (void)state;
    static char text[20000], again[20000];
    open_queue();
    test_fill(2, 0, text, sizeof text);
    test_ok(weir__sendq_copy(&queue, &cache, b.pool, text, sizeof text));
    assert_int_equal(queue.count, 1);
    assert_int_equal(contents(again, sizeof again), sizeof text);
    assert_int_equal(test_differs(2, 0, again, sizeof again), -1);
    close_queue();
}

static void copy_of_nothing_changes_nothing(void **state) {
    (void)state;
    open_queue();
    test_ok(weir__sendq_copy(&queue, &cache, b.pool, "", 0));
    is_queue_empty();
    close_queue();
}

/* A write into a nearly spent budget takes no more than it needs. */
static void copy_takes_its_exact_size_when_no_more_is_to_be_had(void **state) {
    (void)state;
    weir_slice most;
    uint8_t *data;
    open_queue();
    size_t size = 48 * BUFFER - 300; /* of three quarters of 64 buffers, a little is left */
    test_ok(weir_slice_new(b.pool, size, &data, &most));
    assert_true(48 * BUFFER - bench_stats(&b).block_bytes < 512);
    copy("x");
    holds("x");
    char rest[512] = { 0 };
    assert_int_equal(weir__sendq_copy(&queue, &cache, b.pool, rest, sizeof rest), -ENOBUFS);
    holds("x");
    weir_slice_unref(&most);
    close_queue();
}

/* ---- all or nothing --------------------------------------------------------------------------------- */

static void refused_copy_changes_nothing(void **state) {
    (void)state;
    static char text[5000];
    open_queue();
    copy("before");
    for (unsigned i = 0; i < 125;
         i++) { /* with the tail all ranges of a slab, so that the next one needs memory */
        weir_slice slice = text_block("x");
        push(&slice);
        weir_slice_unref(&slice);
    }
    copy("tail");
    char expected[512], now[512];
    size_t length = contents(expected, sizeof expected);
    uint64_t blocks = bench_stats(&b).block_bytes, copied = weir__pool_copied(b.pool);
    uint32_t count = queue.count;
    for (unsigned nth = 1; nth <= 2; nth++) { /* the block, the range */
        uint64_t failed = atomic_load(&b.memory.failed);
        atomic_store(&b.memory.fail_at, atomic_load(&b.memory.allocations) + nth);
        assert_int_equal(weir__sendq_copy(&queue, &cache, b.pool, text, sizeof text), -ENOMEM);
        assert_int_equal(atomic_load(&b.memory.failed), failed + 1);
        assert_int_equal(contents(now, sizeof now), length);
        assert_memory_equal(now, expected, length);
        assert_int_equal(queue.count, count);
        assert_int_equal(bench_stats(&b).block_bytes, blocks);
        assert_int_equal(weir__pool_copied(b.pool), copied);
        bench_check(&b);
    }
    close_queue();
}

static void copy_beyond_the_budget_changes_nothing(void **state) {
    (void)state;
    static char text[64 * BUFFER];
    open_queue();
    copy("before");
    assert_int_equal(weir__sendq_copy(&queue, &cache, b.pool, text, sizeof text), -ENOBUFS);
    holds("before");
    bench_check(&b);
    close_queue();
}

static void refused_push_takes_no_reference(void **state) {
    (void)state;
    open_queue();
    weir_slice block = text_block("slice");
    atomic_store(&b.memory.fail_at, atomic_load(&b.memory.allocations) + 1);
    assert_int_equal(weir__sendq_push(&queue, &cache, &block), -ENOMEM);
    is_queue_empty();
    assert_int_equal(block.owner->local, 0);
    weir_slice_unref(&block);
    close_queue();
}

static void ranges_are_used_again_without_allocating(void **state) {
    (void)state;
    open_queue();
    weir_slice block = text_block("slice");
    push(&block);
    weir__sendq_clear(&queue, &cache);
    uint64_t allocations = atomic_load(&b.memory.allocations);
    for (unsigned round = 0; round < 1000; round++) {
        push(&block);
        push(&block);
        weir__sendq_advance(&queue, &cache, 10);
    }
    assert_int_equal(atomic_load(&b.memory.allocations), allocations);
    weir_slice_unref(&block);
    close_queue();
}

/* ---- going out -------------------------------------------------------------------------------------- */

static void fill_with_words(void) {
    static const char *const words[] = { "alpha", "be", "gamma", "d", "epsilon" };
    open_queue();
    for (unsigned i = 0; i < 5; i++) {
        weir_slice slice = text_block(words[i]);
        push(&slice);
        weir_slice_unref(&slice);
    }
    assert_int_equal(queue.count, 5);
}

static void advance_stops_inside_and_at_the_borders_of_ranges(void **state) {
    (void)state;
    fill_with_words();
    weir__sendq_advance(&queue, &cache, 0);
    holds("alphabegammadepsilon");
    weir__sendq_advance(&queue, &cache, 3);
    holds("habegammadepsilon");
    assert_int_equal(queue.count, 5);
    weir__sendq_advance(&queue, &cache, 2); /* up to the border */
    holds("begammadepsilon");
    assert_int_equal(queue.count, 4);
    weir__sendq_advance(&queue, &cache, 9); /* over two borders and one byte on */
    holds("psilon");
    assert_int_equal(queue.count, 1);
    weir__sendq_advance(&queue, &cache, 6);
    is_queue_empty();
    close_queue();
}

static void every_split_of_the_queue_keeps_the_rest(void **state) {
    (void)state;
    static const char all[] = "alphabegammadepsilon";
    for (unsigned first = 0; first <= 20; first++)
        for (unsigned second = 0; first + second <= 20; second++) {
            fill_with_words();
            weir__sendq_advance(&queue, &cache, first);
            weir__sendq_advance(&queue, &cache, second);
            holds(all + first + second);
            close_queue();
        }
}

static void gather_stops_at_its_number_of_vectors(void **state) {
    (void)state;
    struct iovec vectors[5];
    fill_with_words();
    assert_int_equal(weir__sendq_gather(&queue, vectors, 0, SIZE_MAX), 0);
    assert_int_equal(weir__sendq_gather(&queue, vectors, 2, SIZE_MAX), 2);
    assert_memory_equal(vectors[0].iov_base, "alpha", 5);
    assert_int_equal(vectors[1].iov_len, 2);
    assert_int_equal(weir__sendq_gather(&queue, vectors, 5, SIZE_MAX), 5);
    holds("alphabegammadepsilon");
    close_queue();
}

static void gather_stops_at_its_number_of_bytes(void **state) {
    (void)state;
    struct iovec vectors[5];
    fill_with_words();
    assert_int_equal(weir__sendq_gather(&queue, vectors, 5, 0), 0);
    assert_int_equal(weir__sendq_gather(&queue, vectors, 5, 3), 1);
    assert_int_equal(vectors[0].iov_len, 3);
    assert_int_equal(weir__sendq_gather(&queue, vectors, 5, 7), 2); /* exactly at a border */
    assert_int_equal(vectors[1].iov_len, 2);
    assert_int_equal(weir__sendq_gather(&queue, vectors, 5, 8), 3);
    assert_int_equal(vectors[2].iov_len, 1);
    assert_int_equal(vectors[0].iov_len, 5);
    close_queue();
}

static void take_hands_over_the_reference(void **state) {
    (void)state;
    weir_slice taken;
    fill_with_words();
    assert_true(weir__sendq_take(&queue, &cache, &taken));
    assert_memory_equal(taken.data, "alpha", 5);
    assert_int_equal(taken.size, 5);
    holds("begammadepsilon");
    weir__sendq_clear(&queue, &cache);
    assert_memory_equal(taken.data, "alpha", 5);
    assert_true(bench_stats(&b).block_bytes > 0);
    weir__block_unref_by(taken.owner, &b.owner);
    assert_false(weir__sendq_take(&queue, &cache, &taken));
    close_queue();
}

/* ---- releasing -------------------------------------------------------------------------------------- */

static void write_more(const void *data, size_t size, void *userdata) {
    (void)data, (void)size;
    if (--*(unsigned *)userdata > 0)
        copy("more ");
}

static void released(const void *data, size_t size, void *userdata) {
    (void)data, (void)size;
    ++*(unsigned *)userdata;
}

static void wrapped_memory_is_released_when_its_last_byte_is_sent(void **state) {
    (void)state;
    unsigned count = 0;
    weir_slice slice;
    open_queue();
    test_ok(weir_slice_wrap(b.pool, "wrapped", 7, released, &count, &slice));
    push(&slice);
    weir_slice_unref(&slice);
    weir__sendq_advance(&queue, &cache, 6);
    assert_int_equal(count, 0);
    weir__sendq_advance(&queue, &cache, 1);
    assert_int_equal(count, 1);
    close_queue();
}

static void release_may_write_to_the_queue_that_drops_it(void **state) {
    (void)state;
    unsigned left = 2;
    weir_slice slice;
    open_queue();
    test_ok(weir_slice_wrap(b.pool, "wrapped", 7, write_more, &left, &slice));
    push(&slice);
    weir_slice_unref(&slice);
    copy("behind ");
    weir__sendq_advance(&queue, &cache, 8);
    holds("ehind more ");
    close_queue();
}

static void clear_ends_also_when_releases_write(void **state) {
    (void)state;
    unsigned left = 2;
    weir_slice slice;
    open_queue();
    test_ok(weir_slice_wrap(b.pool, "wrapped", 7, write_more, &left, &slice));
    push(&slice);
    weir_slice_unref(&slice);
    weir__sendq_clear(&queue, &cache);
    is_queue_empty();
    close_queue();
}

static pid_t child;

static void fork_at_first(const void *data, size_t size, void *userdata) {
    unsigned *count = userdata;
    (void)data, (void)size;
    if (++*count > 1)
        return;
    child = fork();
    if (child == 0)
        signal(SIGSEGV, SIG_DFL); /* cmocka would go on with the next test */
}

/* One releases its memory, forks there, and is back in both: the child released the next one's, which is the parent's. */
static void release_that_forks_is_the_last_one_in_its_child(void **state) {
    (void)state;
    for (int is_sent = 0; is_sent < 2; is_sent++) {
        unsigned count = 0;
        int status = -1;
        open_queue();
        child = -1;
        for (int i = 0; i < 3; i++) {
            weir_slice slice;
            test_ok(weir_slice_wrap(b.pool, "wrapped", 7, fork_at_first, &count, &slice));
            push(&slice);
            weir_slice_unref(&slice);
        }
        if (is_sent)
            weir__sendq_advance(&queue, &cache, 21);
        else
            weir__sendq_clear(&queue, &cache);
        if (child == 0)
            _exit(count != 1);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
        assert_int_equal(count, 3);
        close_queue();
    }
}

/* ---- at random -------------------------------------------------------------------------------------- */

static void random_queue_is_the_bytes_in_order(void **state) {
    (void)state;
    uint64_t random = 4, in = 0, out = 0;
    uint8_t bytes[3000];
    struct iovec vectors[8];
    open_queue();
    for (unsigned step = 0; step < 5000; step++) {
        size_t size = 1 + test_random(&random) % (test_random(&random) % 4 == 0 ? sizeof bytes : 40);
        test_fill(9, in, bytes, size);
        uint64_t how = test_random(&random) % 4;
        if (how == 0) {
            in += weir__sendq_copy(&queue, &cache, b.pool, bytes, size) == 0 ? size : 0;
        } else if (how == 1) {
            weir_slice slice;
            if (weir_slice_copy(b.pool, bytes, size, &slice) == 0) {
                push(&slice);
                weir_slice_unref(&slice);
                in += size;
            }
        } else {
            unsigned count = weir__sendq_gather(&queue, vectors, 1 + test_random(&random) % 8, size);
            uint64_t position = out, sent = 0;
            for (unsigned i = 0; i < count; i++) {
                assert_int_equal(test_differs(9, position, vectors[i].iov_base, vectors[i].iov_len), -1);
                position += vectors[i].iov_len;
            }
            assert_true(position - out <= size);
            if (position > out)
                sent = 1 + test_random(&random) % (position - out);
            weir__sendq_advance(&queue, &cache, sent);
            out += sent;
        }
        assert_int_equal(queue.bytes, in - out);
        assert_true((queue.count == 0) == (in == out));
        bench_check(&b);
    }
    assert_true(out > 10000);
    close_queue();
}

/* A burst over many connections made room for a range of each, which was held for as long as the loop was there. */
static void ranges_go_when_none_was_used_from_one_trim_to_the_next(void **state) {
    (void)state;
    open_queue();
    uint64_t blocks = atomic_load(&b.memory.live_blocks);
    weir_slice slice = text_block("text");
    for (int i = 0; i < 300; i++) {
        weir__range *range = weir__range_take(&cache);
        assert_non_null(range);
        *range = (weir__range){ .data = slice.data, .size = slice.size, .owner = slice.owner };
        weir__block_ref_by(slice.owner, cache.owner);
        weir__sendq_insert(&queue, queue.last, range);
    }
    weir_slice_unref(&slice);
    assert_int_equal(atomic_load(&b.memory.live_blocks), blocks + 1 + 3); /* slabs, and what they refer to */
    weir__range_cache_trim(&cache);
    weir__range_cache_trim(&cache);
    assert_int_equal(queue.count, 300); /* in use */
    weir__sendq_advance(&queue, &cache, 299 * 4);
    weir__range_cache_trim(&cache);
    assert_int_equal(atomic_load(&b.memory.live_blocks), blocks + 1 + 3);
    weir__sendq_advance(&queue, &cache, 4);
    copy("more");
    weir__sendq_clear(&queue, &cache);
    weir__range_cache_trim(&cache); /* one was used a moment ago */
    assert_int_equal(atomic_load(&b.memory.live_blocks), blocks + 3);
    weir__range_cache_trim(&cache);
    assert_int_equal(atomic_load(&b.memory.live_blocks), blocks);
    copy("and more");
    holds("and more");
    close_queue();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        bench_test(pushed_slice_keeps_its_buffer),
        bench_test(neighbours_in_one_buffer_become_one_range),
        bench_test(neighbours_with_a_gap_stay_apart),
        bench_test(adjacent_bytes_of_two_owners_stay_apart),
        bench_test(merged_range_holds_its_buffer_to_its_last_byte),
        bench_test(own_block_is_counted_locally_and_another_loops_shared),
        bench_test(small_copies_share_a_block),
        bench_test(copy_fills_the_tail_and_goes_on_in_a_new_block),
        bench_test(copy_after_a_slice_does_not_write_into_it),
        bench_test(copy_goes_on_behind_what_was_partly_sent),
        bench_test(large_copy_is_one_block_of_its_size),
        bench_test(copy_of_nothing_changes_nothing),
        bench_test(copy_takes_its_exact_size_when_no_more_is_to_be_had),
        bench_test(refused_copy_changes_nothing),
        bench_test(copy_beyond_the_budget_changes_nothing),
        bench_test(refused_push_takes_no_reference),
        bench_test(ranges_are_used_again_without_allocating),
        bench_test(advance_stops_inside_and_at_the_borders_of_ranges),
        bench_test(every_split_of_the_queue_keeps_the_rest),
        bench_test(gather_stops_at_its_number_of_vectors),
        bench_test(gather_stops_at_its_number_of_bytes),
        bench_test(take_hands_over_the_reference),
        bench_test(wrapped_memory_is_released_when_its_last_byte_is_sent),
        bench_test(release_may_write_to_the_queue_that_drops_it),
        bench_test(clear_ends_also_when_releases_write),
        bench_test(release_that_forks_is_the_last_one_in_its_child),
        bench_test(random_queue_is_the_bytes_in_order),
        bench_test(ranges_go_when_none_was_used_from_one_trim_to_the_next),
    };
    return cmocka_run_group_tests_name("sendq", tests, NULL, NULL);
}
