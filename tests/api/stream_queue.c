/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

/* What the application says about its queue: several slices at once, when to hold back, when it wants to hear that all
 * has gone; and the queue's marks, to the byte. */

static const int64_t ms = 1000000;
static const weir_stream_options marks = {
    .size = sizeof marks, .queue_limit_bytes = 10000, .queue_high_bytes = 4000, .queue_low_bytes = 1000
};
static uint8_t many[3 << 20]; /* test_byte(1, ...) */

static int setup(void **state) {
    test_fill(1, 0, many, sizeof many);
    return witness_setup(state);
}

#define queue_test(function) cmocka_unit_test_setup_teardown(function, setup, witness_teardown)

static uint64_t queued(const witness *w) {
    return weir_stream_get_queued(w->stream);
}

static weir_stream_stats stats_of(const witness *w) {
    weir_stream_stats stats = { .size = sizeof stats };
    test_ok(weir_stream_get_stats(w->stream, &stats));
    return stats;
}

/* Read so much at the peer while the loop runs, and it is what was written from @position on. */
static void expect(test_fixture *f, int peer, uint64_t position, size_t size) {
    static uint8_t got[65536];
    int64_t deadline = test_now_ns() + 20000 * ms;
    while (size > 0) {
        int n = peer_poll(peer, got, size < sizeof got ? size : sizeof got);
        if (n > 0) {
            assert_int_equal(test_differs(1, position, got, (size_t)n), -1);
            position += (uint64_t)n;
            size -= (size_t)n;
        } else {
            assert_int_equal(n, -EAGAIN);
            assert_true(test_now_ns() < deadline);
            assert_true(weir_loop_run_once(f->loop, ms) >= 0);
        }
    }
}

static void expect_nothing(test_fixture *f, int peer) {
    uint8_t byte;
    run_turns(f, 5);
    assert_int_equal(peer_poll(peer, &byte, 1), -EAGAIN);
}

/* A stream whose socket takes a few thousand bytes at a time. */
static int narrow_pair(test_fixture *f, witness *w, const weir_stream_options *options) {
    int fds[2];
    memset(w, 0, sizeof *w);
    test_pair(false, fds);
    set_buffer_sizes(fds[0], 8192);
    set_buffer_sizes(fds[1], 8192);
    witness_adopt(f, w, fds[0], options);
    return fds[1];
}

static weir_slice by_hand(size_t position, size_t size) {
    return (weir_slice){ many + position, size, NULL };
}

/* ---- writev ------------------------------------------------------------------------------------------ */

static void parts_keep_their_order_and_only_uncounted_ones_are_copied(void **state) {
    test_fixture *f = *state;
    static witness w;
    lent releases = { 0 };
    weir_slice made, wrapped;
    int peer = witness_pair(f, &w, true, NULL);
    test_ok(weir_slice_copy(weir_loop_get_pool(f->loop), many + 4, 5000, &made));
    test_ok(weir_slice_wrap(weir_loop_get_pool(f->loop), many + 5014, 7000, lent_release, &releases, &wrapped));
    uint64_t copied = test_loop_stats(f).bytes_copied;
    uint8_t header[4], middle[10];
    memcpy(header, many, 4);
    memcpy(middle, many + 5004, 10);
    const weir_slice parts[] = { { header, 4, NULL }, made,    { NULL, 0, NULL },           { middle, 10, NULL },
                                 { many, 0, NULL },   wrapped, { made.data, 0, made.owner } };
    assert_int_equal(weir_stream_writev(w.stream, parts, 7), WEIR_WRITE_OK);
    memset(header, 0, sizeof header);
    memset(middle, 0, sizeof middle);
    weir_slice_unref(&made);
    weir_slice_unref(&wrapped);
    assert_int_equal(releases.releases, 0);
    assert_int_equal(queued(&w), 12014);
    expect(f, peer, 0, 12014);
    run_until(f, queued(&w) == 0);
    assert_int_equal(releases.releases, 1);
    assert_int_equal(stats_of(&w).bytes_copied, 14);
    assert_int_equal(test_loop_stats(f).bytes_copied - copied, 14);
    close(peer);
}

/* 1,063 ranges are what a queue of 10,000 bytes may have, so these are one. */
static void parts_that_are_neighbours_are_one_range(void **state) {
    test_fixture *f = *state;
    static witness w;
    static weir_slice parts[1024];
    weir_slice made;
    int peer = witness_pair(f, &w, false, &marks);
    test_ok(weir_stream_cork(w.stream));
    test_ok(weir_slice_copy(weir_loop_get_pool(f->loop), many, 3072, &made));
    for (size_t third = 0; third < 3; third++) {
        for (size_t i = 0; i < 1024; i++)
            parts[i] = (weir_slice){ made.data + third * 1024 + i, 1, made.owner };
        assert_int_equal(weir_stream_writev(w.stream, parts, 1024), WEIR_WRITE_OK);
    }
    weir_slice_unref(&made);
    test_ok(weir_stream_uncork(w.stream));
    expect(f, peer, 0, 3072);
    close(peer);
}

static void as_many_parts_as_are_allowed_and_one_more(void **state) {
    test_fixture *f = *state;
    static witness w;
    static weir_slice parts[1025];
    int peer = witness_pair(f, &w, false, NULL);
    for (size_t i = 0; i < 1025; i++)
        parts[i] = by_hand(3 * i, 3);
    assert_int_equal(weir_stream_writev(w.stream, parts, 1025), -EINVAL);
    assert_int_equal(queued(&w), 0);
    assert_int_equal(weir_stream_writev(w.stream, parts, 1024), WEIR_WRITE_OK);
    expect(f, peer, 0, 3072);
    assert_int_equal(weir_stream_writev(w.stream, NULL, 0), WEIR_WRITE_OK);
    expect_nothing(f, peer);
    close(peer);
}

static void parts_are_counted_against_the_marks_together(void **state) {
    test_fixture *f = *state;
    static witness w;
    lent releases = { 0 };
    int peer = witness_pair(f, &w, false, &marks);
    test_ok(weir_stream_cork(w.stream));
    const weir_slice high[] = { by_hand(0, 2000), by_hand(2000, 2000) }, more[] = { by_hand(4000, 1) };
    assert_int_equal(weir_stream_writev(w.stream, high, 2), WEIR_WRITE_OK); /* at the high mark, not above */
    assert_int_equal(weir_stream_writev(w.stream, more, 1), WEIR_WRITE_FULL);
    weir_slice wrapped;
    test_ok(weir_slice_wrap(weir_loop_get_pool(f->loop), many + 4001, 1000, lent_release, &releases, &wrapped));
    weir_slice rest[] = { wrapped, by_hand(5001, 2000), by_hand(7001, 3000) };
    assert_int_equal(weir_stream_writev(w.stream, rest, 3), -ENOBUFS); /* 10,001 */
    assert_int_equal(queued(&w), 4001);
    rest[2].size = SIZE_MAX; /* and together more than there are numbers */
    assert_int_equal(weir_stream_writev(w.stream, rest, 3), -EMSGSIZE);
    rest[2].size = 2999;
    assert_int_equal(weir_stream_writev(w.stream, rest, 3), WEIR_WRITE_FULL); /* the limit */
    weir_slice_unref(&wrapped);
    assert_int_equal(weir_stream_writev(w.stream, more, 1), -ENOBUFS);
    assert_int_equal(queued(&w), 10000);
    expect(f, peer, 0, 10000);
    run_until(f, w.drains == 1);
    assert_int_equal(releases.releases, 1);
    close(peer);
}

/* The third part finds no room, when two and a reference are queued already. */
static void parts_beyond_the_budget_leave_nothing_behind(void **state) {
    test_fixture f;
    (void)state;
    static witness w;
    lent releases = { 0 };
    weir_slice wrapped;
    const weir_pool_options pool = {
        .size = sizeof pool, .budget_bytes = 1 << 20, .buffer_bytes = 4096, .window_bytes = 4096
    };
    test_open(&f, NULL, &pool);
    int peer = witness_pair(&f, &w, true, NULL);
    assert_int_equal(weir_stream_write(w.stream, many, 100), WEIR_WRITE_OK); /* whose block has room for more */
    uint64_t before = test_pool_stats(&f).block_bytes;
    test_ok(weir_slice_wrap(weir_loop_get_pool(f.loop), many + 400100, 10, lent_release, &releases, &wrapped));
    const weir_slice parts[] = { by_hand(100, 200000), by_hand(200100, 200000), wrapped, by_hand(0, 600000) };
    assert_int_equal(weir_stream_writev(w.stream, parts, 4), -ENOBUFS);
    assert_int_equal(queued(&w), 100);
    assert_int_equal(test_pool_stats(&f).block_bytes, before);
    assert_int_equal(stats_of(&w).bytes_copied, 100);
    assert_int_equal(weir_stream_writev(w.stream, parts, 3), WEIR_WRITE_OK); /* it goes on, from the same byte */
    weir_slice_unref(&wrapped);
    assert_int_equal(releases.releases, 0);
    expect(&f, peer, 0, 400110);
    run_until(&f, w.drains == 1); /* as it was refused with something queued */
    assert_int_equal(releases.releases, 1);
    close(peer);
    test_close(&f);
}

/* ---- cork -------------------------------------------------------------------------------------------- */

static void corked_bytes_wait_for_the_uncork(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, true, &marks);
    test_ok(weir_stream_cork(w.stream));
    for (size_t i = 0; i < 40; i++)
        assert_int_equal(weir_stream_write(w.stream, many + 100 * i, 100), WEIR_WRITE_OK);
    expect_nothing(f, peer); /* at the high mark, not above */
    assert_int_equal(queued(&w), 4000);
    test_ok(weir_stream_cork(w.stream));
    test_ok(weir_stream_uncork(w.stream)); /* it does not nest */
    expect(f, peer, 0, 4000);
    assert_int_equal(weir_stream_write(w.stream, many + 4000, 100), WEIR_WRITE_OK); /* nor last */
    expect(f, peer, 4000, 100);
    assert_int_equal(w.drains, 0);
    close(peer);
}

static void a_cork_is_in_place_before_the_first_byte(void **state) {
    test_fixture *f = *state;
    static witness w;
    int fds[2];
    memset(&w, 0, sizeof w);
    test_pair(false, fds);
    test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &w.stream));
    test_ok(weir_stream_cork(w.stream));
    assert_int_equal(weir_stream_write(w.stream, many, 100), WEIR_WRITE_OK);
    test_ok(weir_stream_start(w.stream, &witness_callbacks, &w));
    expect_nothing(f, fds[1]);
    test_ok(weir_stream_uncork(w.stream));
    expect(f, fds[1], 0, 100);
    close(fds[1]);
}

/*
 * Who was told that the queue is full writes on when it is drained, and uncorks then. Sends stopped again as soon as the
 * queue had fallen to the high mark, and nobody ever heard of the low one.
 */
static void a_cork_gives_way_from_the_high_mark_to_the_low_one(void **state) {
    test_fixture *f = *state;
    static witness w;
    const weir_stream_options options = { .size = sizeof options,
                                          .queue_limit_bytes = 2 << 20,
                                          .queue_high_bytes = 1 << 20,
                                          .queue_low_bytes = 300000 };
    int peer = narrow_pair(f, &w, &options);
    test_ok(weir_stream_cork(w.stream));
    assert_int_equal(weir_stream_write_external(w.stream, many, 1 << 20, NULL, NULL), WEIR_WRITE_OK);
    expect_nothing(f, peer);
    assert_int_equal(weir_stream_write(w.stream, many + (1 << 20), 1), WEIR_WRITE_FULL);
    uint64_t position = 0;
    for (; w.drains == 0; position += 1000)
        expect(f, peer, position, 1000);
    for (uint8_t byte[1000]; queued(&w) > 0 && position + queued(&w) < 1 + (1 << 20);) {
        int n = peer_poll(peer, byte, sizeof byte);
        if (n < 0)
            break; /* what the socket holds is all that comes now: the rest waits for the uncork */
        assert_int_equal(test_differs(1, position, byte, (size_t)n), -1);
        position += (uint64_t)n;
        run_turns(f, 3);
    }
    uint64_t left = queued(&w);
    assert_true(left > 0 && left <= 300000);
    expect_nothing(f, peer);
    assert_int_equal(queued(&w), left);
    test_ok(weir_stream_uncork(w.stream));
    expect(f, peer, position, (1 << 20) + 1 - position);
    assert_int_equal(w.drains, 1);
    close(peer);
}

static void a_refused_write_on_a_corked_stream_is_followed_by_a_drain(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, false, &marks);
    test_ok(weir_stream_cork(w.stream));
    assert_int_equal(weir_stream_write(w.stream, many, 3000), WEIR_WRITE_OK);
    expect_nothing(f, peer);
    assert_int_equal(weir_stream_write(w.stream, many, 7001), -ENOBUFS);
    expect(f, peer, 0, 3000);
    run_until(f, w.drains == 1);
    assert_int_equal(weir_stream_write(w.stream, many + 3000, 1000), WEIR_WRITE_OK); /* corked still */
    expect_nothing(f, peer);
    close(peer);
}

static void shutdown_and_close_send_what_is_corked(void **state) {
    test_fixture *f = *state;
    for (int closes = 0; closes <= 1; closes++) {
        static witness w;
        int peer = witness_pair(f, &w, true, NULL);
        test_ok(weir_stream_cork(w.stream));
        assert_int_equal(weir_stream_write(w.stream, many, 100000), WEIR_WRITE_OK);
        expect_nothing(f, peer);
        test_ok(closes ? weir_stream_close(w.stream) : weir_stream_shutdown(w.stream));
        expect(f, peer, 0, 100000);
        char byte;
        run_until(f, peer_poll(peer, &byte, 1) == 0);
        assert_int_equal(w.closes, 0);
        close(peer);
        run_until(f, closes ? w.closes == 1 : w.ends == 1);
        test_ok(weir_stream_abort(w.stream));
        run_until(f, w.closes == 1);
    }
}

/* ---- the marks ----------------------------------------------------------------------------------------- */

static uint64_t queued_at_drain;

static void note_queued(witness *w, char event, const weir_slice *slice) {
    (void)slice;
    if (event == 'r')
        queued_at_drain = queued(w);
}

/* A gathered send takes 64 pieces at most: so what is left of these is known. */
static void drain_is_told_at_the_low_mark_and_not_a_byte_above(void **state) {
    test_fixture *f = *state;
    static const uint64_t left[] = { 999, 1000, 1001 }, at_drain[] = { 999, 1000, 0 };
    for (int i = 0; i < 3; i++) {
        static witness w;
        static uint8_t pieces[65][1001], got[64 * 100 + 1001];
        const weir_stream_options options = { .size = sizeof options,
                                              .queue_high_bytes = 7000,
                                              .queue_low_bytes = 1000 };
        int peer = witness_pair(f, &w, true, &options);
        w.hook = note_queued;
        queued_at_drain = UINT64_MAX;
        for (int piece = 0; piece < 64; piece++)
            assert_int_equal(weir_stream_write_external(w.stream, pieces[piece], 100, NULL, NULL), WEIR_WRITE_OK);
        assert_int_equal(weir_stream_write_external(w.stream, pieces[64], left[i], NULL, NULL), WEIR_WRITE_FULL);
        run_until(f, w.drains == 1);
        assert_int_equal(queued_at_drain, at_drain[i]);
        run_until(f, queued(&w) == 0);
        peer_receive(peer, got, 6400 + left[i]);
        run_turns(f, 3);
        assert_int_equal(w.drains, 1);
        close(peer);
        run_until(f, w.ends == 1);
        test_ok(weir_stream_abort(w.stream));
        run_until(f, w.closes == 1);
    }
}

static unsigned refills;

static void write_above_the_mark_again(witness *w, char event, const weir_slice *slice) {
    (void)slice;
    if (event != 'r' || refills == 3)
        return;
    refills++;
    assert_int_equal(weir_stream_write(w->stream, many, 4001 - queued(w)), WEIR_WRITE_FULL);
}

static void a_drain_that_fills_the_queue_again_is_owed_another(void **state) {
    test_fixture *f = *state;
    static witness w;
    static uint8_t got[4 * 4001];
    refills = 0;
    int peer = witness_pair(f, &w, true, &marks);
    w.hook = write_above_the_mark_again;
    assert_int_equal(weir_stream_write(w.stream, many, 4001), WEIR_WRITE_FULL);
    run_until(f, w.drains == 4);
    run_until(f, queued(&w) == 0);
    peer_receive(peer, got, sizeof got);
    run_turns(f, 3);
    assert_int_equal(w.drains, 4);
    close(peer);
}

/* ---- a loop that runs for good ---------------------------------------------------------------------------- */

/* It is told of success with what comes next, so that a send costs no turn of its own: whoever looks then finds it gone. */
static void look(weir_timer *timer, void *userdata) {
    witness *w = userdata;
    (void)timer;
    assert_int_equal(queued(w), 0);
    assert_int_equal(stats_of(w).bytes_out, 100);
    weir_loop_stop(weir_stream_get_loop(w->stream));
}

static void what_was_sent_is_gone_from_the_queue_when_anything_happens(void **state) {
    test_fixture *f = *state;
    static witness both[2];
    weir_timer *timer;
    uint8_t got[100];
    for (int tcp = 0; tcp <= 1; tcp++) {
        witness *w = &both[tcp];
        memset(w, 0, sizeof *w);
        int peer = witness_pair(f, w, tcp, &marks);
        assert_int_equal(weir_stream_write(w->stream, many, 100), WEIR_WRITE_OK);
        test_ok(weir_timer_new(f->loop, look, w, &timer));
        test_ok(weir_timer_start(timer, 5 * ms, 0));
        test_ok(weir_loop_run(f->loop));
        peer_receive(peer, got, sizeof got);
        weir_timer_unref(timer);
        close(peer);
    }
}

static void told(weir_stream *stream, int error, void *userdata) {
    (void)userdata;
    assert_int_equal(error, 0);
    weir_loop_stop(weir_stream_get_loop(stream));
}

/* And who waits for it is told at once: nothing else would end this run. */
static void who_waits_for_a_send_is_told_though_nothing_else_happens(void **state) {
    test_fixture *f = *state;
    static witness w;
    memset(&w, 0, sizeof w);
    int peer = witness_pair(f, &w, true, &marks);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(weir_stream_write(w.stream, many, 100), WEIR_WRITE_OK);
        test_ok(weir_stream_flush(w.stream, told, NULL));
        test_ok(weir_loop_run(f->loop));
    }
    w.drains = 0;
    assert_int_equal(weir_stream_write(w.stream, many, 5000), WEIR_WRITE_FULL);
    test_ok(weir_stream_flush(w.stream, told, NULL));
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(w.drains, 1);
    close(peer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        queue_test(parts_keep_their_order_and_only_uncounted_ones_are_copied),
        queue_test(parts_that_are_neighbours_are_one_range),
        queue_test(as_many_parts_as_are_allowed_and_one_more),
        queue_test(parts_are_counted_against_the_marks_together),
        cmocka_unit_test_setup_teardown(parts_beyond_the_budget_leave_nothing_behind, setup, witness_teardown),
        queue_test(corked_bytes_wait_for_the_uncork),
        queue_test(a_cork_is_in_place_before_the_first_byte),
        queue_test(a_cork_gives_way_from_the_high_mark_to_the_low_one),
        queue_test(a_refused_write_on_a_corked_stream_is_followed_by_a_drain),
        queue_test(shutdown_and_close_send_what_is_corked),
        queue_test(drain_is_told_at_the_low_mark_and_not_a_byte_above),
        queue_test(a_drain_that_fills_the_queue_again_is_owed_another),
        queue_test(what_was_sent_is_gone_from_the_queue_when_anything_happens),
        queue_test(who_waits_for_a_send_is_told_though_nothing_else_happens),
    };
    return cmocka_run_group_tests_name("stream-queue", tests, NULL, NULL);
}
