/* SPDX-License-Identifier: MIT */

/* Queues that are too small: a completion queue that overflows, whereupon the kernel ends every multishot, and a
 * submission queue with fewer entries than there is to start. Nothing may be lost, only slow. */

#include "kernel/scribe.h"

enum { STREAMS = 500, BYTES = TIMES(20000, 5000) };

typedef struct many {
    test_fixture f;
    scribe s[STREAMS];
    int peers[STREAMS];
} many;

/* Buffers for all of them: running dry is another test's matter. */
static const weir_pool_options pool = { .size = sizeof pool, .window_bytes = 16 << 20 };

static void many_open(many *m, unsigned sq_entries, unsigned cq_entries) {
    const weir__tuning tuning = { .sq_entries = sq_entries, .cq_entries = cq_entries };
    memset(m, 0, sizeof *m);
    test_open(&m->f, &tuning, &pool);
}

static void many_adopt(many *m) {
    for (unsigned i = 0; i < STREAMS; i++) {
        int fds[2];
        test_pair(i % 8 == 0, fds);
        m->peers[i] = fds[0];
        scribe_init(&m->s[i], i);
        scribe_adopt(&m->f, &m->s[i], fds[1], NULL);
    }
}

static void many_close(many *m) {
    for (unsigned i = 0; i < STREAMS; i++) {
        assert_int_equal(m->s[i].wrong, -1);
        close(m->peers[i]);
    }
    test_close(&m->f);
}

static void nothing_is_lost_when_the_completion_queue_overflows(void **state) {
    (void)state;
    static many m;
    test_needs_io_uring();
    many_open(&m, 16, 16);
    many_adopt(&m);
    scribe_turns(&m.f, 60); /* every receive is armed */
    for (unsigned position = 0; position < BYTES; position += 1000) {
        for (unsigned i = 0; i < STREAMS; i++)
            assert_int_equal(peer_send(m.peers[i], i, position, 1000), 0);
        scribe_turns(&m.f, 2);
    }
    for (unsigned i = 0; i < STREAMS; i++)
        shutdown(m.peers[i], SHUT_WR);
    for (unsigned i = 0; i < STREAMS; i++) {
        RUN_UNTIL(&m.f, strchr(m.s[i].events, 'e') != NULL);
        assert_int_equal(m.s[i].received, BYTES);
    }
    weir_loop_stats stats = test_loop_stats(&m.f);
    assert_true(stats.overflows > 0);
    assert_true(stats.rearms > 0);
    assert_int_equal(stats.bytes_in, (uint64_t)STREAMS * BYTES);
    many_close(&m);
}

static void count(weir_listener *listener, weir_stream *stream, void *userdata) {
    many *m = userdata;
    (void)listener;
    for (unsigned i = 0; i < STREAMS; i++) {
        if (m->s[i].stream != NULL || m->s[i].events[0] != '\0')
            continue;
        scribe_start(&m->s[i], stream);
        return;
    }
    fail();
}

static void no_connection_is_lost_when_the_completion_queue_overflows(void **state) {
    (void)state;
    static const weir_listener_callbacks callbacks = { .size = sizeof callbacks, .on_accept = count };
    static many m;
    weir_listener *listener;
    test_needs_io_uring();
    many_open(&m, 16, 16);
    test_ok(weir_listener_open(m.f.loop, "127.0.0.1:0", NULL, &listener));
    test_ok(weir_listener_start(listener, &callbacks, &m));
    scribe_turns(&m.f, 3);
    for (unsigned i = 0; i < STREAMS; i++) {
        scribe_init(&m.s[i], 0);
        m.peers[i] = test_connect(listener);
        assert_int_equal(peer_send(m.peers[i], 0, 0, 100), 0);
    }
    for (unsigned i = 0; i < STREAMS; i++)
        RUN_UNTIL(&m.f, m.s[i].received == 100);
    weir_loop_stats stats = test_loop_stats(&m.f);
    assert_int_equal(stats.accepted, STREAMS);
    assert_true(stats.overflows > 0);
    many_close(&m);
}

static void five_hundred_streams_start_in_one_turn_of_a_small_submission_queue(void **state) {
    (void)state;
    static many m;
    test_needs_io_uring();
    many_open(&m, 16, 0);
    many_adopt(&m);
    for (unsigned i = 0; i < STREAMS; i++) {
        uint8_t byte = test_byte(i, 0);
        assert_int_equal(send(m.peers[i], &byte, 1, MSG_NOSIGNAL), 1);
        assert_int_equal(weir_stream_write(m.s[i].stream, "x", 1), WEIR_WRITE_OK);
    }
    for (unsigned i = 0; i < STREAMS; i++) {
        char byte;
        RUN_UNTIL(&m.f, m.s[i].received == 1);
        RUN_UNTIL(&m.f, recv(m.peers[i], &byte, 1, MSG_DONTWAIT) == 1);
    }
    many_close(&m);
}

static void five_hundred_streams_end_in_one_turn_of_small_queues(void **state) {
    (void)state;
    static many m;
    test_needs_io_uring();
    many_open(&m, 16, 16);
    many_adopt(&m);
    scribe_turns(&m.f, 60);
    for (unsigned i = 0; i < STREAMS; i++) {
        if (i % 3 == 0)
            test_ok(weir_stream_pause(m.s[i].stream));
        else
            test_ok(weir_stream_abort(m.s[i].stream));
    }
    RUN_UNTIL(&m.f, test_loop_stats(&m.f).streams_open == (STREAMS + 2) / 3);
    for (unsigned i = 0; i < STREAMS; i += 3)
        test_ok(weir_stream_abort(m.s[i].stream));
    for (unsigned i = 0; i < STREAMS; i++) {
        RUN_UNTIL(&m.f, scribe_is_closed(&m.s[i]));
        scribe_expect(&m.s[i], "c", WEIR_CLOSE_ABORT, 0);
    }
    many_close(&m);
}

static void a_loop_closes_over_overflown_completions(void **state) {
    (void)state;
    static many m;
    test_needs_io_uring();
    many_open(&m, 16, 16);
    many_adopt(&m);
    scribe_turns(&m.f, 60);
    for (unsigned i = 0; i < STREAMS; i++)
        assert_int_equal(peer_send(m.peers[i], i, 0, 1000), 0);
    test_ok(weir_loop_close(m.f.loop));
    for (unsigned i = 0; i < STREAMS; i++)
        scribe_expect(&m.s[i], "c", WEIR_CLOSE_LOOP, 0);
    many_close(&m);
}

/* One turn of the kernel runs some twenty deferred completions: what is ready must not wait for the next event. */
static void several_hundred_ready_at_once_are_all_delivered_without_another_event(void **state) {
    (void)state;
    static many m;
    test_needs_io_uring();
    many_open(&m, 0, 0);
    many_adopt(&m);
    scribe_turns(&m.f, 5);
    for (unsigned i = 0; i < STREAMS; i++)
        assert_int_equal(peer_send(m.peers[i], i, 0, 100), 0);
    weir_loop_stats before = test_loop_stats(&m.f);
    while (test_loop_stats(&m.f).bytes_in < STREAMS * 100) {
        uint64_t bytes = test_loop_stats(&m.f).bytes_in;
        scribe_turn(&m.f, 0); /* it does not sleep, so what it does not find now it would find never */
        assert_true(test_loop_stats(&m.f).bytes_in > bytes);
    }
    assert_int_equal(test_loop_stats(&m.f).overflows, before.overflows);
    many_close(&m);
}

static void events_are_bounded_in_a_turn_and_the_rest_comes_next(void **state) {
    (void)state;
    weir_loop_options options = { .pool = &pool, .max_turn_events = 10 };
    static many m;
    memset(&m, 0, sizeof m);
    test_open_options(&m.f, NULL, &options);
    many_adopt(&m);
    scribe_turns(&m.f, 5);
    for (unsigned i = 0; i < STREAMS; i++)
        assert_int_equal(peer_send(m.peers[i], i, 0, 100), 0);
    unsigned turns = 0;
    while (test_loop_stats(&m.f).bytes_in < STREAMS * 100) {
        uint64_t bytes = test_loop_stats(&m.f).bytes_in;
        scribe_turn(&m.f, 1000 * MS); /* nothing else will come, so sleeping would be a second lost */
        uint64_t got = test_loop_stats(&m.f).bytes_in - bytes;
        assert_true(got <= 1000);
        /* Over epoll an event may be that a socket has no more, and a turn may have only such ones. */
        assert_true(got > 0 || test_is_epoll(&m.f));
        turns++;
    }
    assert_true(turns <= 4 * STREAMS / 10); /* an end of each besides, and a turn between */
    many_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_lost_when_the_completion_queue_overflows),
        cmocka_unit_test(no_connection_is_lost_when_the_completion_queue_overflows),
        cmocka_unit_test(five_hundred_streams_start_in_one_turn_of_a_small_submission_queue),
        cmocka_unit_test(five_hundred_streams_end_in_one_turn_of_small_queues),
        cmocka_unit_test(a_loop_closes_over_overflown_completions),
        cmocka_unit_test(several_hundred_ready_at_once_are_all_delivered_without_another_event),
        cmocka_unit_test(events_are_bounded_in_a_turn_and_the_rest_comes_next),
    };
    return cmocka_run_group_tests_name("overflow", tests, NULL, NULL);
}
