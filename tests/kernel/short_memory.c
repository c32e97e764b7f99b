/* SPDX-License-Identifier: MIT */

/*
 * Small slices are queued as copies while three quarters of the budget are used, and not before: a forwarder brings its
 * loop to exactly that point, forwards a message, goes one byte beyond, and forwards another.
 */

#include "kernel/scribe.h"

enum { THEIRS = 2, BUFFER = 4096, BUDGET = 15 * BUFFER, MESSAGE = 100 };

typedef struct forwarder {
    test_fixture f;
    scribe from, to;
    int sender, reader;
    weir_slice filler,
        wedge; /* uses memory; stands between two messages, so that none is the last one's neighbour */
    unsigned messages;
    uint64_t copied[4]; /* by weir, after each message */
} forwarder;

static uint64_t used(const forwarder *w) {
    return test_pool_stats(&w->f).used_bytes;
}

/* Use so many bytes of the budget, with what a block itself takes. */
static void fill(forwarder *w, uint64_t bytes) {
    weir_pool *pool = weir_loop_get_pool(w->f.loop);
    uint8_t *data;
    uint64_t before = used(w);
    test_ok(weir_slice_new(pool, 1, &data, &w->filler));
    uint64_t overhead = used(w) - before - 1;
    weir_slice_unref(&w->filler);
    assert_true(bytes > overhead);
    test_ok(weir_slice_new(pool, bytes - overhead, &data, &w->filler));
    assert_int_equal(used(w), before + bytes);
}

static void forward(scribe *s, char event, const weir_slice *slice) {
    static const uint64_t beyond[] = { 0, 1, 0, 1 };
    forwarder *w = s->userdata;
    if (event != 'd')
        return;
    assert_int_equal(slice->size, MESSAGE);
    assert_true(w->messages < 4);
    assert_true(weir_stream_write_slice(w->to.stream, &w->wedge) >= 0);
    fill(w, BUDGET / 4 * 3 + beyond[w->messages] - used(w));
    assert_true(weir_stream_write_slice(w->to.stream, slice) >= 0);
    w->copied[w->messages++] = test_loop_stats(&w->f).bytes_copied;
    weir_slice_unref(&w->filler);
}

static void small_slices_are_copied_above_three_quarters_of_the_budget_only(void **state) {
    (void)state;
    const weir_pool_options pool = {
        .size = sizeof pool, .buffer_bytes = BUFFER, .budget_bytes = BUDGET, .window_bytes = 8 * BUFFER
    };
    forwarder w;
    weir_stream_stats stats = { .size = sizeof stats };
    weir_slice small;
    int fds[2];
    memset(&w, 0, sizeof w);
    test_open(&w.f, NULL, &pool);
    test_pair(true, fds);
    w.sender = fds[0];
    w.from.hook = forward;
    w.from.userdata = &w;
    scribe_init(&w.from, THEIRS);
    scribe_adopt(&w.f, &w.from, fds[1], NULL);
    test_pair(true, fds);
    w.reader = fds[0];
    scribe_init(&w.to, 0);
    scribe_adopt(&w.f, &w.to, fds[1], NULL);
    test_ok(weir_slice_copy(weir_loop_get_pool(w.f.loop), "|", 1, &w.wedge));
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(peer_send(w.sender, THEIRS, i * MESSAGE, MESSAGE), 0);
        RUN_UNTIL(&w.f, w.messages == i + 1);
    }
    /* The one that made the wedge is on the loop's account and not on the stream's. */
    test_ok(weir_stream_get_stats(w.to.stream, &stats));
    assert_int_equal(w.copied[1] - w.copied[0], MESSAGE);
    assert_int_equal(w.copied[2], w.copied[1]);
    assert_int_equal(w.copied[3] - w.copied[2], MESSAGE);
    assert_int_equal(stats.bytes_copied, 2 * MESSAGE);
    /* Whichever way they went, they arrive as they were sent. */
    test_ok(weir_stream_shutdown(w.to.stream));
    uint8_t bytes[4 * (MESSAGE + 1)];
    size_t size = 0;
    ssize_t got;
    RUN_UNTIL(&w.f, (got = recv(w.reader, bytes + size, sizeof bytes - size, MSG_DONTWAIT)) == 0 ||
                        (size += got > 0 ? (size_t)got : 0) == sizeof bytes);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(bytes[i * (MESSAGE + 1)], '|');
        assert_int_equal(test_differs(THEIRS, i * MESSAGE, bytes + i * (MESSAGE + 1) + 1, MESSAGE), -1);
    }
    small = w.wedge;
    weir_slice_unref(&small);
    close(w.sender);
    close(w.reader);
    test_close(&w.f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_slices_are_copied_above_three_quarters_of_the_budget_only),
    };
    return cmocka_run_group_tests_name("short-memory", tests, NULL, NULL);
}
