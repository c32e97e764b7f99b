/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

/* Writing: one queue, one order, all or nothing; its marks and its limit; memory that is lent. */

static const int64_t ms = 1000000;

/* Read so much at the peer, while the loop runs. */
static void collect(test_fixture *f, int peer, uint8_t *data, size_t size) {
    int64_t deadline = test_now_ns() + 20000 * ms;
    while (size > 0) {
        int n = peer_poll(peer, data, size);
        if (n > 0) {
            data += n;
            size -= (size_t)n;
        } else {
            assert_int_equal(n, -EAGAIN);
            assert_true(test_now_ns() < deadline);
            assert_true(weir_loop_run_once(f->loop, ms) >= 0);
        }
    }
}

static uint64_t queued(const witness *w) {
    return weir_stream_get_queued(w->stream);
}

/* ---- order ------------------------------------------------------------------------------------------- */

static void writes_of_all_kinds_keep_one_order(void **state) {
    test_fixture *f = *state;
    static witness w;
    static uint8_t expected[300000], got[300000];
    weir_pool *pool = weir_loop_get_pool(f->loop);
    uint64_t random = 11;
    size_t size = 0;
    lent releases = { 0 };
    unsigned lends = 0;
    int peer = witness_pair(f, &w, true, NULL);
    test_fill(1, 0, expected, sizeof expected);
    while (sizeof expected - size > 3000) {
        size_t piece = 1 + test_random(&random) % 3000;
        weir_slice slice, part;
        int r = -1;
        switch (test_random(&random) % 5) {
        case 0: /* copied, small ones coalesce */
            piece = 1 + piece % 100;
            r = weir_stream_write(w.stream, expected + size, piece);
            break;
        case 1:
            r = weir_stream_write(w.stream, expected + size, piece);
            break;
        case 2: /* a slice, in two halves */
            test_ok(weir_slice_copy(pool, expected + size, piece, &slice));
            test_ok(weir_slice_sub(&slice, 0, piece / 2, &part));
            assert_int_equal(weir_stream_write_slice(w.stream, &part), WEIR_WRITE_OK);
            weir_slice_unref(&part);
            test_ok(weir_slice_sub(&slice, piece / 2, piece - piece / 2, &part));
            r = weir_stream_write_slice(w.stream, &part);
            weir_slice_unref(&part);
            weir_slice_unref(&slice);
            break;
        case 3:
            r = weir_stream_write_external(w.stream, expected + size, piece, lent_release, &releases);
            lends++;
            break;
        case 4: /* bytes that nobody counts are copied */
            slice = (weir_slice){ expected + size, piece, NULL };
            r = weir_stream_write_slice(w.stream, &slice);
            break;
        }
        assert_int_equal(r, WEIR_WRITE_OK);
        size += piece;
        if (test_random(&random) % 8 == 0)
            run_turns(f, 1);
    }
    collect(f, peer, got, size);
    assert_memory_equal(got, expected, size);
    run_until(f, queued(&w) == 0);
    assert_int_equal(releases.releases, lends);
    weir_stream_stats stats = { .size = sizeof stats };
    test_ok(weir_stream_get_stats(w.stream, &stats));
    assert_int_equal(stats.bytes_out, size);
    close(peer);
}

static void bytes_are_copied_before_write_returns(void **state) {
    test_fixture *f = *state;
    static witness w;
    char text[] = "first", got[15];
    weir_slice uncounted = { (const uint8_t *)text, 5, NULL };
    int peer = witness_pair(f, &w, false, NULL);
    assert_int_equal(weir_stream_write(w.stream, text, 5), WEIR_WRITE_OK);
    strcpy(text, "other");
    assert_int_equal(weir_stream_write_slice(w.stream, &uncounted), WEIR_WRITE_OK);
    strcpy(text, "third");
    assert_int_equal(weir_stream_write(w.stream, text, 5), WEIR_WRITE_OK);
    memset(text, 0, sizeof text);
    collect(f, peer, (uint8_t *)got, sizeof got);
    assert_memory_equal(got, "firstotherthird", 15);
    weir_stream_stats stats = { .size = sizeof stats };
    test_ok(weir_stream_get_stats(w.stream, &stats));
    assert_int_equal(stats.bytes_copied, 15);
    close(peer);
}

static void slices_and_lent_memory_are_not_copied(void **state) {
    test_fixture *f = *state;
    static witness w;
    static uint8_t data[100000], got[200000];
    lent releases = { 0 };
    weir_slice slice, part;
    uint8_t *fill;
    int peer = witness_pair(f, &w, true, NULL);
    test_fill(2, 0, data, sizeof data);
    test_ok(weir_slice_new(weir_loop_get_pool(f->loop), sizeof data, &fill, &slice));
    memcpy(fill, data, sizeof data);
    part = (weir_slice){ slice.data, 10, slice.owner }; /* small ones neither; borrowed, so not to be dropped */
    assert_int_equal(weir_stream_write_slice(w.stream, &part), WEIR_WRITE_OK);
    part = (weir_slice){ slice.data + 10, sizeof data - 10, slice.owner };
    assert_int_equal(weir_stream_write_slice(w.stream, &part), WEIR_WRITE_OK);
    weir_slice_unref(&slice);
    assert_int_equal(weir_stream_write_external(w.stream, data, sizeof data, lent_release, &releases),
                     WEIR_WRITE_OK);
    collect(f, peer, got, sizeof got);
    assert_int_equal(test_differs(2, 0, got, sizeof data), -1);
    assert_int_equal(test_differs(2, 0, got + sizeof data, sizeof data), -1);
    assert_int_equal(test_loop_stats(f).bytes_copied, 0);
    weir_stream_stats stats = { .size = sizeof stats };
    test_ok(weir_stream_get_stats(w.stream, &stats));
    assert_int_equal(stats.bytes_copied, 0);
    assert_int_equal(stats.queue_peak_bytes, 2 * sizeof data);
    close(peer);
}

static void a_write_of_nothing_does_nothing(void **state) {
    test_fixture *f = *state;
    static witness w;
    static const weir_slice empty;
    int peer = witness_pair(f, &w, false, NULL);
    assert_int_equal(weir_stream_write(w.stream, "x", 0), WEIR_WRITE_OK);
    assert_int_equal(weir_stream_write(w.stream, NULL, 0), WEIR_WRITE_OK);
    assert_int_equal(weir_stream_write_slice(w.stream, &empty), WEIR_WRITE_OK);
    assert_int_equal(queued(&w), 0);
    run_turns(f, 3);
    char byte;
    assert_int_equal(peer_poll(peer, &byte, 1), -EAGAIN);
    close(peer);
}

/* ---- the marks --------------------------------------------------------------------------------------- */

static const weir_stream_options marks = {
    .size = sizeof marks, .queue_limit_bytes = 10000, .queue_high_bytes = 4000, .queue_low_bytes = 1000
};
static uint8_t many[10001];

static void a_write_says_full_exactly_above_the_high_mark(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, false, &marks);
    assert_int_equal(weir_stream_write(w.stream, many, 3999), WEIR_WRITE_OK);
    assert_int_equal(weir_stream_write(w.stream, many, 1), WEIR_WRITE_OK);
    assert_int_equal(weir_stream_write(w.stream, many, 1), WEIR_WRITE_FULL);
    assert_int_equal(weir_stream_write(w.stream, many, 1), WEIR_WRITE_FULL);
    assert_int_equal(queued(&w), 4002); /* full was taken all the same */
    assert_int_equal(w.drains, 0);
    collect(f, peer, many, 4002);
    run_until(f, w.drains == 1);
    run_turns(f, 3);
    assert_int_equal(w.drains, 1);
    close(peer);
}

static void no_drain_comes_of_a_queue_that_was_not_full(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, false, &marks);
    assert_int_equal(weir_stream_write(w.stream, many, 4000), WEIR_WRITE_OK);
    collect(f, peer, many, 4000);
    run_until(f, queued(&w) == 0);
    run_turns(f, 3);
    assert_int_equal(w.drains, 0);
    close(peer);
}

static void what_is_above_the_limit_is_refused_with_nothing_changed(void **state) {
    test_fixture *f = *state;
    static witness w;
    lent releases = { 0 };
    weir_slice slice, uncounted = { many, 1, NULL };
    int peer = witness_pair(f, &w, false, &marks);
    test_ok(weir_slice_copy(weir_loop_get_pool(f->loop), "abc", 3, &slice));
    assert_int_equal(weir_stream_write(w.stream, many, 10001), -EMSGSIZE);
    assert_int_equal(queued(&w), 0);
    assert_int_equal(weir_stream_write(w.stream, many, 9999), WEIR_WRITE_FULL);
    assert_int_equal(weir_stream_write(w.stream, many, 2), -ENOBUFS);
    assert_int_equal(weir_stream_write_slice(w.stream, &slice), -ENOBUFS);
    assert_int_equal(weir_stream_write_external(w.stream, many, 2, lent_release, &releases), -ENOBUFS);
    assert_int_equal(queued(&w), 9999);
    assert_int_equal(weir_stream_write(w.stream, many, 1), WEIR_WRITE_FULL); /* exactly the limit */
    assert_int_equal(weir_stream_write_slice(w.stream, &uncounted), -ENOBUFS);
    assert_int_equal(weir_stream_write(w.stream, many, SIZE_MAX), -EMSGSIZE);
    assert_int_equal(weir_stream_write_external(w.stream, many, SIZE_MAX, lent_release, &releases), -EMSGSIZE);
    assert_int_equal(slice.size, 3);
    assert_int_equal(weir_stream_get_state(w.stream), WEIR_STREAM_OPEN);
    collect(f, peer, many, 10000);
    run_until(f, queued(&w) == 0);
    assert_int_equal(weir_stream_write_slice(w.stream, &slice), WEIR_WRITE_OK); /* it goes on */
    collect(f, peer, many, 3);
    assert_memory_equal(many, "abc", 3);
    assert_int_equal(releases.releases, 0);
    weir_slice_unref(&slice);
    close(peer);
}

static void lent_memory_counts_against_the_limit(void **state) {
    test_fixture *f = *state;
    static witness w;
    lent releases = { 0 };
    int peer = witness_pair(f, &w, false, &marks);
    assert_int_equal(weir_stream_write_external(w.stream, many, 4001, lent_release, &releases), WEIR_WRITE_FULL);
    assert_int_equal(weir_stream_write_external(w.stream, many, 6000, lent_release, &releases), -ENOBUFS);
    assert_int_equal(releases.releases, 0);
    collect(f, peer, many, 4001);
    run_until(f, releases.releases == 1);
    close(peer);
}

static unsigned falls;

static void refill_on_drain(witness *w, char event, const weir_slice *slice) {
    static uint8_t block[5000];
    (void)slice;
    if (event != 'r')
        return;
    assert_true(queued(w) <= 1000);
    if (++falls < 5)
        assert_int_equal(weir_stream_write(w->stream, block, sizeof block), WEIR_WRITE_FULL);
}

static void drain_comes_once_a_fall_and_may_write(void **state) {
    test_fixture *f = *state;
    static witness w;
    static uint8_t got[25000];
    falls = 0;
    int peer = witness_pair(f, &w, true, &marks);
    w.hook = refill_on_drain;
    assert_int_equal(weir_stream_write(w.stream, got, 5000), WEIR_WRITE_FULL);
    collect(f, peer, got, sizeof got);
    run_until(f, falls == 5);
    run_turns(f, 3);
    assert_int_equal(w.drains, 5);
    close(peer);
}

/* The queue falls through the low mark in steps of what a small socket takes. */
static void drain_waits_for_the_low_mark(void **state) {
    test_fixture *f = *state;
    static witness w;
    static uint8_t big[4 << 20], got[65536];
    const weir_stream_options options = { .size = sizeof options,
                                          .queue_limit_bytes = sizeof big,
                                          .queue_high_bytes = 1 << 20,
                                          .queue_low_bytes = 300000 };
    int fds[2];
    memset(&w, 0, sizeof w);
    test_pair(false, fds);
    set_buffer_sizes(fds[0], 8192);
    set_buffer_sizes(fds[1], 8192);
    witness_adopt(f, &w, fds[0], &options);
    assert_int_equal(weir_stream_write_external(w.stream, big, sizeof big, NULL, NULL), WEIR_WRITE_FULL);
    size_t have = 0;
    int64_t deadline = test_now_ns() + 20000 * ms;
    while (have < sizeof big) {
        int n = peer_poll(fds[1], got, sizeof got);
        have += n > 0 ? (size_t)n : 0;
        run_turns(f, 1);
        if (w.drains == 0)
            assert_true(queued(&w) > 300000);
        assert_true(test_now_ns() < deadline);
    }
    run_until(f, queued(&w) == 0);
    assert_int_equal(w.drains, 1);
    close(fds[1]);
}

static uint64_t queued_at_drain;

static void note_queued(witness *w, char event, const weir_slice *slice) {
    (void)slice;
    if (event == 'r')
        queued_at_drain = queued(w);
}

/* A gathered send takes 64 pieces at most: so what is left of these is known, and it is exactly the low mark. */
static void drain_comes_at_the_low_mark_not_below(void **state) {
    test_fixture *f = *state;
    static witness w;
    static uint8_t pieces[65][1001], got[64 * 100 + 1000];
    const weir_stream_options options = { .size = sizeof options,
                                          .queue_high_bytes = 7000,
                                          .queue_low_bytes = 1000 };
    int peer = witness_pair(f, &w, true, &options);
    w.hook = note_queued;
    queued_at_drain = UINT64_MAX;
    for (int i = 0; i < 64; i++)
        assert_true(weir_stream_write_external(w.stream, pieces[i], 100, NULL, NULL) >= 0);
    assert_int_equal(weir_stream_write_external(w.stream, pieces[64], 1000, NULL, NULL), WEIR_WRITE_FULL);
    collect(f, peer, got, sizeof got);
    run_until(f, w.drains == 1);
    assert_int_equal(queued_at_drain, 1000);
    close(peer);
}

/* ---- before it is connected or started --------------------------------------------------------------- */

static void writes_are_queued_until_the_stream_is_connected_and_started(void **state) {
    test_fixture *f = *state;
    static witness w;
    static witness_gate gate;
    char address[WEIR_ADDRESS_SIZE], got[10];
    memset(&w, 0, sizeof w);
    witness_listen(f, &gate, "127.0.0.1:0", NULL);
    assert_true(weir_listener_get_address(gate.listener, address, sizeof address) > 0);
    test_ok(weir_stream_dial(f->loop, address, NULL, &w.stream));
    assert_int_equal(weir_stream_write(w.stream, "hello", 5), WEIR_WRITE_OK);
    run_until(f, gate.count == 1);
    assert_int_equal(queued(&w), 5); /* connected by now, and still silent */
    test_ok(weir_stream_start(w.stream, &witness_callbacks, &w));
    assert_int_equal(weir_stream_write(w.stream, "there", 5), WEIR_WRITE_OK);
    int fd = -1;
    test_ok(weir_stream_detach(gate.streams[0], &fd));
    collect(f, fd, (uint8_t *)got, sizeof got);
    assert_memory_equal(got, "hellothere", 10);
    assert_int_equal(w.opens, 1);
    close(fd);
}

/* ---- shutdown ---------------------------------------------------------------------------------------- */

static void shutdown_ends_our_half_behind_the_queue(void **state) {
    test_fixture *f = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        static witness w;
        static uint8_t data[500000], got[500000];
        test_fill(3, 0, data, sizeof data);
        int peer = witness_pair(f, &w, tcp, NULL);
        assert_int_equal(weir_stream_write(w.stream, data, sizeof data), WEIR_WRITE_OK);
        test_ok(weir_stream_shutdown(w.stream));
        test_ok(weir_stream_shutdown(w.stream)); /* again */
        assert_int_equal(weir_stream_write(w.stream, "x", 1), -EPIPE);
        collect(f, peer, got, sizeof got);
        assert_int_equal(test_differs(3, 0, got, sizeof got), -1);
        run_until(f, peer_poll(peer, got, 1) == 0);
        peer_send(peer, "still read", 10); /* reading goes on */
        run_until(f, w.size == 10);
        assert_int_equal(weir_stream_get_state(w.stream), WEIR_STREAM_OPEN);
        close(peer);
        run_until(f, w.ends == 1);
        test_ok(weir_stream_close(w.stream));
        run_until(f, w.closes == 1);
        assert_int_equal(w.reason, WEIR_CLOSE_PEER);
        assert_int_equal(weir_stream_shutdown(NULL), -EINVAL);
    }
}

/* ---- lent memory ------------------------------------------------------------------------------------- */

static void released_before_close(witness *w, char event, const weir_slice *slice) {
    (void)slice;
    if (event == 'c')
        assert_int_equal(((lent *)w->userdata)->releases, 1);
}

/* More than a small socket takes at once. */
static uint8_t lots[1 << 20];

static int lend(test_fixture *f, witness *w, lent *it, bool tcp) {
    const weir_stream_options options = { .size = sizeof options,
                                          .queue_limit_bytes = sizeof lots,
                                          .queue_high_bytes = 1000,
                                          .linger_timeout_ns = 20 * ms };
    int fds[2];
    memset(w, 0, sizeof *w);
    memset(it, 0, sizeof *it);
    test_pair(tcp, fds);
    set_buffer_sizes(fds[0], 8192);
    witness_adopt(f, w, fds[0], &options);
    w->hook = released_before_close;
    w->userdata = it;
    assert_int_equal(weir_stream_write_external(w->stream, lots, sizeof lots, lent_release, it), WEIR_WRITE_FULL);
    run_turns(f, 3);
    assert_int_equal(it->releases, 0); /* the kernel has not taken it all */
    return fds[1];
}

static void assert_released(const lent *it) {
    assert_int_equal(it->releases, 1);
    assert_ptr_equal(it->data, lots);
    assert_int_equal(it->size, sizeof lots);
    assert_true(pthread_equal(it->thread, pthread_self()));
}

static void lent_memory_is_released_once_when_it_is_sent(void **state) {
    test_fixture *f = *state;
    static witness w;
    static uint8_t got[sizeof lots];
    lent it;
    int peer = lend(f, &w, &it, true);
    collect(f, peer, got, sizeof got);
    run_until(f, it.releases > 0);
    assert_released(&it);
    assert_int_equal(w.closes, 0);
    w.hook = NULL;
    close(peer);
}

static void lent_memory_is_released_before_on_close_of_an_abort(void **state) {
    test_fixture *f = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        static witness w;
        lent it;
        int peer = lend(f, &w, &it, tcp);
        test_ok(weir_stream_abort(w.stream));
        assert_int_equal(it.releases, 0); /* in a turn, not inside */
        run_until(f, w.closes == 1);
        assert_released(&it);
        close(peer);
    }
}

static void lent_memory_is_released_before_on_close_of_a_close_that_lingers(void **state) {
    test_fixture *f = *state;
    static witness w;
    lent it;
    int peer = lend(f, &w, &it, true);
    test_ok(weir_stream_close(w.stream));
    run_until(f, w.closes == 1);
    assert_int_equal(w.reason, WEIR_CLOSE_LINGER);
    assert_released(&it);
    close(peer);
}

static void lent_memory_is_released_before_on_close_of_a_reset(void **state) {
    test_fixture *f = *state;
    static witness w;
    lent it;
    int peer = lend(f, &w, &it, true);
    peer_reset(peer);
    run_until(f, w.closes == 1);
    assert_int_equal(w.reason, WEIR_CLOSE_ERROR);
    assert_released(&it);
}

static void lent_memory_is_released_before_on_close_of_the_loops_close(void **state) {
    test_fixture *f = *state;
    static witness w;
    lent it;
    int peer = lend(f, &w, &it, true);
    test_ok(weir_loop_close(f->loop));
    assert_int_equal(w.closes, 1);
    assert_released(&it);
    close(peer);
}

static void lent_memory_of_a_stream_that_was_never_started_is_released(void **state) {
    test_fixture *f = *state;
    weir_stream *stream;
    lent it = { 0 };
    int fds[2];
    test_pair(false, fds);
    test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &stream));
    assert_int_equal(weir_stream_write_external(stream, lots, 100, lent_release, &it), WEIR_WRITE_OK);
    test_ok(weir_stream_abort(stream));
    run_until(f, it.releases == 1);
    close(fds[1]);
}

static void refused_memory_is_never_released(void **state) {
    test_fixture *f = *state;
    static witness w;
    lent it = { 0 };
    int peer = witness_pair(f, &w, false, &marks);
    assert_int_equal(weir_stream_write_external(w.stream, lots, 10001, lent_release, &it), -EMSGSIZE);
    test_ok(weir_stream_shutdown(w.stream));
    assert_int_equal(weir_stream_write_external(w.stream, lots, 1, lent_release, &it), -EPIPE);
    weir_stream *kept = weir_stream_ref(w.stream);
    test_ok(weir_stream_abort(w.stream));
    assert_int_equal(weir_stream_write_external(kept, lots, 1, lent_release, &it), -EPIPE);
    run_until(f, w.closes == 1);
    assert_int_equal(weir_stream_write_external(kept, lots, 1, lent_release, &it), -EPIPE);
    test_ok(weir_loop_close(f->loop));
    assert_int_equal(it.releases, 0);
    weir_stream_unref(kept);
    close(peer);
}

static weir_stream *of_release;
static int in_release;

static void write_in_release(const void *data, size_t size, void *userdata) {
    (void)data, (void)size, (void)userdata;
    in_release = weir_stream_write(of_release, "more", 4);
}

static void a_release_may_write_to_its_stream(void **state) {
    test_fixture *f = *state;
    static witness w;
    uint8_t got[9];
    int peer = witness_pair(f, &w, false, NULL);
    of_release = w.stream;
    in_release = -1;
    assert_int_equal(weir_stream_write_external(w.stream, "hello", 5, write_in_release, NULL), WEIR_WRITE_OK);
    collect(f, peer, got, sizeof got);
    assert_memory_equal(got, "hellomore", 9);
    assert_int_equal(in_release, WEIR_WRITE_OK);
    close(peer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        loop_test(writes_of_all_kinds_keep_one_order),
        loop_test(bytes_are_copied_before_write_returns),
        loop_test(slices_and_lent_memory_are_not_copied),
        loop_test(a_write_of_nothing_does_nothing),
        loop_test(a_write_says_full_exactly_above_the_high_mark),
        loop_test(no_drain_comes_of_a_queue_that_was_not_full),
        loop_test(what_is_above_the_limit_is_refused_with_nothing_changed),
        loop_test(lent_memory_counts_against_the_limit),
        loop_test(drain_comes_once_a_fall_and_may_write),
        loop_test(drain_waits_for_the_low_mark),
        loop_test(drain_comes_at_the_low_mark_not_below),
        loop_test(writes_are_queued_until_the_stream_is_connected_and_started),
        loop_test(shutdown_ends_our_half_behind_the_queue),
        loop_test(lent_memory_is_released_once_when_it_is_sent),
        loop_test(lent_memory_is_released_before_on_close_of_an_abort),
        loop_test(lent_memory_is_released_before_on_close_of_a_close_that_lingers),
        loop_test(lent_memory_is_released_before_on_close_of_a_reset),
        loop_test(lent_memory_is_released_before_on_close_of_the_loops_close),
        loop_test(lent_memory_of_a_stream_that_was_never_started_is_released),
        loop_test(refused_memory_is_never_released),
        loop_test(a_release_may_write_to_its_stream),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
