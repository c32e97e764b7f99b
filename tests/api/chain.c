/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

/* Chains: messages that come in pieces are put together without being copied, what is left of them pins little, and on
 * failure nothing has changed. */

static weir_chain *new_chain(test_fixture *f, size_t limit) {
    weir_chain *chain;
    test_ok(weir_chain_new(f->loop, limit, &chain));
    return chain;
}

static void push_copy(test_fixture *f, weir_chain *chain, const void *data, size_t size) {
    weir_slice slice;
    test_ok(weir_slice_copy(weir_loop_get_pool(f->loop), data, size, &slice));
    test_ok(weir_chain_push(chain, &slice));
    weir_slice_unref(&slice);
}

static void push_text(test_fixture *f, weir_chain *chain, const char *text) {
    push_copy(f, chain, text, strlen(text));
}

static const weir_slice *peek(weir_chain *chain, size_t offset, size_t size) {
    const weir_slice *slice = NULL;
    test_ok(weir_chain_peek(chain, offset, size, &slice));
    assert_int_equal(slice->size, size);
    return slice;
}

static void holds(weir_chain *chain, const char *text) {
    assert_int_equal(weir_chain_get_size(chain), strlen(text));
    assert_memory_equal(peek(chain, 0, strlen(text))->data, text, strlen(text));
}

/* ---- messages from a stream -------------------------------------------------------------------------- */

static weir_chain *incoming;

static void push_all(witness *w, char event, const weir_slice *slice) {
    (void)w;
    if (event == 'd')
        test_ok(weir_chain_push(incoming, slice));
}

/* A message of many receives that lie behind one another: one piece, where the kernel put it, and none of it copied. */
static void a_whole_message_is_taken_where_it_was_received(void **state) {
    test_fixture *f = *state;
    enum { PART = 9000, PARTS = 6 };
    static witness w;
    static uint8_t data[PART];
    weir_slice message;
    incoming = new_chain(f, 1 << 20);
    int peer = witness_pair(f, &w, true, NULL);
    w.hook = push_all;
    for (unsigned i = 0; i < PARTS; i++) {
        test_fill(4, i * PART, data, PART);
        peer_send(peer, data, PART);
        run_until(f, weir_chain_get_size(incoming) == (i + 1) * PART);
    }
    bool is_classic = test_pool_stats(f).buffer_bytes < PARTS * PART;
    uint64_t copied = test_loop_stats(f).bytes_copied;
    test_ok(weir_chain_take(incoming, PARTS * PART, &message));
    assert_int_equal(test_differs(4, 0, message.data, message.size), -1);
    if (!is_classic) { /* there each receive has a buffer of its own */
        assert_int_equal(copied, 0);
        assert_int_equal(test_loop_stats(f).bytes_copied, 0);
    }
    weir_slice_unref(&message);
    assert_int_equal(weir_chain_get_size(incoming), 0);
    weir_chain_unref(incoming);
    close(peer);
}

/* And sent on from there, in however many pieces. */
static void a_message_is_written_uncopied(void **state) {
    test_fixture *f = *state;
    static witness w, other;
    static uint8_t data[40000], got[40000];
    incoming = new_chain(f, 1 << 20);
    int peer = witness_pair(f, &w, true, NULL), answers = witness_pair(f, &other, false, NULL);
    w.hook = push_all;
    test_fill(5, 0, data, sizeof data);
    for (size_t at = 0; at < sizeof data; at += 10000) {
        peer_send(peer, data + at, 10000);
        run_until(f, weir_chain_get_size(incoming) == at + 10000);
    }
    assert_int_equal(weir_chain_write(incoming, 40001, other.stream), -EAGAIN);
    assert_int_equal(weir_chain_write(incoming, 0, other.stream), WEIR_WRITE_OK);
    assert_int_equal(weir_chain_write(incoming, 33333, other.stream), WEIR_WRITE_OK);
    assert_int_equal(weir_chain_get_size(incoming), 40000 - 33333);
    assert_int_equal(weir_chain_write(incoming, 40000 - 33333, other.stream), WEIR_WRITE_OK);
    assert_int_equal(weir_stream_get_queued(other.stream), 40000);
    run_until(f, weir_stream_get_queued(other.stream) == 0);
    peer_receive(answers, got, sizeof got);
    assert_int_equal(test_differs(5, 0, got, sizeof got), -1);
    assert_int_equal(test_loop_stats(f).bytes_copied, 0);
    weir_chain_unref(incoming);
    close(peer);
    close(answers);
}

enum { LINE = 40, ROUNDS = 2000 };

/* Lines go back as they come. */
static void answer_lines(witness *w, char event, const weir_slice *slice) {
    const weir_slice *line;
    int64_t end;
    if (event != 'd')
        return;
    test_ok(weir_chain_push(incoming, slice));
    while ((end = weir_chain_find(incoming, 0, "\n", 1)) >= 0) {
        test_ok(weir_chain_peek(incoming, 0, (size_t)end + 1, &line));
        assert_int_equal(line->data[0], 'a' + line->data[LINE - 2] % 16);
        assert_int_equal(weir_chain_write(incoming, (size_t)end + 1, w->stream), WEIR_WRITE_OK);
    }
}

static void whole_lines_allocate_nothing_and_copy_nothing(void **state) {
    test_fixture *f = *state;
    static witness w;
    char lines[5 * LINE], got[5 * LINE];
    uint64_t allocations = 0, copied = 0;
    incoming = new_chain(f, 1 << 20);
    int peer = witness_pair(f, &w, true, NULL);
    w.hook = answer_lines;
    for (unsigned round = 0; round < ROUNDS; round++) {
        memset(lines, (int)(64 + round % 16), sizeof lines);
        for (size_t i = 0; i < sizeof lines; i += LINE) {
            lines[i] = (char)('a' + round % 16);
            lines[i + LINE - 1] = '\n';
        }
        peer_send(peer, lines, sizeof lines);
        run_until(f, w.size == (round + 1) * sizeof lines && weir_stream_get_queued(w.stream) == 0);
        peer_receive(peer, got, sizeof got);
        assert_memory_equal(got, lines, sizeof lines);
        if (round == 500) { /* warm */
            allocations = atomic_load(&f->memory.allocations);
            copied = test_loop_stats(f).bytes_copied;
        }
    }
    /* But for the line that lies in two buffers, at the end of each. */
    uint64_t ends = ROUNDS * sizeof lines / test_pool_stats(f).buffer_bytes + 1;
    assert_true(atomic_load(&f->memory.allocations) - allocations <= 2 * ends);
    assert_true(test_loop_stats(f).bytes_copied - copied <= LINE * ends);
    weir_chain_unref(incoming);
    close(peer);
}

static void a_refused_write_leaves_both_as_they_were(void **state) {
    test_fixture *f = *state;
    static witness w;
    const weir_stream_options small = { .size = sizeof small, .queue_limit_bytes = 10, .queue_high_bytes = 5 };
    weir_chain *chain = new_chain(f, 100);
    int peer = witness_pair(f, &w, false, &small);
    char got[10];
    push_text(f, chain, "01234");
    push_text(f, chain, "56789ab");
    assert_int_equal(weir_chain_write(chain, 11, w.stream), -EMSGSIZE);
    assert_int_equal(weir_stream_get_queued(w.stream), 0);
    holds(chain, "0123456789ab");
    assert_int_equal(weir_chain_write(chain, 10, w.stream), WEIR_WRITE_FULL);
    assert_int_equal(weir_chain_write(chain, 1, w.stream), -ENOBUFS);
    holds(chain, "ab");
    run_until(f, w.drains == 1);
    peer_receive(peer, got, 10);
    assert_memory_equal(got, "0123456789", 10);
    test_ok(weir_stream_abort(w.stream));
    assert_int_equal(weir_chain_write(chain, 1, w.stream), -EPIPE);
    holds(chain, "ab");
    weir_chain_unref(chain);
    close(peer);
}

/* ---- what it pins ------------------------------------------------------------------------------------ */

enum { HALVES = 10000, HALF = 100, BETWEEN = 16 << 10, PERIOD = HALF + BETWEEN };

static struct {
    weir_chain *chains[HALVES];
    uint64_t position;
} halves;

/* The first bytes of each period are half of a message, each for a chain of its own. */
static void push_halves(witness *w, char event, const weir_slice *slice) {
    (void)w;
    if (event != 'd')
        return;
    weir_slice rest = *slice;
    while (rest.size > 0) {
        size_t at = halves.position % PERIOD, left = (at < HALF ? HALF : PERIOD) - at;
        weir_slice part = rest;
        part.size = rest.size < left ? rest.size : left;
        if (at < HALF)
            test_ok(weir_chain_push(halves.chains[halves.position / PERIOD], &part));
        rest.data += part.size;
        rest.size -= part.size;
        halves.position += part.size;
    }
}

/*
 * 10,000 peers each send half of a short message and then nothing, while others send much. Each half lies in a buffer with
 * what was received around it; were it left there, the halves would pin all of the budget, which is a third of what goes by
 * here, and the loop would receive nothing any more.
 */
static void ten_thousand_half_messages_do_not_pin_ten_thousand_buffers(void **state) {
    test_fixture *f = *state;
    static witness w;
    static uint8_t data[PERIOD];
    memset(&halves, 0, sizeof halves);
    for (unsigned i = 0; i < HALVES; i++)
        halves.chains[i] = new_chain(f, 1000);
    int peer = witness_pair(f, &w, false, NULL);
    w.hook = push_halves;
    for (unsigned i = 0; i < HALVES; i++) {
        test_fill(i, 0, data, HALF);
        peer_send(peer, data, PERIOD);
        run_until(f, halves.position == (i + 1) * (uint64_t)PERIOD);
    }
    run_turns(f, 2);
    weir_pool_stats stats = test_pool_stats(f);
    print_message("# %d half messages of %d bytes: used=%llu pinned=%llu blocks=%llu\n", HALVES, HALF,
                  (unsigned long long)stats.used_bytes, (unsigned long long)stats.pinned_bytes,
                  (unsigned long long)stats.block_bytes);
    assert_true(HALVES * (uint64_t)PERIOD > 2 * stats.budget_bytes);
    assert_true(stats.pinned_bytes + stats.block_bytes <= HALVES * (HALF + 64 + 32));
    assert_int_equal(stats.pinned_bytes, 0);
    for (unsigned i = 0; i < HALVES; i++) {
        weir_slice message;
        push_text(f, halves.chains[i], "the other half");
        test_ok(weir_chain_take(halves.chains[i], HALF + 14, &message));
        assert_int_equal(test_differs(i, 0, message.data, HALF), -1);
        assert_memory_equal(message.data + HALF, "the other half", 14);
        weir_slice_unref(&message);
        weir_chain_unref(halves.chains[i]);
    }
    close(peer);
}

static weir_chain *held_chain;

static void push_and_look(witness *w, char event, const weir_slice *slice) {
    if (event != 'd')
        return;
    test_ok(weir_chain_push(held_chain, slice));
    /* Within the callback nothing has moved. */
    assert_ptr_equal(peek(held_chain, weir_chain_get_size(held_chain) - slice->size, slice->size)->data,
                     slice->data);
    (void)w;
}

/* Where no memory is left for the copy, slices stay what they were; and are copied when there is some. */
static void a_half_message_waits_for_memory_to_be_copied_to(void **state) {
    test_fixture *f = *state;
    static witness w;
    held_chain = new_chain(f, 1000);
    int peer = witness_pair(f, &w, false, NULL);
    w.hook = push_and_look;
    peer_send(peer, "warm", 4);
    run_until(f, w.size == 4);
    test_ok(weir_chain_drop(held_chain, 4));
    uint64_t copied = test_loop_stats(f).bytes_copied;
    uint64_t failed = atomic_load(&f->memory.failed);
    atomic_store(&f->memory.fail_every, 1);
    peer_send(peer, "half", 4);
    for (int i = 0; i < 1000 && w.size < 8; i++)
        (void)!weir_loop_run_once(f->loop, 1000000);
    assert_int_equal(w.size, 8);
    run_turns(f, 3);
    assert_true(atomic_load(&f->memory.failed) >= failed + 3); /* it tries again each turn */
    assert_int_equal(test_pool_stats(f).block_bytes, 0);
    holds(held_chain, "half");
    atomic_store(&f->memory.fail_every, 0);
    run_turns(f, 1);
    assert_true(test_pool_stats(f).block_bytes > 0);
    assert_int_equal(test_loop_stats(f).bytes_copied, copied + 4);
    run_turns(f, 5);
    assert_int_equal(test_loop_stats(f).bytes_copied, copied + 4); /* once */
    holds(held_chain, "half");
    weir_chain_unref(held_chain);
    close(peer);
}

/* What is left when most of a large piece has been removed is held by less, too. */
static void the_rest_of_a_large_message_lets_go_of_it(void **state) {
    test_fixture *f = *state;
    static uint8_t large[100000];
    weir_chain *chain = new_chain(f, sizeof large);
    test_fill(6, 0, large, sizeof large);
    push_copy(f, chain, large, sizeof large);
    run_turns(f, 1);
    assert_true(test_pool_stats(f).block_bytes >= sizeof large);
    test_ok(weir_chain_drop(chain, sizeof large - 50));
    run_turns(f, 1);
    assert_true(test_pool_stats(f).block_bytes <= 50 + 64);
    assert_int_equal(test_differs(6, sizeof large - 50, peek(chain, 0, 50)->data, 50), -1);
    weir_chain_unref(chain);
}

/* ---- reading ----------------------------------------------------------------------------------------- */

static void nothing_of_a_chain_is_something(void **state) {
    test_fixture *f = *state;
    const weir_slice empty = { NULL, 0, NULL }, *shown = NULL;
    weir_slice taken = { (const uint8_t *)"x", 7, NULL };
    weir_chain *chain = new_chain(f, 1);
    test_ok(weir_chain_push(chain, &empty));
    assert_int_equal(weir_chain_get_size(chain), 0);
    test_ok(weir_chain_peek(chain, 0, 0, &shown));
    assert_int_equal(shown->size, 0);
    test_ok(weir_chain_take(chain, 0, &taken));
    assert_true(taken.data == NULL && taken.size == 0 && taken.owner == NULL);
    test_ok(weir_chain_drop(chain, 0));
    assert_int_equal(weir_chain_peek(chain, 1, 0, &shown), -EAGAIN);
    assert_int_equal(weir_chain_peek(chain, 2, 0, &shown), -EMSGSIZE);
    assert_int_equal(weir_chain_find(chain, 0, "x", 1), -EAGAIN);
    push_text(f, chain, "x");
    test_ok(weir_chain_peek(chain, 1, 0, &shown));
    assert_int_equal(weir_chain_find(chain, 1, "x", 1), -EAGAIN);
    weir_chain_unref(chain);
}

static void more_than_its_limit_is_refused(void **state) {
    test_fixture *f = *state;
    weir_slice slice;
    weir_chain *chain = new_chain(f, 8);
    test_ok(weir_slice_copy(weir_loop_get_pool(f->loop), "123456789", 9, &slice));
    assert_int_equal(weir_chain_push(chain, &slice), -EMSGSIZE);
    assert_int_equal(weir_chain_get_size(chain), 0);
    slice.size = 8;
    test_ok(weir_chain_push(chain, &slice));
    slice.size = 1;
    assert_int_equal(weir_chain_push(chain, &slice), -EMSGSIZE);
    holds(chain, "12345678");
    test_ok(weir_chain_drop(chain, 1));
    test_ok(weir_chain_push(chain, &slice));
    holds(chain, "23456781");
    weir_slice_unref(&slice);
    weir_chain_unref(chain);
}

static void bytes_that_nobody_counts_are_copied(void **state) {
    test_fixture *f = *state;
    char text[] = "by hand";
    const weir_slice hand = { (const uint8_t *)text, 7, NULL };
    weir_chain *chain = new_chain(f, 100);
    test_ok(weir_chain_push(chain, &hand));
    memset(text, 'x', 7);
    holds(chain, "by hand");
    run_turns(f, 1);
    holds(chain, "by hand");
    weir_chain_unref(chain);
}

static void a_peeked_slice_can_be_kept_by_a_reference(void **state) {
    test_fixture *f = *state;
    weir_slice mine, same;
    weir_chain *chain = new_chain(f, 100);
    push_text(f, chain, "hel");
    push_text(f, chain, "lo");
    weir_slice_ref(peek(chain, 1, 4), &mine);
    test_ok(weir_chain_push(chain, peek(chain, 0, 2))); /* also into the chain itself */
    holds(chain, "hellohe");
    test_ok(weir_chain_take(chain, 7, &same));
    weir_chain_unref(chain);
    run_turns(f, 2);
    assert_memory_equal(mine.data, "ello", 4);
    assert_memory_equal(same.data, "hellohe", 7);
    weir_slice_unref(&mine);
    weir_slice_unref(&same);
    assert_int_equal(test_pool_stats(f).block_bytes, 0);
}

static void a_needle_is_found_over_seams(void **state) {
    test_fixture *f = *state;
    weir_chain *chain = new_chain(f, 100);
    push_text(f, chain, "GET /\r");
    assert_int_equal(weir_chain_find(chain, 0, "\r\n", 2), -EAGAIN);
    push_text(f, chain, "\n");
    assert_int_equal(weir_chain_find(chain, 0, "\r\n", 2), 5);
    assert_int_equal(weir_chain_find(chain, 0, "\r\n\r\n", 4), -EAGAIN);
    push_text(f, chain, "\r");
    assert_int_equal(weir_chain_find(chain, 0, "\r\n\r\n", 4), -EAGAIN);
    push_text(f, chain, "\nbody");
    assert_int_equal(weir_chain_find(chain, 0, "\r\n\r\n", 4), 5);
    test_ok(weir_chain_drop(chain, 6));
    assert_int_equal(weir_chain_find(chain, 0, "\r\n\r\n", 4), -EAGAIN);
    assert_int_equal(weir_chain_find(chain, 0, "\n", 1), 0);
    assert_int_equal(weir_chain_find(chain, 1, "\n", 1), 2);
    weir_chain_unref(chain);
}

/* ---- without memory ---------------------------------------------------------------------------------- */

enum { NEW, PUSH, PUSH_BY_HAND, PEEK, PEEK_INSIDE, TAKE, WRITE, CALLS };

static int call_one(int which, test_fixture *f, weir_chain *chain, const weir_slice *more, weir_stream *stream,
                    weir_chain **ret_chain) {
    const weir_slice hand = { (const uint8_t *)"more", 4, NULL }, *shown;
    weir_slice taken;
    int r;
    switch (which) {
    case NEW:
        return weir_chain_new(f->loop, 1, ret_chain);
    case PUSH:
        return weir_chain_push(chain, more);
    case PUSH_BY_HAND:
        return weir_chain_push(chain, &hand);
    case PEEK:
        return weir_chain_peek(chain, 0, 9, &shown);
    case PEEK_INSIDE:
        return weir_chain_peek(chain, 2, 6, &shown);
    case TAKE:
        if ((r = weir_chain_take(chain, 9, &taken)) >= 0)
            weir_slice_unref(&taken);
        return r;
    default:
        return weir_chain_write(chain, 9, stream);
    }
}

/* Every allocation of every call fails once. The caches of the loop are filled up to their end before, so that ranges are
 * allocated as well. */
static void without_memory_a_call_changes_nothing(void **state) {
    (void)state;
    for (int which = 0; which < CALLS; which++) {
        int r = -ENOMEM;
        unsigned failures = 0;
        for (uint64_t number = 1; r == -ENOMEM; number++) {
            test_fixture f;
            static witness w;
            weir_slice more;
            weir_chain *made = NULL;
            test_open(&f, NULL, NULL);
            int peer = witness_pair(&f, &w, false, NULL);
            weir_chain *chain = new_chain(&f, 1000), *others = new_chain(&f, 100000);
            for (int i = 0; i < 127 - 3; i++) /* of the first slab */
                push_text(&f, others, "x");
            push_text(&f, chain, "abc");
            push_text(&f, chain, "def");
            push_text(&f, chain, "ghi");
            test_ok(weir_slice_copy(weir_loop_get_pool(f.loop), "more", 4, &more));
            atomic_store(&f.memory.fail_at, atomic_load(&f.memory.allocations) + number);
            r = call_one(which, &f, chain, &more, w.stream, &made);
            atomic_store(&f.memory.fail_at, 0);
            if (r < 0) {
                failures++;
                assert_int_equal(r, -ENOMEM);
                assert_null(made);
                holds(chain, "abcdefghi");
                assert_int_equal(weir_stream_get_queued(w.stream), 0);
            }
            weir_slice_unref(&more);
            weir_chain_unref(made);
            weir_chain_unref(chain);
            weir_chain_unref(others);
            close(peer);
            test_close(&f);
        }
        assert_int_equal(r, 0);
        assert_true(failures >= 1);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        loop_test(a_whole_message_is_taken_where_it_was_received),
        loop_test(a_message_is_written_uncopied),
        loop_test(whole_lines_allocate_nothing_and_copy_nothing),
        loop_test(a_refused_write_leaves_both_as_they_were),
        loop_test(ten_thousand_half_messages_do_not_pin_ten_thousand_buffers),
        loop_test(a_half_message_waits_for_memory_to_be_copied_to),
        loop_test(the_rest_of_a_large_message_lets_go_of_it),
        loop_test(nothing_of_a_chain_is_something),
        loop_test(more_than_its_limit_is_refused),
        loop_test(bytes_that_nobody_counts_are_copied),
        loop_test(a_peeked_slice_can_be_kept_by_a_reference),
        loop_test(a_needle_is_found_over_seams),
        cmocka_unit_test(without_memory_a_call_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
