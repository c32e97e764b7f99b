/* SPDX-License-Identifier: MIT */
/* Chains of bytes: what merges, what is joined, what is found, and that whatever is done with one is what would be done
 * with a plain array. */
#include <stdlib.h>

#include "memory/chain.h"
#include "unit/bench.h"

static bench b;
static weir__range_cache cache;
static weir__chain chain;

static void open_chain(size_t limit, unsigned budget) {
    bench_open(&b, true, budget, 4);
    bench_publish(&b);
    cache = (weir__range_cache){ .allocator = &b.memory.allocator, .owner = &b.owner };
    weir__chain_init(&chain, limit, &cache, b.pool);
}

static void close_chain(void) {
    weir__chain_clear(&chain);
    weir__chain_release(&chain);
    assert_null(chain.queue.first);
    assert_null(chain.queue.last);
    assert_int_equal(chain.queue.bytes, 0);
    assert_int_equal(chain.queue.count, 0);
    bench_end_dispatch(&b);
    assert_int_equal(bench_stats(&b).buffers_retired, 0); /* no reference is left */
    assert_int_equal(bench_stats(&b).block_bytes, 0);
    weir__range_cache_deinit(&cache);
    bench_close(&b);
}

static weir_slice text_block(const char *text) {
    weir_slice slice;
    test_ok(weir_slice_copy(b.pool, text, strlen(text), &slice));
    return slice;
}

/* Pieces that never merge: each in a block of its own. */
static void push_text(const char *text) {
    weir_slice slice = text_block(text);
    test_ok(weir__chain_push(&chain, &slice));
    weir_slice_unref(&slice);
}

static const weir_slice *peek(size_t offset, size_t size) {
    const weir_slice *slice = NULL;
    test_ok(weir__chain_peek(&chain, offset, size, &slice));
    assert_int_equal(slice->size, size);
    return slice;
}

static void shows(size_t offset, const char *text) {
    assert_memory_equal(peek(offset, strlen(text))->data, text, strlen(text));
}

/* ---- one piece, or several -------------------------------------------------------------------------- */

static void neighbours_are_one_piece_and_never_copied(void **state) {
    (void)state;
    weir_slice taken;
    open_chain(1000, 16);
    weir_slice parts[] = { bench_put(&b, "one ", 4, false), bench_put(&b, "two ", 4, false),
                           bench_put(&b, "three", 5, false) };
    for (int i = 0; i < 3; i++)
        test_ok(weir__chain_push(&chain, &parts[i]));
    assert_int_equal(chain.queue.count, 1);
    shows(0, "one two three");
    assert_ptr_equal(peek(2, 8)->data, parts[0].data + 2);
    test_ok(weir__chain_take(&chain, 7, &taken));
    assert_ptr_equal(taken.data, parts[0].data);
    assert_memory_equal(taken.data, "one two", 7);
    shows(0, " three");
    assert_int_equal(weir__pool_copied(b.pool), 0);
    weir_slice_unref(&taken);
    close_chain();
}

static void pieces_are_joined_once_and_keep_what_is_around_them(void **state) {
    (void)state;
    open_chain(1000, 16);
    push_text("abcd");
    push_text("ef");
    push_text("ghij");
    uint64_t before = weir__pool_copied(b.pool);
    shows(2, "cdefgh");
    assert_int_equal(weir__pool_copied(b.pool) - before, 6);
    assert_int_equal(chain.queue.count, 3);
    shows(2, "cdefgh");
    shows(3, "def");
    assert_int_equal(weir__pool_copied(b.pool) - before, 6);
    shows(0, "abcdefghij");
    assert_int_equal(chain.queue.count, 1);
    close_chain();
}

/* A parser that wants to see everything again each time a byte comes costs a few copies of each byte, not one a turn. */
static void looking_at_a_byte_more_each_time_is_not_quadratic(void **state) {
    (void)state;
    enum { BYTES = 20000 };
    open_chain(BYTES, 64);
    for (size_t i = 0; i < BYTES; i++) {
        uint8_t byte = test_byte(1, i);
        if (bench_room(&b) < 2)
            bench_publish(&b);
        weir_slice slice = bench_put(&b, &byte, 1, false);
        bench_put(&b, "x", 1, false); /* another stream's: no neighbours */
        test_ok(weir__chain_push(&chain, &slice));
        bench_end_dispatch(&b);
        assert_int_equal(peek(0, i + 1)->data[i], byte);
    }
    assert_int_equal(test_differs(1, 0, peek(0, BYTES)->data, BYTES), -1);
    assert_true(weir__pool_copied(b.pool) < 4 * BYTES);
    close_chain();
}

/* Two streams' worth of bytes behind one another: who has shown a block must not have others write behind it. */
static void only_the_blocks_own_loop_writes_behind_it(void **state) {
    (void)state;
    weir__heap_block *block = NULL;
    int other;
    open_chain(1000, 16);
    push_text("abc");
    push_text("def");
    shows(0, "abcdef");
    assert_int_equal(weir__range_room(chain.queue.first, &b.owner, &block), 6);
    assert_int_equal(weir__range_room(chain.queue.first, &other, &block), 0);
    assert_int_equal(weir__range_room(chain.queue.first, NULL, &block), 0);
    push_text("ghi");
    shows(0, "abcdefghi");
    assert_int_equal(chain.queue.count, 1);
    assert_int_equal(weir__range_room(chain.queue.first, &b.owner, &block), 3);
    close_chain();
}

static void very_many_pieces_are_copied(void **state) {
    (void)state;
    open_chain(2560, 64);
    for (int i = 0; i < 2560; i++)
        push_text("x");
    assert_true(chain.queue.count <= 1024 + 10 + 1);
    assert_int_equal(chain.queue.bytes, 2560);
    weir_slice more = text_block("y");
    assert_int_equal(weir__chain_push(&chain, &more), -EMSGSIZE);
    weir_slice_unref(&more);
    assert_int_equal(chain.queue.bytes, 2560);
    close_chain();
}

/* What was appended to before the failure is as it was, although its last range had grown. */
static void a_join_that_fails_takes_back_what_it_did(void **state) {
    (void)state;
    weir__sendq queue = { 0 };
    weir__range *taken[256];
    unsigned count = 0;
    uint64_t copied;
    open_chain(1000, 16);
    weir_slice first = bench_put(&b, "queued", 6, false), second = bench_put(&b, "neighbour", 9, false);
    test_ok(weir__sendq_push(&queue, &cache, &first));
    test_ok(weir__chain_push(&chain, &second));
    push_text("another");
    while (cache.free != NULL)
        taken[count++] = weir__range_take(&cache);
    atomic_store(&b.memory.fail_every, 1);
    assert_int_equal(weir__sendq_join(&queue, &cache, b.pool, chain.queue.first, 16, &copied), -ENOMEM);
    atomic_store(&b.memory.fail_every, 0);
    assert_int_equal(queue.bytes, 6);
    assert_int_equal(queue.count, 1);
    assert_int_equal(queue.last->size, 6);
    assert_ptr_equal(queue.first, queue.last);
    assert_null(queue.last->next);
    test_ok(weir__sendq_join(&queue, &cache, b.pool, chain.queue.first, 12, &copied));
    assert_int_equal(queue.bytes, 18);
    assert_int_equal(queue.first->size, 15);
    assert_memory_equal(queue.first->data, "queuedneighbour", 15);
    assert_memory_equal(queue.last->data, "ano", 3);
    assert_int_equal(copied, 0);
    shows(0, "neighbouranother");
    while (count > 0)
        weir__range_give(&cache, taken[--count]);
    weir__sendq_clear(&queue, &cache);
    close_chain();
}

/* ---- what it pins ----------------------------------------------------------------------------------- */

/* Ranges in a row in one block hold it together. */
static void assert_is_tidy(void) {
    uint64_t pinned = 0;
    for (const weir__range *range = chain.queue.first; range != NULL;) {
        const weir_block *owner = range->owner;
        pinned += owner->capacity;
        while (range != NULL && range->owner == owner)
            range = range->next;
    }
    assert_true(pinned <= 8 * chain.queue.bytes);
}

static void small_pieces_let_go_of_their_buffers(void **state) {
    (void)state;
    open_chain(100000, 16);
    for (int i = 0; i < 40; i++) {
        bench_publish(&b);
        weir_slice half = bench_put(&b, "half a message ", 15, false);
        test_ok(weir__chain_push(&chain, &half));
        bench_arrive(&b, bench_room(&b));
        test_ok(weir__chain_tidy(&chain));
        bench_end_dispatch(&b);
        assert_int_equal(bench_stats(&b).buffers_retired, 0);
        assert_is_tidy();
    }
    assert_true(weir__pool_copied(b.pool) < 4 * 40 * 15);
    assert_true(chain.queue.count <= 2);
    for (size_t i = 0; i < 40; i++)
        shows(i * 15, "half a message ");
    close_chain();
}

static void large_pieces_stay_where_they_are(void **state) {
    (void)state;
    open_chain(100000, 16);
    weir_slice large = bench_arrive(&b, BUFFER / 8);
    bench_arrive(&b, 1);
    weir_slice small = bench_arrive(&b, 10), more = bench_arrive(&b, BUFFER / 8 - 10);
    test_ok(weir__chain_push(&chain, &large));
    test_ok(weir__chain_push(&chain, &small)); /* small, but of the same buffer */
    bench_arrive(&b, bench_room(&b));
    bench_end_dispatch(&b);
    (void)more;
    test_ok(weir__chain_tidy(&chain));
    assert_int_equal(weir__pool_copied(b.pool), 0);
    weir__chain_drop(&chain, BUFFER / 16); /* what is left is too little for it */
    test_ok(weir__chain_tidy(&chain));
    assert_int_equal(weir__pool_copied(b.pool), BUFFER / 16 + 10);
    weir__pool_collect(b.pool);
    assert_int_equal(bench_stats(&b).buffers_retired, 0);
    close_chain();
}

/* Two pieces of a block hold it together; were one of them joined with what comes behind, the other would be too little
 * for it. */
static void pieces_of_one_block_are_not_torn_apart(void **state) {
    (void)state;
    weir_slice block, part;
    uint8_t *data;
    open_chain(100000, 16);
    test_ok(weir_slice_new(b.pool, 4000, &data, &block));
    memset(data, 'b', 4000);
    test_ok(weir_slice_sub(&block, 0, 300, &part));
    test_ok(weir__chain_push(&chain, &part));
    weir_slice_unref(&part);
    test_ok(weir_slice_sub(&block, 310, 200, &part));
    test_ok(weir__chain_push(&chain, &part));
    weir_slice_unref(&part);
    weir_slice_unref(&block);
    weir_slice small = bench_put(&b, "small", 5, true);
    test_ok(weir__chain_push(&chain, &small));
    bench_end_dispatch(&b);
    test_ok(weir__chain_tidy(&chain));
    assert_is_tidy();
    assert_int_equal(chain.queue.count, 3);
    assert_int_equal(weir__pool_copied(b.pool), 5);
    shows(500, "small");
    close_chain();
}

static void without_memory_slices_stay(void **state) {
    (void)state;
    open_chain(100000, 5);
    weir_slice slice = bench_put(&b, "half", 4, false);
    test_ok(weir__chain_push(&chain, &slice));
    atomic_store(&b.memory.fail_every, 1);
    assert_int_equal(weir__chain_tidy(&chain), -ENOMEM);
    atomic_store(&b.memory.fail_every, 0);
    assert_ptr_equal(peek(0, 4)->data, slice.data);
    bench_arrive(&b, bench_room(&b));
    bench_end_dispatch(&b);
    bench_publish(&b);
    assert_int_equal(weir__chain_tidy(&chain), -ENOBUFS); /* five buffers are all that there may be */
    assert_ptr_equal(peek(0, 4)->data, slice.data);
    assert_int_equal(bench_stats(&b).buffers_retired, 1);
    bench_arrive(&b, bench_room(&b));
    bench_end_dispatch(&b); /* one of them lies idle: it is given up */
    test_ok(weir__chain_tidy(&chain));
    shows(0, "half");
    weir__pool_collect(b.pool);
    assert_int_equal(bench_stats(&b).buffers_retired, 0);
    close_chain();
}

/* From the loop's close on nothing is counted in what only its thread may touch. */
static void a_chain_that_was_parted_from_counts_for_any_thread(void **state) {
    (void)state;
    open_chain(1000, 16);
    weir_slice slice = bench_put(&b, "hello", 5, true);
    weir_block *block = slice.owner;
    test_ok(weir__chain_push(&chain, &slice));
    push_text(" you");
    bench_end_dispatch(&b);
    assert_int_equal(block->local, 1);
    weir__chain_part(&chain);
    assert_int_equal(block->local, 0);
    assert_int_equal(atomic_load(&block->shared), 1);
    for (const weir__range *range = chain.queue.first; range != NULL; range = range->next)
        assert_int_equal(range->owner->local, 0);
    shows(0, "hello you");
    assert_int_equal(chain.queue.first->owner->local, 0);
    close_chain();
}

/* ---- finding ---------------------------------------------------------------------------------------- */

static void what_is_cut_anywhere_is_found(void **state) {
    (void)state;
    static const char text[] = "ab\r\r\nab\r\n\r\nabc\r\n";
    static const char *const needles[] = {
        "\r\n", "\n", "\r\n\r\n", "ab\r\n\r\nabc", "\r\r", "abc\r\n", "nowhere"
    };
    const size_t length = strlen(text);
    for (size_t first = 0; first <= length; first++) {
        for (size_t second = first; second <= length; second++) {
            char parts[3][32] = { { 0 } };
            memcpy(parts[0], text, first);
            memcpy(parts[1], text + first, second - first);
            memcpy(parts[2], text + second, length - second);
            open_chain(1000, 16);
            for (int i = 0; i < 3; i++)
                if (*parts[i] != '\0')
                    push_text(parts[i]);
            for (size_t n = 0; n < sizeof needles / sizeof *needles; n++) {
                for (size_t offset = 0; offset <= length + 1; offset++) {
                    const char *found = offset <= length ? strstr(text + offset, needles[n]) : NULL;
                    int64_t expected = found != NULL ? found - text : -EAGAIN;
                    assert_int_equal(weir__chain_find(&chain, offset, needles[n], strlen(needles[n])), expected);
                    assert_int_equal(weir__chain_find(&chain, offset, needles[n], strlen(needles[n])), expected);
                }
            }
            close_chain();
        }
    }
}

/* Whoever changes bytes that were looked at already (which nobody may) is not noticed: they are not looked at again. */
static void what_was_looked_at_is_not_looked_at_again(void **state) {
    (void)state;
    static uint8_t bytes[100], needle[200];
    weir_slice slice;
    open_chain(1000, 16);
    memset(bytes, 'a', sizeof bytes);
    test_ok(weir_slice_wrap(b.pool, bytes, sizeof bytes, NULL, NULL, &slice));
    test_ok(weir__chain_push(&chain, &slice));
    assert_int_equal(weir__chain_find(&chain, 0, "\r\n", 2), -EAGAIN);
    memcpy(bytes + 50, "\r\n", 2);
    assert_int_equal(weir__chain_find(&chain, 0, "\r\n", 2), -EAGAIN);
    weir__chain_drop(&chain, 10);
    assert_int_equal(weir__chain_find(&chain, 5, "\r\n", 2), -EAGAIN);
    bytes[99] = '\r';
    push_text("\nrest"); /* but its beginning might have been the last byte */
    assert_int_equal(weir__chain_find(&chain, 0, "\r\n", 2), 89);
    assert_int_equal(weir__chain_find(&chain, 90, "\r\n", 2), -EAGAIN);
    assert_int_equal(weir__chain_find(&chain, 0, "\r\n", 2), 40); /* now from another place on */
    assert_int_equal(weir__chain_find(&chain, 0, "\n", 1), 41);   /* something else */
    memset(needle, 'a', sizeof needle);
    assert_int_equal(weir__chain_find(&chain, 0, needle, sizeof needle), -EAGAIN); /* too long to remember */
    assert_int_equal(weir__chain_find(&chain, 0, needle, 40), 0);
    weir_slice_unref(&slice);
    close_chain();
}

/* ---- against a plain array -------------------------------------------------------------------------- */

enum { LIMIT = 30000, STEPS = 1500 };

static struct {
    uint8_t bytes[LIMIT];
    size_t size;
    uint64_t position; /* of the next byte that is pushed */
} model;

static void model_drop(size_t size) {
    memmove(model.bytes, model.bytes + size, model.size - size);
    model.size -= size;
}

/* Few values, so that something is found. */
static void make_bytes(uint8_t *data, size_t size) {
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)("abc\n"[test_byte(7, model.position++) % 4]);
}

static void assert_is_as_the_model(void) {
    uint64_t at = 0;
    unsigned count = 0;
    const weir__range *last = NULL;
    assert_int_equal(chain.queue.bytes, model.size);
    for (const weir__range *range = chain.queue.first; range != NULL; last = range, range = range->next, count++) {
        assert_true(range->size > 0 && range->size <= model.size - at);
        assert_memory_equal(range->data, model.bytes + at, range->size);
        at += range->size;
    }
    assert_int_equal(at, model.size);
    assert_int_equal(count, chain.queue.count);
    assert_ptr_equal(last, chain.queue.last);
}

static void free_copy(const void *data, size_t size, void *userdata) {
    (void)size, (void)userdata;
    free((void *)(uintptr_t)data);
}

static int wrap_copy(const uint8_t *bytes, size_t size, weir_slice *ret_slice) {
    void *copy = memcpy(malloc(size), bytes, size);
    int r = weir_slice_wrap(b.pool, copy, size, free_copy, NULL, ret_slice);
    if (r < 0)
        free(copy);
    return r;
}

static void random_push(uint64_t *random) {
    static uint8_t bytes[BUFFER];
    uint64_t how = test_random(random) % 8;
    size_t size = test_random(random) % (how == 0 ? BUFFER : 60) + 1;
    weir_slice slice = { bytes, size, NULL };
    int r = 0;
    if (how < 5) {
        bench_publish(&b);
        if (bench_room(&b) == 0)
            return;
        size = size < bench_room(&b) ? size : bench_room(&b);
        make_bytes(bytes, size);
        slice = bench_put(&b, bytes, size, false);
        if (how < 3 && bench_room(&b) > 1)
            bench_put(&b, "?", 1, false);
    } else {
        make_bytes(bytes, size);
        if (how == 5)
            r = weir_slice_copy(b.pool, bytes, size, &slice);
        else if (how == 6)
            r = wrap_copy(bytes, size, &slice);
    }
    if (r >= 0)
        r = weir__chain_push(&chain, &slice);
    if (r >= 0) {
        memcpy(model.bytes + model.size, bytes, size);
        model.size += size;
    } else {
        assert_true(r == -EMSGSIZE ? size > LIMIT - model.size : r == -ENOMEM || r == -ENOBUFS);
    }
    if ((how == 5 || how == 6) && slice.owner != NULL)
        weir_slice_unref(&slice);
}

static void random_look(uint64_t *random) {
    size_t offset = test_random(random) % (model.size + 2), size = test_random(random) % 300;
    const weir_slice *slice = NULL;
    int r = weir__chain_peek(&chain, offset, size, &slice);
    if (offset + size > LIMIT)
        assert_int_equal(r, -EMSGSIZE);
    else if (offset + size > model.size)
        assert_int_equal(r, -EAGAIN);
    else if (r < 0)
        assert_true(r == -ENOMEM || r == -ENOBUFS);
    else
        assert_true(slice->size == size && (size == 0 || memcmp(slice->data, model.bytes + offset, size) == 0));
}

static void random_take(uint64_t *random) {
    size_t size = test_random(random) % (test_random(random) % 8 == 0 ? BUFFER : 120);
    weir_slice slice;
    int r = weir__chain_take(&chain, size, &slice);
    if (r < 0) {
        assert_true(size > model.size ? r == -EAGAIN : r == -ENOMEM || r == -ENOBUFS);
        return;
    }
    assert_int_equal(slice.size, size);
    assert_true(size == 0 || memcmp(slice.data, model.bytes, size) == 0);
    model_drop(size);
    weir_slice_unref(&slice);
}

/* To the end of a queue, which holds a little already; and on failure nothing is. */
static void random_write(uint64_t *random) {
    weir__sendq queue = { 0 };
    uint64_t copied;
    size_t size = test_random(random) % (model.size + 1), at = 0;
    int r = weir__sendq_copy(&queue, &cache, b.pool, "before", 6);
    if (r >= 0) {
        r = weir__sendq_join(&queue, &cache, b.pool, chain.queue.first, size, &copied);
        assert_int_equal(queue.bytes, r < 0 ? 6 : 6 + size);
        for (const weir__range *range = queue.first; range != NULL; at += range->size, range = range->next)
            for (size_t i = 0; i < range->size; i++)
                assert_int_equal(range->data[i],
                                 at + i < 6 ? (uint8_t) "before"[at + i] : model.bytes[at + i - 6]);
        assert_int_equal(at, queue.bytes);
    }
    if (r >= 0) {
        weir__chain_drop(&chain, size);
        model_drop(size);
    }
    assert_true(r >= 0 || r == -ENOMEM || r == -ENOBUFS);
    weir__sendq_clear(&queue, &cache);
}

static void random_find(uint64_t *random) {
    static const char *const needles[] = { "\n", "a\n", "abcabc", "\n\n\n", "cb" };
    const char *needle = needles[test_random(random) % 5];
    size_t size = strlen(needle),
           offset = test_random(random) % 4 == 0 ? test_random(random) % (model.size + 2) : 0;
    const uint8_t *found =
        offset <= model.size ? memmem(model.bytes + offset, model.size - offset, needle, size) : NULL;
    assert_int_equal(weir__chain_find(&chain, offset, needle, size),
                     found != NULL ? found - model.bytes : -EAGAIN);
}

static void random_step(uint64_t *random) {
    size_t size;
    switch (test_random(random) % 16) {
    case 0:
    case 1:
        random_look(random);
        break;
    case 2:
        random_take(random);
        break;
    case 3:
        size = test_random(random) % (model.size < 200 ? model.size + 1 : 200);
        weir__chain_drop(&chain, size);
        model_drop(size);
        break;
    case 4:
        if (weir__chain_tidy(&chain) >= 0)
            assert_is_tidy();
        break;
    case 5:
        if (test_random(random) % 8 == 0)
            random_write(random);
        break;
    case 6:
    case 7:
        random_find(random);
        break;
    case 8:
        bench_end_dispatch(&b);
        break;
    default:
        random_push(random);
    }
    weir__chain_release(&chain);
    assert_is_as_the_model();
    bench_check(&b);
}

static void whatever_is_done_is_as_with_an_array(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 24; seed++) {
        uint64_t random = seed;
        memset(&model, 0, sizeof model);
        model.position = seed * 1000000;
        open_chain(LIMIT, seed % 3 == 0 ? 8 : 64);
        atomic_store(&b.memory.fail_every, seed % 2 == 0 ? 0 : 2 + seed % 7);
        for (unsigned i = 0; i < STEPS; i++)
            random_step(&random);
        atomic_store(&b.memory.fail_every, 0);
        close_chain();
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        bench_test(neighbours_are_one_piece_and_never_copied),
        bench_test(pieces_are_joined_once_and_keep_what_is_around_them),
        bench_test(looking_at_a_byte_more_each_time_is_not_quadratic),
        bench_test(only_the_blocks_own_loop_writes_behind_it),
        bench_test(very_many_pieces_are_copied),
        bench_test(a_join_that_fails_takes_back_what_it_did),
        bench_test(small_pieces_let_go_of_their_buffers),
        bench_test(large_pieces_stay_where_they_are),
        bench_test(pieces_of_one_block_are_not_torn_apart),
        bench_test(without_memory_slices_stay),
        bench_test(a_chain_that_was_parted_from_counts_for_any_thread),
        bench_test(what_is_cut_anywhere_is_found),
        bench_test(what_was_looked_at_is_not_looked_at_again),
        bench_test(whatever_is_done_is_as_with_an_array),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
