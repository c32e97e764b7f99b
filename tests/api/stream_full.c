/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

/* A writer that is faster than its peer: it is told so before it is refused, and afterwards that there is room. */

static uint8_t many[256 << 10];

/* Read so much at the peer, while the loop runs. */
static void drink(test_fixture *f, int peer, size_t size) {
    static uint8_t got[64 << 10];
    size_t have = 0;
    int n = 0;
    run_until(f, ((n = peer_poll(peer, got, sizeof got)) > 0 ? (have += (size_t)n) : have) >= size);
    assert_int_equal(have, size);
}

static void drained_once(test_fixture *f, const witness *w) {
    run_until(f, weir_stream_get_queued(w->stream) == 0 && w->drains > 0);
    run_turns(f, 3);
    assert_int_equal(w->drains, 1);
}

/* ---- refused ----------------------------------------------------------------------------------------- */

/*
 * A relay that pauses its source when a write is refused, and resumes it in on_drain, stopped for good: a drain came
 * after WEIR_WRITE_FULL alone, and a write that passes the limit at one go is refused without there having been one.
 */
static void a_refused_write_is_followed_by_a_drain_while_something_is_queued(void **state) {
    test_fixture *f = *state;
    const weir_stream_options options = { .size = sizeof options, .queue_limit_bytes = 10000 };
    for (int kind = 0; kind < 3; kind++) {
        static witness each[3];
        witness *w = &each[kind];
        weir_slice slice;
        int peer = witness_pair(f, w, false, &options), r = 0;
        test_ok(weir_slice_copy(weir_loop_get_pool(f->loop), many, 9901, &slice));
        assert_int_equal(weir_stream_write(w->stream, many, 100), WEIR_WRITE_OK);
        for (int again = 0; again < 2; again++) { /* however often, it is one drain */
            if (kind == 0)
                r = weir_stream_write(w->stream, many, 9901);
            else if (kind == 1)
                r = weir_stream_write_slice(w->stream, &slice);
            else
                r = weir_stream_write_external(w->stream, many, 9901, NULL, NULL);
            assert_int_equal(r, -ENOBUFS);
        }
        weir_slice_unref(&slice);
        assert_int_equal(w->drains, 0);
        drink(f, peer, 100);
        drained_once(f, w);
        assert_int_equal(weir_stream_write(w->stream, many, 4000), WEIR_WRITE_OK); /* nothing is owed any more */
        drink(f, peer, 4000);
        drained_once(f, w);
        close(peer);
    }
}

static void a_write_refused_by_the_budget_is_followed_by_a_drain_while_something_is_queued(void **state) {
    (void)state;
    const weir_pool_options pool = {
        .size = sizeof pool, .budget_bytes = 256 << 10, .buffer_bytes = 4096, .window_bytes = 4096
    };
    static witness w;
    test_fixture f;
    test_open(&f, NULL, &pool);
    int peer = witness_pair(&f, &w, false, NULL);
    assert_int_equal(weir_stream_write(w.stream, many, 100 << 10), WEIR_WRITE_OK);
    assert_int_equal(weir_stream_write(w.stream, many, 150 << 10), -ENOBUFS);
    drink(&f, peer, 100 << 10);
    drained_once(&f, &w);
    assert_int_equal(weir_stream_write(w.stream, many, 150 << 10), WEIR_WRITE_OK);
    drink(&f, peer, 150 << 10);
    close(peer);
    test_close(&f);
}

/* It was -ENOBUFS, and who waited for a drain to try it again waited for ever. */
static void a_write_larger_than_the_limit_owes_no_drain(void **state) {
    test_fixture *f = *state;
    const weir_stream_options options = { .size = sizeof options, .queue_limit_bytes = 10000 };
    static witness w;
    int peer = witness_pair(f, &w, false, &options);
    assert_int_equal(weir_stream_write(w.stream, many, 10001), -EMSGSIZE);
    run_turns(f, 3);
    assert_int_equal(w.drains, 0);
    assert_int_equal(weir_stream_write(w.stream, many, 5000), WEIR_WRITE_OK);
    assert_int_equal(weir_stream_write(w.stream, many, 10001), -EMSGSIZE);
    drink(f, peer, 5000);
    run_until(f, weir_stream_get_queued(w.stream) == 0);
    run_turns(f, 3);
    assert_int_equal(w.drains, 0);
    close(peer);
}

/* ---- told before ------------------------------------------------------------------------------------- */

/* With a limit of a megabyte or less the high mark was the limit itself: what was above the one was refused by the
 * other, and there never was a WEIR_WRITE_FULL. */
static void full_is_said_before_a_refusal_also_with_a_small_limit(void **state) {
    test_fixture *f = *state;
    static const size_t limits[] = { 256 << 10, 1000, 2 };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        const weir_stream_options options = { .size = sizeof options, .queue_limit_bytes = limits[i] };
        static witness each[3];
        witness *w = &each[i];
        size_t written = 0, piece = limits[i] > 1000 ? 1024 : 1;
        int peer = witness_pair(f, w, false, &options);
        while (written + piece <= limits[i]) {
            int r = weir_stream_write(w->stream, many, piece);
            written += piece;
            assert_int_equal(r, written > limits[i] / 2 ? WEIR_WRITE_FULL : WEIR_WRITE_OK);
        }
        assert_int_equal(weir_stream_write(w->stream, many, piece), -ENOBUFS);
        drink(f, peer, written);
        drained_once(f, w);
        close(peer);
    }
}

static void write_at_the_drain(witness *w, char event, const weir_slice *slice) {
    (void)slice;
    if (event == 'r') /* it says that there is room, of what there was none */
        assert_int_equal(weir_stream_write_external(w->stream, many, 1, NULL, NULL), WEIR_WRITE_OK);
}

/* A queue has a limit of ranges as well, which had no mark: writes of a byte each were WEIR_WRITE_OK until they were
 * refused. */
static void full_is_said_of_the_number_of_tiny_writes_before_they_are_refused(void **state) {
    test_fixture *f = *state;
    const weir_stream_options options = { .size = sizeof options, .queue_limit_bytes = 100000 };
    static witness w;
    size_t fine = 0, full = 0;
    int r, peer = witness_pair(f, &w, false, &options);
    w.hook = write_at_the_drain;
    while ((r = weir_stream_write_external(w.stream, many, 1, NULL, NULL)) >= 0) {
        assert_true(r == WEIR_WRITE_FULL || full == 0); /* it does not change its mind */
        fine += r == WEIR_WRITE_OK;
        full += r == WEIR_WRITE_FULL;
    }
    assert_int_equal(r, -ENOBUFS);
    assert_true(fine >= 256); /* a queue is no use without some room */
    assert_true(full >= 256);
    assert_true(fine + full < 25000); /* not the bytes' high mark, which is half of the limit */
    assert_int_equal(w.drains, 0);
    drink(f, peer, fine + full + 1);
    drained_once(f, &w);
    close(peer);
}

/*
 * Nothing but the peer's reading makes room, and it may have shut down its own side long before it reads. The loop used to
 * spin until then: the kernel tells whoever waits for room of that end, too, at once and for ever.
 */
static void a_loop_sleeps_while_a_peer_that_has_ended_does_not_read(void **state) {
    test_fixture *f = *state;
    static uint8_t much[8 << 20];
    const weir_stream_options options = { .size = sizeof options, .queue_limit_bytes = 16 << 20 };
    for (int tcp = 0; tcp <= 1; tcp++) {
        static witness each[2];
        witness *w = &each[tcp];
        int peer = witness_pair(f, w, tcp, &options);
        assert_true(weir_stream_write_external(w->stream, much, sizeof much, NULL, NULL) >= 0);
        shutdown(peer, SHUT_WR);
        run_until(f, w->ends == 1);
        uint64_t queued;
        do { /* until the kernel takes no more */
            queued = weir_stream_get_queued(w->stream);
            test_sleep_ms(50);
            run_turns(f, 5);
        } while (weir_stream_get_queued(w->stream) != queued);
        assert_true(queued > 0);
        uint64_t completions = test_loop_stats(f).completions;
        run_turns(f, 50);
        assert_true(test_loop_stats(f).completions - completions < 25);
        assert_int_equal(weir_stream_get_queued(w->stream), queued);
        drink(f, peer, sizeof much);
        assert_int_equal(weir_stream_get_queued(w->stream), 0);
        test_ok(weir_stream_close(w->stream));
        run_until(f, w->closes == 1);
        assert_int_equal(w->error, 0);
        close(peer);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        loop_test(a_refused_write_is_followed_by_a_drain_while_something_is_queued),
        cmocka_unit_test(a_write_refused_by_the_budget_is_followed_by_a_drain_while_something_is_queued),
        loop_test(a_write_larger_than_the_limit_owes_no_drain),
        loop_test(full_is_said_before_a_refusal_also_with_a_small_limit),
        loop_test(full_is_said_of_the_number_of_tiny_writes_before_they_are_refused),
        loop_test(a_loop_sleeps_while_a_peer_that_has_ended_does_not_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
